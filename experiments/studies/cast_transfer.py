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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transfer_cells import at_site
from transfer_report import beside, report
from transfer_tasks import SUITES, Tasks

import cast
from cast.extraction import label_prior, of_equal_norm, own_seed, with_label_prior
from cast.transfers import likeliest, placements_by_site
from laai.compare import Options, Row, Runner, Study, compare, only
from laai.errors import UserError
from laai.evaluation import Arm, Measured, calibrated_choices
from laai.models import LanguageModel
from laai.prompts import Shown, Template, demonstrations_of
from laai.runtime import FewShotDataModule
from laai.steering import Intervention
from laai.tasks import Example, Task
from laai.vocabulary import SITES, STRATEGIES, Strategy

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


class Matrix(Tasks):
    """Cells of the matrix; vectors of a source and prefixes of a target's queries are made once."""

    def __init__(self, model: LanguageModel, options: Options) -> None:
        super().__init__(options)
        self._model = model
        self._vectors: dict[tuple[Task, int, str], Intervention] = {}

    def vector(self, source: Task, seed: int, strategy: Strategy) -> Intervention:
        """The vector of a source."""
        key = (source, seed, strategy)
        if key not in self._vectors:
            o = self.options
            self._vectors[key] = cast.extract(
                self._model, source, samples=o.samples, shots=min(o.shots, o.samples - 1), strategy=strategy,
                from_selected=True, site=SITES if o.site == "both" else o.site, seed=seed, batch_size=4,
            )  # fmt: skip
        return self._vectors[key]

    def calibrates(self, target: str) -> bool:
        """Whether there may be a label prior: few queries may have the same options by chance, here all have."""
        task = self.task(target)
        everyone = (*task.examples, *(task.test_examples or ()))
        return bool(self.options.label_prior) and len({example.choices for example in everyone}) == 1

    def own(self, target: str, seed: int, rows: Sequence[Row]) -> list[Row]:
        """The methods that use the target alone, as far as they were not measured."""
        data, have = self.data(target, seed), measured_in(rows, None, target, seed)
        template = data.template(self._model.tokenizer)
        labelled = (*data.splits.train, *data.splits.validation)
        arms: list[str | Arm] = [name for name in ("zero-shot", "few-shot") if name not in have]
        if "few-shot, more labels" not in have:
            more = self.fitting(labelled, template, data)
            if len(more) > len(data.splits.train):
                arms.append(Arm("few-shot, more labels", demonstrations=more))
        if "label prior" not in have and self.calibrates(target):
            nothing = Intervention.zeros(self._model, "residual", [0])
            prior = label_prior(self._model, nothing, template, data.splits.validation)
            arms += [] if prior is None else [Arm("label prior", prior)]
        return self.measured(arms, data, {"source": None, "target": target, "seed": seed}, {}) if arms else []

    def cell(self, source: str, target: str, seed: int, rows: Sequence[Row]) -> list[Row]:
        """All other methods on one pair."""
        o, model, data = self.options, self._model, self.data(target, seed)
        template, examples = data.template(model.tokenizer), data.splits.validation
        pool, arms = self.pool(source, target, seed), list[str | Arm]()
        skip, choices, calibrate = o.skip or (), dict[str, Any](), self.calibrates(target)
        if "cross-task few-shot" not in {*skip, *measured_in(rows, source, target, seed)}:
            if (before := self.shown(pool, template, data, seed)) is not None:
                arms.append(Arm("cross-task few-shot", before=before))
            else:
                print(f"{source} -> {target}: no cross-task prompt, 2 demonstrations are over --longest {o.longest}")
        strategies: dict[str, Strategy] = {"cast": o.select, "random samples": "random"}
        for name, strategy in strategies.items():
            if name in skip:
                continue
            vector = self.vector(pool, seed, strategy)
            found = placements_by_site(model, vector, template, examples, calibrate=calibrate, progress=False)
            tried = {name: likeliest(found)}
            if name == "cast" and "each site" not in skip:
                tried |= {at_site(site): choice for site, choice in found.items() if choice != tried[name]}
            choices |= {called: asdict(choice) for called, choice in tried.items()}
            steered = {called: choice.of(vector) for called, choice in tried.items()}
            if name == "cast" and "random direction" not in skip:
                steered["random direction"] = of_equal_norm(model, steered[name], own_seed(seed, source, target))
            for called, bare in steered.items():
                arms.append(Arm(called, with_label_prior(model, bare, template, examples) if calibrate else bare))
        made = self.measured(arms, data, {"source": source, "target": target, "seed": seed}, choices)
        if len(choices.keys() - strategies.keys()):
            (ours,) = only(made, method="cast")
            made.append(ours | {"method": at_site(choices["cast"]["site"])})
        return made

    def measured(self, arms: Sequence[str | Arm], data: FewShotDataModule, pair: Row, places: Row) -> list[Row]:
        """A row for each arm."""
        made: list[Row] = []
        for one in compare(self._model, data, arms, engine=self.engine(self._model, pair["target"], pair["seed"])):
            measured = sorted(one.measured, key=lambda m: m.row)
            row = pair | one.as_row()
            row["calibrated"], row["chance"] = calibrated(measured, data.splits.test), chance(data.splits.test)
            made.append(row | {"choice_of_place": places.get(one.arm.name)} | self.demonstrations(one.arm))
        return made

    def demonstrations(self, arm: Arm) -> Row:
        """How many demonstrations a prompt shows, and how many more there were to show."""
        o, shown = self.options, len(arm.before.examples if arm.before else arm.demonstrations)
        offered = {"cross-task few-shot": o.samples, "few-shot, more labels": o.shots + o.development}
        return {"shown": shown, "left_out": offered.get(arm.name, shown) - shown}

    def shown(self, pool: Task, template: Template, data: FewShotDataModule, seed: int) -> Shown | None:
        """As many source examples as the vector has samples, or as the longest query leaves room for; None below 2."""
        for count in range(self.options.samples, 1, -1):
            shown = demonstrations_of(pool, count, seed)
            if self.fitting(shown.examples, Template(template.tokenizer, pool), data) == shown.examples:
                return shown
        return None

    def fitting(self, examples: Sequence[Example], template: Template, data: FewShotDataModule) -> tuple[Example, ...]:
        """The first of the examples that fit before the longest query of `data`."""
        own = data.template(template.tokenizer)
        longest = max(len(own.encode(e.input).prompt) for e in data.splits.test)
        room = self.options.longest - longest
        lengths = [len(template.encode("", examples[: n + 1]).prompt) for n in range(len(examples))]
        return tuple(examples[: sum(length <= room for length in lengths)])


def measured_in(rows: Sequence[Row], source: str | None, target: str, seed: int) -> set[str]:
    """Methods that were measured already on a pair; on the target alone, without a source."""
    return {row["method"] for row in only(rows, source=source, target=target, seed=seed)}


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
