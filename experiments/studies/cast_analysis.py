"""What CAST vectors are made of: tasks compared, numbers and choice of samples, wording, layers, what it all costs.

    python experiments/studies/cast_analysis.py                                 all parts on built-in word tasks
    python experiments/studies/cast_analysis.py --parts vectors cost            minutes
    python experiments/studies/cast_analysis.py --parts vectors --tasks sst2 mnli ag_news --data DIR --json PATH

Parts: `vectors` (cosines of tasks' difference vectors by layer, beside nulls; a PCA picture), `samples` (exact match
against the number of source samples, CAST and cross-task few-shot, which see no other label of the source),
`strategies` (which samples, at an equal budget), `variants` (few-shot activations alone, norms kept, centred on the
mean over the sources of all --pairs, of which there must be two or more, one residual layer, all layers, a ridge map,
steered answers; forced choice too where the target has options), `wording` (vectors from one wording of the instruction
under another), `profile` (layers and scales), `cost` (prompt tokens, cache bytes and time against prompting). Layers,
scale and label prior come from --development labelled examples of the target, as in `laai transfer`. Every finished row
is kept in the JSON file, and a run that was stopped goes on from there; the report and its pictures are written beside
it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from analysis_parts import CENTRED, VARIANTS, Parts, sources_of
from analysis_report import draw, report

from laai.compare import Options, Row, Runner, Study
from laai.errors import UserError
from laai.models import LanguageModel

TASKS = (
    *("antonym", "synonym", "country-capital", "country-language", "present-past", "singular-plural"),
    *("english-french", "english-german", "word-sentiment", "country-region"),
)
PAIRS = tuple(f"{source}:{target}" for source, target in zip(TASKS[::2], TASKS[1::2], strict=True))
PARTS = ("vectors", "strategies", "samples", "variants", "wording", "profile", "cost")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Parts, tasks and sizes."""
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="tasks of the part `vectors`")
    parser.add_argument("--pairs", nargs="+", default=PAIRS, help="SOURCE:TARGET of the other parts")
    parser.add_argument("--data", type=Path, help="folder with one folder for each task")
    labelled = "labelled source samples of `samples`"
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 5, 10, 20], help=labelled)
    parser.add_argument("--budgets", type=int, nargs="+", default=[5], help="source samples of `strategies`")
    parser.add_argument("--strategies", nargs="+", default=["cast", "random"], help="of `strategies`")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="of `variants`")
    parser.add_argument("--samples", type=int, default=16, help="source samples of the other parts (default: 16)")
    parser.add_argument("--shots", type=int, default=4, help="demonstrations in few-shot prompts (default: 4)")
    parser.add_argument("--pool", type=int, default=200, help="examples that samples are selected from (default: 200)")
    parser.add_argument("--queries", type=int, default=40, help="test queries (default: 40)")
    parser.add_argument("--development", type=int, default=16, help="target examples to choose on (default: 16)")


def check(options: Options) -> None:
    """Refuse what cannot be analysed; say what is left out."""
    if min(options.counts) < 2:
        raise UserError("--counts must be 2 or more: samples are each other's demonstrations")
    if wrong := [pair for pair in options.pairs if pair.count(":") != 1]:
        raise UserError(f"--pairs must be SOURCE:TARGET, found {wrong[0]!r}")
    alone = [pair for pair in options.pairs if not has_centre(pair.partition(":")[2], options)]
    if alone and "variants" in options.parts and not options.report:
        print(f"{' and '.join(CENTRED)} need the sources of two --pairs or more: left out for {', '.join(alone)}")


def cells(options: Options) -> list[Row]:
    """The rows that are asked for."""
    return [{"part": part} | key for part in options.parts for key in keys(part, options)]


def keys(part: str, options: Options) -> Iterator[Row]:
    """What each row of a part is about."""
    pairs = [dict(zip(("source", "target"), pair.split(":"), strict=True)) for pair in options.pairs]
    if part == "vectors":
        yield {"seed": options.seeds[0], "tasks": list(options.tasks)}
    elif part == "cost":
        yield {"task": pairs[0]["target"], "seed": options.seeds[0]}
    elif part in ("wording", "profile"):
        yield from (pair | {"seed": options.seeds[0]} for pair in pairs[:3])
    for cell in [pair | {"seed": seed} for seed in options.seeds for pair in pairs]:
        if part == "samples":
            yield from (cell | {"labels": count} for count in options.counts)
        elif part == "strategies":
            yield from (cell | {"budget": b, "strategy": s} for b in options.budgets for s in options.strategies)
        elif part == "variants":
            centre = has_centre(cell["target"], options)
            yield from (cell | {"variant": v} for v in options.variants if centre or v not in CENTRED)


def has_centre(target: str, options: Options) -> bool:
    """Whether there is another source to take a mean over: less its own, a vector is nothing."""
    return len(sources_of(options.pairs, target)) > 1


def runner(model: LanguageModel, options: Options) -> Runner:
    """Measure a row."""
    parts = Parts(model, options)

    def run(cell: Row, _: list[Row], __: Sequence[Row]) -> list[Row]:
        key = {axis: value for axis, value in cell.items() if axis != "part"}
        return [cell | {"key": list(key)} | getattr(parts, cell["part"])(**key)]

    return run


def shown(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by part, in order; rows of `samples` by "count" drew demonstrations from the whole pool: more labels."""
    told = [row for row in rows if row["part"] != "samples" or "labels" in row]
    return {part: own for part in PARTS if (own := [row for row in told if row["part"] == part])}


STUDY = Study(
    about=__doc__, arguments=arguments, check=check, seeds=(0, 1, 2, 3, 4), cells=cells, runner=runner, parted=True,
    facts=("base_model", "samples", "shots", "pool", "queries", "development"),
    report=lambda rows, facts, options: report(shown(rows), facts, options.json),
    beside=lambda rows, _, options: draw(shown(rows), options.json),
    results=Path(__file__).parents[1] / "results" / "cast_analysis.json",
)  # fmt: skip
main = STUDY.main

if __name__ == "__main__":
    main()
