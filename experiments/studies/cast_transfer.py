"""Every source task's vector on every target task, beside prompting and random controls (CAST, arXiv 2507.13236).

    python experiments/studies/cast_transfer.py --suite words                     built-in tasks: no data needed
    python experiments/studies/cast_transfer.py --suite paper --data DIR          8 sources x 5 targets
    python experiments/studies/cast_transfer.py --suite topics --data DIR         one topic task in 6 languages
    python experiments/studies/cast_transfer.py --suite letters --data DIR        answered by letter, NAME@letters
    python experiments/studies/cast_transfer.py --sources sst2 --targets financial_phrasebank --data DIR --queries 40
    python experiments/studies/cast_transfer.py --suite paper --hub experiments/configs/hub_tasks.json

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
import json
from collections.abc import Sequence
from pathlib import Path

from transfer_matrix import Matrix
from transfer_report import beside, report
from transfer_tasks import SUITES

from laai.compare import Options, Row, Runner, Study
from laai.errors import UserError
from laai.models import LanguageModel
from laai.vocabulary import SITES, STRATEGIES

ALONE = ("zero-shot", "few-shot", "few-shot, more labels")
CONTROLS = ("cross-task few-shot", "random direction", "random samples", "each site")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Tasks, sizes and controls."""
    parser.add_argument("--suite", choices=SUITES, help="sources and targets that belong together")
    parser.add_argument("--sources", nargs="+", help="folders below --data, built-in names, or files")
    parser.add_argument("--targets", nargs="+")
    parser.add_argument("--data", type=Path, help="folder with one folder for each task")
    hub = "JSON that names tasks on the Hugging Face hub, as experiments/configs/hub_tasks.json does"
    parser.add_argument("--hub", type=Path, help=hub)
    parser.add_argument("--samples", type=int, default=10, help="source samples (default: 10)")
    parser.add_argument("--pool", type=int, default=200, help="examples that samples are selected from (default: 200)")
    parser.add_argument("--shots", type=int, default=5, help="demonstrations in few-shot prompts (default: 5)")
    parser.add_argument("--queries", type=int, default=100, help="test queries of a target (default: 100)")
    parser.add_argument("--development", type=int, default=20, help="target examples to choose on (default: 20)")
    parser.add_argument("--select", choices=STRATEGIES, default="cast")
    prior = "set the labels' prior (default: yes)"
    parser.add_argument("--label_prior", action=argparse.BooleanOptionalAction, default=True, help=prior)
    parser.add_argument("--skip", nargs="+", choices=CONTROLS, help="controls to leave out, for speed")
    parser.add_argument("--site", choices=[*SITES, "both"], default="both", help="where vectors may go (default: both)")
    parser.add_argument("--longest", type=int, default=1500, help="tokens of a cross-task prompt (default: 1500)")


def check(options: Options) -> None:
    """Refuse what is no matrix; a suite stands for its tasks, and a file of hub tasks for its content.

    Rows of tasks that were read otherwise do not mix.
    """
    if not options.suite and not (options.sources and options.targets):
        raise UserError("expected a --suite, or --sources and --targets, found neither; give one")
    if options.samples < 2:
        raise UserError("--samples must be 2 or more: samples are each other's demonstrations")
    sources, targets = SUITES.get(options.suite, ((), ()))
    options.sources, options.targets = options.sources or sources, options.targets or targets
    options.hub_tasks = {}
    if options.hub:
        try:
            content = options.hub.read_bytes()
            options.hub_tasks = json.loads(content)
        except (OSError, ValueError) as error:
            raise UserError(f"expected --hub as a file that can be read, found {options.hub}: {error}") from error
        options.hub = hashlib.sha256(content).hexdigest()[:12]


def cells(options: Options) -> list[Row]:
    """What uses each target alone, then all pairs."""
    seeds, sources, targets = options.seeds, options.sources, options.targets
    alone = [(None, target, seed, method) for seed in seeds for target in targets for method in ALONE]
    pairs = [(s, t, seed, "cast") for seed in seeds for s in sources for t in targets if s != t]
    axes = ("source", "target", "seed", "method")
    return [dict(zip(axes, cell, strict=True)) for cell in (*alone, *pairs)]


def runner(model: LanguageModel, options: Options) -> Runner:
    """Measure the methods of a target, or of a pair, that are not among the rows."""
    matrix = Matrix(model, options)

    def run(group: Row, _: list[Row], rows: Sequence[Row]) -> list[Row]:
        if group["source"] is None:
            return matrix.own(group["target"], group["seed"], rows)
        return matrix.cell(**group, rows=rows)

    return run


def results(options: Options) -> Path:
    """Where rows are kept without --json."""
    return Path(__file__).parents[1] / "results" / f"cast_transfer_{options.suite or 'own'}.json"


STUDY = Study(
    about=__doc__, arguments=arguments, check=check, cells=cells, together=("source", "target", "seed"), runner=runner,
    facts=(
        *("base_model", "pool", "samples", "shots", "queries", "development", "select", "site", "longest"),
        *("skip", "label_prior", "hub"),
    ),
    shown={"source": "sources", "target": "targets", "seed": "seeds"},
    report=report, beside=beside, results=results,
)  # fmt: skip
main = STUDY.main

if __name__ == "__main__":
    main()
