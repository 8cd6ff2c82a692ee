"""What CAST vectors are made of: tasks compared, numbers and choice of samples, wording, layers, what it all costs.

    python experiments/cast_analysis.py                                 all parts on built-in word tasks
    python experiments/cast_analysis.py --parts vectors cost            minutes
    python experiments/cast_analysis.py --parts vectors --tasks sst2 mnli ag_news --data DIR --json PATH

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
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import vector_geometry
from analysis_report import write_report
from resuming import kept_results
from transfer_studies import CENTRED, VARIANTS, Study, sources_of

import laai
from laai.errors import ends_in_one_line
from laai.files import write_json

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
TASKS = (
    *("antonym", "synonym", "country-capital", "country-language", "present-past", "singular-plural"),
    *("english-french", "english-german", "word-sentiment", "country-region"),
)
PAIRS = (
    *("antonym:synonym", "country-capital:country-language", "present-past:singular-plural"),
    *("english-french:english-german", "word-sentiment:country-region"),
)
PARTS = ("vectors", "strategies", "samples", "variants", "wording", "profile", "cost")


@ends_in_one_line()
def main() -> None:
    """Run the rows that are missing, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="tasks of the part `vectors`")
    parser.add_argument("--pairs", nargs="+", default=PAIRS, help="SOURCE:TARGET of the other parts")
    parser.add_argument("--data", type=Path, help="folder with one folder for each task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[2, 5, 10, 20], help="labelled source samples of `samples`"
    )
    parser.add_argument("--budgets", type=int, nargs="+", default=[5], help="source samples of `strategies`")
    parser.add_argument("--strategies", nargs="+", default=["cast", "random"], help="of `strategies`")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="of `variants`")
    parser.add_argument("--samples", type=int, default=16, help="source samples of the other parts (default: 16)")
    parser.add_argument("--shots", type=int, default=4, help="demonstrations in few-shot prompts (default: 4)")
    parser.add_argument("--pool", type=int, default=200, help="examples that samples are selected from (default: 200)")
    parser.add_argument("--queries", type=int, default=40, help="test queries (default: 40)")
    parser.add_argument("--development", type=int, default=16, help="target examples to choose on (default: 16)")
    parser.add_argument("--base_model", default="default")
    parser.add_argument("--report", action="store_true", help="run nothing; write the report of what is there")
    parser.add_argument("--json", type=Path, default=RESULTS / "cast_analysis.json")
    options = parser.parse_args()
    if min(options.counts) < 2:
        parser.error("--counts must be 2 or more: samples are each other's demonstrations")
    if wrong := [pair for pair in options.pairs if pair.count(":") != 1]:
        parser.error(f"--pairs must be SOURCE:TARGET, found {wrong[0]!r}")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    facts = {name: getattr(options, name) for name in ("base_model", "samples", "shots", "pool", "queries")}
    facts["development"] = options.development
    kept = kept_results(parser, options.json, facts, options.report)
    facts, parts = {name: kept[name] for name in facts}, kept.get("parts", {})
    study: Study | None = None
    alone = [pair for pair in options.pairs if not has_centre(pair.partition(":")[2], options)]
    if alone and "variants" in options.parts and not options.report:
        print(f"{' and '.join(CENTRED)} need the sources of two --pairs or more: left out for {', '.join(alone)}")
    for part in () if options.report else options.parts:
        rows: list[Row] = parts.setdefault(part, [])
        done = [{k: row[k] for k in row["key"]} for row in rows]
        missing = [key for key in keys(part, options) if key not in done]
        for number, key in enumerate(missing, 1):
            began = time.perf_counter()
            study = study or Study(laai.load_model(options.base_model), options)
            rows.append(key | {"key": list(key)} | run(study, part)(**key))
            write_json(options.json, facts | {"parts": parts})
            shown = ", ".join(str(value) for value in key.values())
            print(f"{part} {number}/{len(missing)}  {shown}: {time.perf_counter() - began:.0f} s", flush=True)
    print(write_report({name: parts[name] for name in PARTS if parts.get(name)}, facts, options.json))


def keys(part: str, options: argparse.Namespace) -> Iterator[Row]:
    """What each row of a part is about."""
    pairs = [dict(zip(("source", "target"), pair.split(":"), strict=True)) for pair in options.pairs]
    if part == "vectors":
        yield {"seed": options.seeds[0], "tasks": list(options.tasks)}
    elif part == "cost":
        yield {"task": pairs[0]["target"], "seed": options.seeds[0]}
    elif part == "samples":
        yield from (
            pair | {"seed": seed, "labels": n} for seed in options.seeds for pair in pairs for n in options.counts
        )
    elif part == "strategies":
        for seed in options.seeds:
            for pair in pairs:
                for budget in options.budgets:
                    for strategy in options.strategies:
                        yield pair | {"seed": seed, "budget": budget, "strategy": strategy}
    elif part == "variants":
        yield from (
            pair | {"seed": s, "variant": v}
            for s in options.seeds
            for pair in pairs
            for v in options.variants
            if v not in CENTRED or has_centre(pair["target"], options)
        )
    else:
        yield from (pair | {"seed": options.seeds[0]} for pair in pairs[:3])


def has_centre(target: str, options: argparse.Namespace) -> bool:
    """Whether there is another source to take a mean over: less its own, a vector is nothing."""
    return len(sources_of(options.pairs, target)) > 1


def run(study: Study, part: str) -> Callable[..., Row]:
    """The function that measures a row of a part."""
    if part == "vectors":
        return lambda seed, tasks: vector_geometry.compare_tasks({t: study.kept(t, seed) for t in tasks}, seed)
    found: Callable[..., Row] = getattr(study, part)
    return found


if __name__ == "__main__":
    main()
