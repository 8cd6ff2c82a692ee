"""Transfers with and without labels of the target to choose a place on, and from one source or several.

    python experiments/transfer_settings.py --data DIR                  six targets, one seed: half an hour
    python experiments/transfer_settings.py --pairs antonym:synonym antonym+present-past:synonym --seeds 0 --queries 20

By `cast.transfer` itself. Each of --pairs is SOURCE[+SOURCE...]:TARGET; the vector of several sources is their mean,
and --samples counts over all of them. Layers, scale and label prior come from as many labelled examples of the target
as --developments says; with 0, layers and scale come from examples of the (first) source, which are no samples at any
setting, and there is no label prior. With --by_layer a scale is chosen for each sixth of the layers besides. The vector
is applied whatever the rule that refuses says of it; `cast, if it helps` obeys. Every finished transfer is kept in the
JSON file, and a run that was stopped goes on from there; the report is written beside it.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis_cells import Cell, cells, difference, mean, over
from resuming import kept_results
from transfer_tasks import find_task, thinned

import cast
import laai
from cast.transfers import source_development
from laai.errors import ends_in_one_line
from laai.evaluation import Evaluation
from laai.files import write_atomically, write_json
from laai.models import LanguageModel
from laai.runtime import FewShotDataModule
from laai.tasks import without

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
BASELINES = ("zero-shot", "label prior", "random direction")
METHODS = ("zero-shot", "label prior", "random direction", "cast", "cast, if it helps")
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


@ends_in_one_line()
def main() -> None:
    """Run the transfers that are missing, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=PAIRS, help="SOURCE[+SOURCE...]:TARGET")
    parser.add_argument("--data", type=Path, help="folder with one folder for each task")
    parser.add_argument("--developments", type=int, nargs="+", default=[12, 0], help="target examples to choose on")
    parser.add_argument("--by_layer", action="store_true", help="choose a scale for each sixth of the layers too")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samples", type=int, default=12, help="samples of all sources together (default: 12)")
    parser.add_argument("--shots", type=int, default=4, help="demonstrations in few-shot prompts (default: 4)")
    parser.add_argument("--pool", type=int, default=200, help="source examples that samples are drawn from")
    parser.add_argument("--queries", type=int, default=40, help="test queries (default: 40)")
    parser.add_argument("--base_model", default="default")
    parser.add_argument("--report", action="store_true", help="run nothing; write the report of what is there")
    parser.add_argument("--json", type=Path, default=RESULTS / "transfer_settings.json")
    options = parser.parse_args()
    if wrong := [pair for pair in options.pairs if pair.count(":") != 1]:
        parser.error(f"--pairs must be SOURCE[+SOURCE...]:TARGET, found {wrong[0]!r}")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    facts = {name: getattr(options, name) for name in ("base_model", "samples", "shots", "pool", "queries")}
    kept = kept_results(parser, options.json, facts, options.report)
    facts, rows = {name: kept[name] for name in facts}, kept.get("rows", [])
    wanted = [
        (seed, *pair.split(":"), development)
        for seed in options.seeds
        for pair in options.pairs
        for development in options.developments
    ]
    own = [row for row in rows if row["by_layer"] == options.by_layer]
    done = {(row["seed"], row["source"], row["target"], row["development"]) for row in own}
    missing = [] if options.report else [one for one in wanted if one not in done]
    model = laai.load_model(options.base_model) if missing else None
    for number, (seed, source, target, development) in enumerate(missing, 1):
        assert model is not None
        began = time.perf_counter()
        rows += measured(model, source, target, seed, development, options)
        write_json(options.json, facts | {"rows": rows})
        told = f"{source} -> {target}, seed {seed}, development {development}"
        print(f"{number}/{len(missing)}  {told}: {time.perf_counter() - began:.0f} s", flush=True)
    text = report(rows, facts)
    write_atomically(options.json.with_suffix(".md"), lambda file: file.write_text(text))
    print(text)


def measured(
    model: LanguageModel, source: str, target: str, seed: int, development: int, options: argparse.Namespace
) -> list[Row]:
    """A row for each method of one transfer."""
    task, names = find_task(target, options.data), source.split("+")
    data = FewShotDataModule(task, options.shots, seed=seed, validation=development, test=options.queries)
    seen = {example.input for example in (*data.splits.test, *data.splits.validation)}
    pools = [thinned(without(find_task(name, options.data), seen), options.pool, seed) for name in names]
    if development:  # else `transfer` takes these off itself, to choose on them
        held_out = source_development(pools[0], seed)
        pools = [without(pool, {example.input for example in held_out}) for pool in pools]
    found = cast.transfer(
        model, pools, task, development=development, test=options.queries, samples=options.samples // len(names),
        shots=options.shots, refuse=False, by_layer=options.by_layer, baselines=BASELINES, seed=seed, progress=False,
        batch_size=4,
    )  # fmt: skip
    about: Row = {"source": source, "target": target, "seed": seed, "development": development}
    about["by_layer"] = options.by_layer
    place = {"layers": [found.choice.layers[0], found.choice.layers[-1]], "scale": found.choice.scale}
    about |= {"helps": found.choice.helps, "site": found.choice.site, "chosen_on": found.chosen_on} | place
    rows = [about | {"method": e.method.name} | answers(e) for e in found.evaluations]
    kept = "cast" if found.choice.helps else "zero-shot"
    return rows + [row | {"method": "cast, if it helps"} for row in rows if row["method"] == kept]


def answers(evaluation: Evaluation) -> Row:
    """Which queries were right, freely decoded and by forced choice; None where not all have options."""
    ordered = sorted(evaluation.measured, key=lambda m: m.row)
    choice = [int(m.choice_sum) for m in ordered if m.choice_sum is not None]
    return {"exact": [int(m.exact) for m in ordered], "choice": choice if len(choice) == len(ordered) else None}


def report(rows: Sequence[Row], facts: Row) -> str:
    """Means by number of sources and of labelled target examples, what each changes, and every transfer."""
    out = ["# Transfers without labels, and from more sources", ""]
    out += [", ".join(f"{name} {value}" for name, value in facts.items()) + ".", "", over(rows), ""]
    settings: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda r: ("+" in r["source"], r["by_layer"], -r["development"])):
        settings.setdefault(told("+" in row["source"], row["development"], row["by_layer"]), []).append(row)
    for title, own in settings.items():
        out += [f"## {title[0].upper()}{title[1:]}", ""]
        out += ["| method | exact match | − zero-shot | forced choice | − zero-shot |", "| --- |" + " ---: |" * 4]
        for method in METHODS:
            shown = []
            for measure in MEASURES:
                whole, zero = (cells(own, measure, method=m) for m in ("cast", "zero-shot"))
                found = cells(own, measure, method=method)
                shown += [mean(found, whole), "" if method == "zero-shot" else difference(found, zero)]
            out.append(f"| {method} | {' | '.join(shown)} |")
        applied = {(r["source"], r["target"], r["seed"]): r["helps"] for r in own}
        out += ["", f"The rule that refuses would apply {sum(applied.values())} of {len(applied)} vectors.", ""]
    out += ["## What a setting changes", "", "Paired by target and seed; all vectors are of as many samples.", ""]
    out += ["| `cast` with − `cast` with | exact match | forced choice |", "| --- | ---: | ---: |"]
    first, *others = settings
    for other in others:
        changes = [difference(by_target(settings[other], m), by_target(settings[first], m)) for m in MEASURES]
        out.append(f"| {other} − {first} | {' | '.join(changes)} |")
    out += ["", "## By transfer (mean over seeds), exact match / forced choice", ""]
    out += ["| sources → target | setting | zero-shot | cast | random direction |", "| --- | --- |" + " ---: |" * 3]
    for title, own in settings.items():
        for source, target in dict.fromkeys((r["source"], r["target"]) for r in own):
            shown = [
                " / ".join(_short(cells(own, m, method=method, source=source, target=target)) for m in MEASURES)
                for method in ("zero-shot", "cast", "random direction")
            ]
            out.append(f"| {source.replace('+', ' + ')} → {target} | {title} | {' | '.join(shown)} |")
    return "\n".join(out) + "\n"


def told(several: bool, development: int, by_layer: bool) -> str:
    """A setting in words."""
    sources = "several sources" if several else "one source"
    return f"{sources}, {development or 'no'} labelled examples of the target{', scale by layer' if by_layer else ''}"


def by_target(rows: Sequence[Row], measure: str) -> dict[Cell, float]:
    """Means of `cast` by target and seed, whatever the sources."""
    return {(f"→ {name.split(' → ')[1]}", seed): v for (name, seed), v in cells(rows, measure, method="cast").items()}


def _short(found: dict[Cell, float]) -> str:
    return f"{sum(found.values()) / len(found):.2f}" if found else "-"


if __name__ == "__main__":
    main()
