"""Every source task's vector on every target task, beside prompting and random controls (CAST, arXiv 2507.13236).

    python experiments/cast_transfer.py --suite words                         built-in tasks: no data needed
    python experiments/cast_transfer.py --suite paper --data DIR              8 sources x 5 targets
    python experiments/cast_transfer.py --suite topics --data DIR             one topic task in 6 languages
    python experiments/cast_transfer.py --suite letters --data DIR            options answered by letter: NAME@letters
    python experiments/cast_transfer.py --sources sst2 --targets financial_phrasebank --data DIR --queries 40
    python experiments/cast_transfer.py --suite paper --hub experiments/configs/hub_tasks.json

Every finished cell (source, target, seed) is kept in the JSON file, and a run that was stopped goes on from there. The
report (Markdown), a CSV table and heat maps are written beside it. Layers and scale are chosen on --development
labelled target examples that are neither tested nor shown. `cast` is the vector as chosen, `cast, if it helps` leaves
the model alone where the choice expects no gain, and `cast, … only` are the choices at one site, of which `cast` is
one. Where all queries have the same labels, vectors and controls make these labels equally likely over the development
examples; `label prior` does nothing else. All methods see the same queries; `cross-task few-shot` shows as many source
examples as the vector has samples, as far as --longest tokens allow, and has no row where not even two fit;
`few-shot, more labels` shows the development examples after the shots, as many as fit, and has no row where none does.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import time
import warnings
from pathlib import Path
from typing import Any

from cast_report import write_report
from resuming import kept_results
from transfer_matrix import Matrix, measured_in
from transfer_tasks import SUITES

import laai
from laai.errors import UserError, ends_in_one_line
from laai.files import write_json
from laai.vocabulary import SITES, STRATEGIES

RESULTS = Path(__file__).parent / "results"
ALONE = {"zero-shot", "few-shot", "few-shot, more labels"}
CONTROLS = ("cross-task few-shot", "random direction", "random samples", "each site")
Row = dict[str, Any]


@ends_in_one_line()
def main() -> None:
    """Run the cells that are missing, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, help="sources and targets that belong together")
    parser.add_argument("--sources", nargs="+", help="folders below --data, built-in names, or files")
    parser.add_argument("--targets", nargs="+")
    parser.add_argument("--data", type=Path, help="folder with one folder for each task")
    parser.add_argument(
        "--hub",
        type=Path,
        help="JSON that names tasks on the Hugging Face hub, as experiments/configs/hub_tasks.json does",
    )
    parser.add_argument("--samples", type=int, default=10, help="source samples (default: 10)")
    parser.add_argument("--pool", type=int, default=200, help="examples that samples are selected from (default: 200)")
    parser.add_argument("--shots", type=int, default=5, help="demonstrations in few-shot prompts (default: 5)")
    parser.add_argument("--queries", type=int, default=100, help="test queries of a target (default: 100)")
    parser.add_argument("--development", type=int, default=20, help="target examples to choose on (default: 20)")
    parser.add_argument("--select", choices=STRATEGIES, default="cast")
    parser.add_argument(
        "--label_prior",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="set the labels' prior (default: yes)",
    )
    parser.add_argument("--skip", nargs="+", choices=CONTROLS, help="controls to leave out, for speed")
    parser.add_argument("--site", choices=[*SITES, "both"], default="both", help="where vectors may go (default: both)")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0; of a report all that there are")
    parser.add_argument("--longest", type=int, default=1500, help="tokens of a cross-task prompt (default: 1500)")
    parser.add_argument("--base_model", default="default")
    parser.add_argument("--report", action="store_true", help="run nothing; write the report of what is there")
    parser.add_argument("--json", type=Path, help="default: experiments/results/cast_transfer_SUITE.json")
    options = parser.parse_args()
    if not options.suite and not (options.sources and options.targets):
        parser.error("give a --suite, or --sources and --targets")
    if options.samples < 2:
        parser.error("--samples must be 2 or more: samples are each other's demonstrations")
    sources, targets = SUITES.get(options.suite, ((), ()))
    sources, targets = options.sources or sources, options.targets or targets
    path = options.json or RESULTS / f"cast_transfer_{options.suite or 'own'}.json"
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    names = ("base_model", "pool", "samples", "shots", "queries", "development", "select", "site", "longest")
    facts = {name: getattr(options, name) for name in names} | {"skip": options.skip}
    facts |= {"label_prior": options.label_prior, "hub": options.hub and file_digest(options.hub)}
    kept = kept_results(parser, path, facts, options.report)
    facts, rows = {name: kept[name] for name in facts}, kept.get("rows", [])
    seeds = options.seeds or (sorted({r["seed"] for r in rows}) if options.report else [0])
    missing = [
        (seed, source, target)
        for seed in seeds
        for source in sources
        for target in targets
        if source != target and "cast" not in measured_in(rows, source, target, seed)
    ]
    alone = [
        (seed, target) for seed in seeds for target in targets if not measured_in(rows, None, target, seed) >= ALONE
    ]
    missing, alone = ([], []) if options.report else (missing, alone)
    matrix = Matrix(laai.load_model(options.base_model), options) if missing or alone else None
    for number, (seed, target) in enumerate(alone, 1):
        assert matrix is not None
        made = matrix.own(target, seed, rows)
        rows += made
        print(f"{number}/{len(alone)}  {target} alone, seed {seed}: {len(made)} methods", flush=True)
        write_json(path, facts | {"rows": rows})
    for number, (seed, source, target) in enumerate(missing, 1):
        assert matrix is not None
        began = time.perf_counter()
        rows += matrix.cell(source, target, seed, rows)
        print(
            f"{number}/{len(missing)}  {source} -> {target}, seed {seed}: {time.perf_counter() - began:.0f} s",
            flush=True,
        )
        write_json(path, facts | {"rows": rows})
    shown = [r for r in rows if r["target"] in targets and r["source"] in (*sources, None) and r["seed"] in seeds]
    print(write_report(shown, facts, path))


def file_digest(path: Path) -> str:
    """Tells one file's content from another's: rows of tasks that were read otherwise do not mix."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise UserError(f"expected --hub as a file that can be read, found {path}: {error.strerror}") from error


if __name__ == "__main__":
    main()
