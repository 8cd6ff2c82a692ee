"""Every source task's vector on every target task, beside prompting and random controls (CAST, arXiv 2507.13236).

    python experiments/cast_transfer.py --suite words                         built-in tasks: no data needed
    python experiments/cast_transfer.py --suite paper --data DIR              8 sources x 5 targets
    python experiments/cast_transfer.py --suite topics --data DIR             one topic task in 6 languages
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
import json
import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from cast_report import write_report
from resuming import ends_in_one_line, kept_results
from transfer_cells import at_site
from transfer_tasks import SUITES, find_task, thinned

import cast
import laai
from cast.cross_task import without
from cast.cross_task_prompt import demonstrations_of
from cast.label_prior import label_prior, with_label_prior
from cast.mixing import of_equal_norm, own_seed
from cast.place import choices_by_site, likeliest
from cast.words import STRATEGIES, Strategy
from laai.batches import Reuse
from laai.compare import Method, compare
from laai.data import FewShotDataModule
from laai.evaluate import Measured
from laai.files import write_json
from laai.intervention import Intervention
from laai.metrics import calibrated_choices
from laai.models import LanguageModel
from laai.prompts import Shown, Template
from laai.tasks import Example, Task, load_task
from laai.words import SITES

RESULTS = Path(__file__).parent / "results"
ALONE = {"zero-shot", "few-shot", "few-shot, more labels"}
CONTROLS = ("cross-task few-shot", "random direction", "random samples", "each site")
Row = dict[str, Any]


@ends_in_one_line
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
    facts["label_prior"] = options.label_prior
    rows: list[Row] = kept_results(parser, path, facts).get("rows", [])
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


class Matrix:
    """Cells of the matrix; vectors of a source and prefixes of a target's queries are made once."""

    def __init__(self, model: LanguageModel, options: argparse.Namespace) -> None:
        self._model, self._options = model, options
        self._hub = json.loads(options.hub.read_text()) if options.hub else {}
        self._tasks: dict[str, Task] = {}
        self._reuse: dict[tuple[str, int], Reuse] = {}
        self._vectors: dict[tuple[Task, int, str], Intervention] = {}

    def task(self, name: str) -> Task:
        """A task by its folder, its place on the hub, or a name that `load_task` knows."""
        if name not in self._tasks:
            if name in self._hub:
                found = self._hub[name]
                task = load_task(found["task"], columns=found["columns"])
                task = replace(task, **{key: found[key] for key in ("instruction", "answer_prefix") if key in found})
            else:
                task = find_task(name, self._options.data)
            self._tasks[name] = task
        return self._tasks[name]

    def vector(self, source: Task, seed: int, strategy: Strategy) -> Intervention:
        """The vector of a source."""
        key = (source, seed, strategy)
        if key not in self._vectors:
            o = self._options
            self._vectors[key] = cast.extract(
                self._model, source, samples=o.samples, shots=min(o.shots, o.samples - 1), strategy=strategy,
                from_selected=True, site=SITES if o.site == "both" else o.site, seed=seed, batch_size=4,
            )  # fmt: skip
        return self._vectors[key]

    def data(self, target: str, seed: int) -> FewShotDataModule:
        """Test, development and training examples of a target."""
        o = self._options
        return FewShotDataModule(
            self.task(target), o.shots, seed=seed, validation=o.development, test=o.queries, eval_batch_size=20
        )

    def own(self, target: str, seed: int, rows: Sequence[Row]) -> list[Row]:
        """The methods that use the target alone, as far as they were not measured."""
        data, have = self.data(target, seed), measured_in(rows, None, target, seed)
        template = data.template(self._model.tokenizer)
        labelled = (*data.splits.train, *data.splits.validation)
        methods = [Method("zero-shot"), Method("few-shot", demonstrations=data.splits.train)]
        if len(more := self.fitting(labelled, template, data)) > len(data.splits.train):
            methods.append(Method("few-shot, more labels", demonstrations=more))
        if "label prior" not in have and self._options.label_prior:
            nothing = Intervention.zeros(self._model, "residual", [0])
            prior = label_prior(self._model, nothing, template, data.splits.validation)
            methods += [] if prior is None else [Method("label prior", prior)]
        methods = [method for method in methods if method.name not in have]
        return self.measured(methods, data, None, target, seed, {}) if methods else []

    def cell(self, source: str, target: str, seed: int, rows: Sequence[Row]) -> list[Row]:
        """All other methods on one pair."""
        o, model, data = self._options, self._model, self.data(target, seed)
        template = data.template(model.tokenizer)
        tested = {e.input for e in (*data.splits.test, *data.splits.validation)}
        pool = thinned(without(self.task(source), tested), o.pool, seed)  # tables can share inputs with another
        methods: list[Method] = []
        skip, choices = o.skip or (), dict[str, Any]()
        if "cross-task few-shot" not in {*skip, *measured_in(rows, source, target, seed)}:
            if (before := self.shown(pool, template, data, seed)) is not None:
                methods.append(Method("cross-task few-shot", before=before))
            else:
                print(f"{source} -> {target}: no cross-task prompt, 2 demonstrations are over --longest {o.longest}")
        strategies: dict[str, Strategy] = {"cast": o.select, "random samples": "random"}
        for name, strategy in strategies.items():
            if name in skip:
                continue
            vector = self.vector(pool, seed, strategy)
            found = choices_by_site(
                model, vector, template, data.splits.validation,
                calibrate=o.label_prior, progress=False,
            )  # fmt: skip
            tried = {name: likeliest(found)}
            if name == "cast" and "each site" not in skip:
                tried |= {at_site(site): choice for site, choice in found.items() if choice != tried[name]}
            choices |= {called: asdict(choice) for called, choice in tried.items()}
            steered = {called: choice.of(vector) for called, choice in tried.items()}
            if name == "cast" and "random direction" not in skip:
                steered["random direction"] = of_equal_norm(model, steered[name], own_seed(seed, source, target))
            for called, bare in steered.items():
                finished = with_label_prior(model, bare, template, data.splits.validation) if o.label_prior else bare
                methods.append(Method(called, finished))
        made = self.measured(methods, data, source, target, seed, choices)
        if len(choices.keys() - strategies.keys()):
            (ours,) = [row for row in made if row["method"] == "cast"]
            made.append(ours | {"method": at_site(choices["cast"]["site"])})
        return made

    def measured(
        self, methods: list[Method], data: FewShotDataModule, source: str | None, target: str, seed: int, choices: Row
    ) -> list[Row]:
        """A row for each method."""
        trainer = pl.Trainer(devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
        made: list[Row] = []
        reuse = self._reuse.setdefault((target, seed), Reuse())
        for evaluation in compare(trainer, self._model, data, methods, reuse=reuse):
            assert evaluation.scores is not None
            measured = sorted(evaluation.measured, key=lambda m: m.row)
            row = {"source": source, "target": target, "seed": seed} | evaluation.scores.as_json()
            row |= {"exact": [int(m.exact) for m in measured], "choice": [_int(m.choice_sum) for m in measured]}
            row["calibrated"], row["chance"] = calibrated(measured, data.splits.test), chance(data.splits.test)
            made.append(row | {"choice_of_place": choices.get(evaluation.method.name)})
        return made

    def shown(self, pool: Task, template: Template, data: FewShotDataModule, seed: int) -> Shown | None:
        """As many source examples as the vector has samples, or as the longest query leaves room for; None below 2."""
        for count in range(self._options.samples, 1, -1):
            shown = demonstrations_of(pool, count, seed)
            if self.fitting(shown.examples, Template(template.tokenizer, pool), data) == shown.examples:
                return shown
        return None

    def fitting(self, examples: Sequence[Example], template: Template, data: FewShotDataModule) -> tuple[Example, ...]:
        """The first of the examples that fit before the longest query of `data`."""
        own = data.template(template.tokenizer)
        longest = max(len(own.encode(e.input).prompt) for e in data.splits.test)
        room = self._options.longest - longest
        lengths = [len(template.encode("", examples[: n + 1]).prompt) for n in range(len(examples))]
        return tuple(examples[: sum(length <= room for length in lengths)])


def measured_in(rows: Sequence[Row], source: str | None, target: str, seed: int) -> set[str]:
    """Methods that were measured already on a pair; on the target alone, without a source."""
    return {r["method"] for r in rows if (r["source"], r["target"], r["seed"]) == (source, target, seed)}


def calibrated(measured: Sequence[Measured], examples: Sequence[Example]) -> list[int | None]:
    """Whether forced choice is right once the leaning to some labels is off; None unless all have the same options."""
    if not measured or len({examples[m.row].choices for m in measured}) > 1 or not measured[0].options:
        return [None] * len(measured)
    found = calibrated_choices(torch.tensor([m.options for m in measured])).tolist()
    return [int(one == examples[m.row].label) for one, m in zip(found, measured, strict=True)]


def chance(examples: Sequence[Example]) -> float | None:
    """Forced choice by guessing; None where there are no choices."""
    found = [1 / len(example.choices) for example in examples if example.choices]
    return sum(found) / len(found) if found else None


def _int(value: bool | None) -> int | None:
    return None if value is None else int(value)


if __name__ == "__main__":
    main()
