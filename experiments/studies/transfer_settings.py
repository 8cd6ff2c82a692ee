"""Transfers with and without labels of the target to choose a place on, and from one source or several.

    python experiments/studies/transfer_settings.py --data DIR                  six targets, one seed: half an hour
    python experiments/studies/transfer_settings.py --pairs antonym:synonym antonym+present-past:synonym --queries 20

By `cast.transfer` itself. Each of --pairs is SOURCE[+SOURCE...]:TARGET; the vector of several sources is their mean,
and --samples counts over all of them. Layers, scale and label prior come from as many labelled examples of the target
as --developments says; with 0, layers and scale come from examples of the (first) source, which are no samples at any
setting, and there is no label prior. With --by_layer a scale is chosen for each sixth of the layers besides. The vector
is applied whatever the rule that refuses says of it; `cast, if it helps` obeys. Every finished transfer is kept in the
JSON file, and a run that was stopped goes on from there; the report is written beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pair_cells import Found, cells, difference, mean, over, short
from transfer_tasks import Tasks

import cast
from cast.transfers import source_development
from laai.compare import Options, Row, Runner, Study, about, distinct, only, table
from laai.errors import UserError
from laai.models import LanguageModel
from laai.tasks import without

METHODS = ("zero-shot", "label prior", "random direction", "cast", "cast, if it helps")
BASELINES = METHODS[:3]
MEASURES = {"exact": "exact match", "choice": "forced choice"}
SOURCES = {
    "sib200_deu_Latn": ("sib200_fra_Latn", "sib200_eng_Latn", "sib200_spa_Latn"),
    "sib200_eng_Latn": ("sib200_spa_Latn", "sib200_fra_Latn", "sib200_deu_Latn"),
    "sib200_fra_Latn": ("sib200_eng_Latn", "sib200_spa_Latn", "sib200_deu_Latn"),
    "sib200_spa_Latn": ("sib200_deu_Latn", "sib200_eng_Latn", "sib200_fra_Latn"),
    "financial_phrasebank": ("sst2", "word-sentiment"),
    "sst2": ("word-sentiment", "financial_phrasebank"),
}
PAIRS = [f"{'+'.join(some)}:{target}" for target, own in SOURCES.items() for some in (own[:1], own)]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Pairs, settings and sizes."""
    parser.add_argument("--pairs", nargs="+", default=PAIRS, help="SOURCE[+SOURCE...]:TARGET")
    parser.add_argument("--data", type=Path, help="folder with one folder for each task")
    parser.add_argument("--developments", type=int, nargs="+", default=[12, 0], help="target examples to choose on")
    parser.add_argument("--by_layer", action="store_true", help="choose a scale for each sixth of the layers too")
    parser.add_argument("--samples", type=int, default=12, help="samples of all sources together (default: 12)")
    parser.add_argument("--shots", type=int, default=4, help="demonstrations in few-shot prompts (default: 4)")
    parser.add_argument("--pool", type=int, default=200, help="source examples that samples are drawn from")
    parser.add_argument("--queries", type=int, default=40, help="test queries (default: 40)")


def check(options: Options) -> None:
    """Refuse what is no pair."""
    if wrong := [pair for pair in options.pairs if pair.count(":") != 1]:
        raise UserError(f"--pairs must be SOURCE[+SOURCE...]:TARGET, found {wrong[0]!r}")


def transfers(options: Options) -> list[Row]:
    """All settings of all pairs."""
    axes = [(s, p, d) for s in options.seeds for p in options.pairs for d in options.developments]
    names = ("seed", "source", "target", "development", "by_layer")
    return [dict(zip(names, (s, *pair.split(":"), d, options.by_layer), strict=True)) for s, pair, d in axes]


def runner(model: LanguageModel, options: Options) -> Runner:
    """A row for each method of one transfer."""

    def run(setting: Row, _: list[Row], __: Sequence[Row]) -> list[Row]:
        seed, development = setting["seed"], setting["development"]
        tasks = Tasks(Options(**vars(options) | {"development": development}))
        names = setting["source"].split("+")
        pools = [tasks.pool(name, setting["target"], seed) for name in names]
        if development:  # else `transfer` takes these off itself, to choose on them
            held_out = {example.input for example in source_development(pools[0], seed)}
            pools = [without(pool, held_out) for pool in pools]
        found = cast.transfer(
            model, pools, tasks.task(setting["target"]), development=development, test=options.queries,
            samples=options.samples // len(names), shots=options.shots, refuse=False, by_layer=options.by_layer,
            baselines=BASELINES, seed=seed, progress=False, batch_size=4,
        )  # fmt: skip
        choice = found.choice
        common = setting | {"layers": [choice.layers[0], choice.layers[-1]], "scale": choice.scale, "site": choice.site}
        common |= {"helps": choice.helps, "chosen_on": found.chosen_on}
        rows = []
        for one in found.evaluations:  # forced choice is none where not all have options
            answers = one.answers | ({"choice": None} if None in one.answers["choice"] else {})
            rows.append(common | {"method": one.arm.name} | answers)
        kept = only(rows, method="cast" if choice.helps else "zero-shot")
        return rows + [row | {"method": "cast, if it helps"} for row in kept]

    return run


def report(rows: list[Row], facts: Row, options: Options) -> str:
    """Means by number of sources and of labelled target examples, what each changes, and every transfer."""
    out = ["# Transfers without labels, and from more sources", "", f"{about(facts)}.", "", over(rows), ""]
    settings: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda r: ("+" in r["source"], r["by_layer"], -r["development"])):
        settings.setdefault(told("+" in row["source"], row["development"], row["by_layer"]), []).append(row)
    for title, own in settings.items():
        lines = []
        for method in METHODS:
            lines.append([method])
            for measure in MEASURES:
                found, whole, zero = (cells(own, measure, method=m) for m in (method, "cast", "zero-shot"))
                lines[-1] += [mean(found, whole), "" if method == "zero-shot" else difference(found, zero)]
        head = ["method", "exact match", "− zero-shot", "forced choice", "− zero-shot"]
        out += [f"## {title[0].upper()}{title[1:]}", "", *table(head, lines)]
        applied = {(r["source"], r["target"], r["seed"]): r["helps"] for r in own}
        out += ["", f"The rule that refuses would apply {sum(applied.values())} of {len(applied)} vectors.", ""]
    out += ["## What a setting changes", "", "Paired by target and seed; all vectors are of as many samples.", ""]
    first, *others = settings
    changes = [
        [f"{o} − {first}", *(difference(*(by_target(settings[s], m) for s in (o, first))) for m in MEASURES)]
        for o in others
    ]
    out += table(["`cast` with − `cast` with", *MEASURES.values()], changes)
    lines, shown = [], ("zero-shot", "cast", "random direction")
    for title, own in settings.items():
        for source, target in distinct(own, "source", "target"):
            some = only(own, source=source, target=target)
            numbers = [" / ".join(short(cells(some, m, method=method)) for m in MEASURES) for method in shown]
            lines.append([f"{source.replace('+', ' + ')} → {target}", title, *numbers])
    out += ["", "## By transfer (mean over seeds), exact match / forced choice", ""]
    return "\n".join(out + table(["sources → target", "setting", *shown], lines, align="ll")) + "\n"


def told(several: bool, development: int, by_layer: bool) -> str:
    """A setting in words."""
    sources = "several sources" if several else "one source"
    return f"{sources}, {development or 'no'} labelled examples of the target{', scale by layer' if by_layer else ''}"


def by_target(rows: Sequence[Row], measure: str) -> Found:
    """Means of `cast` by target and seed, whatever the sources."""
    return {(f"→ {name.split(' → ')[1]}", seed): v for (name, seed), v in cells(rows, measure, method="cast").items()}


STUDY = Study(
    about=__doc__, arguments=arguments, check=check, seeds=(0,), cells=transfers, runner=runner, report=report,
    facts=("base_model", "samples", "shots", "pool", "queries"),
    results=Path(__file__).parents[1] / "results" / "transfer_settings.json",
)  # fmt: skip
main = STUDY.main

if __name__ == "__main__":
    main()
