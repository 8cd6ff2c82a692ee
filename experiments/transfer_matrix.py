"""Cells of the transfer matrix, as they are measured: a source's vector and the other methods on a target's queries."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import lightning.pytorch as pl
import torch
from transfer_cells import at_site
from transfer_tasks import LETTERS, by_letter, find_task, thinned

import cast
from cast.extraction import label_prior, of_equal_norm, own_seed, with_label_prior
from cast.transfers import choices_by_site, likeliest
from laai.engine import Reuse
from laai.evaluation import Measured, Method, calibrated_choices, compare
from laai.models import LanguageModel
from laai.prompts import Shown, Template, demonstrations_of
from laai.runtime import FewShotDataModule
from laai.steering import Intervention
from laai.tasks import Example, Task, load_task, without
from laai.vocabulary import SITES, Strategy

Row = dict[str, Any]


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
            if (plain := name.removesuffix(LETTERS)) in self._hub:
                found = self._hub[plain]
                task = load_task(found["task"], columns=found["columns"])
                task = replace(task, **{key: found[key] for key in ("instruction", "answer_prefix") if key in found})
                task = task if name == plain else by_letter(task)
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

    def calibrates(self, target: str) -> bool:
        """Whether there may be a label prior: few queries may have the same options by chance, here all have."""
        task = self.task(target)
        everyone = (*task.examples, *(task.test_examples or ()))
        return bool(self._options.label_prior) and len({example.choices for example in everyone}) == 1

    def own(self, target: str, seed: int, rows: Sequence[Row]) -> list[Row]:
        """The methods that use the target alone, as far as they were not measured."""
        data, have = self.data(target, seed), measured_in(rows, None, target, seed)
        template = data.template(self._model.tokenizer)
        labelled = (*data.splits.train, *data.splits.validation)
        methods = [Method("zero-shot"), Method("few-shot", demonstrations=data.splits.train)]
        if len(more := self.fitting(labelled, template, data)) > len(data.splits.train):
            methods.append(Method("few-shot, more labels", demonstrations=more))
        if "label prior" not in have and self.calibrates(target):
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
        skip, choices, calibrate = o.skip or (), dict[str, Any](), self.calibrates(target)
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
                calibrate=calibrate, progress=False,
            )  # fmt: skip
            tried = {name: likeliest(found)}
            if name == "cast" and "each site" not in skip:
                tried |= {at_site(site): choice for site, choice in found.items() if choice != tried[name]}
            choices |= {called: asdict(choice) for called, choice in tried.items()}
            steered = {called: choice.of(vector) for called, choice in tried.items()}
            if name == "cast" and "random direction" not in skip:
                steered["random direction"] = of_equal_norm(model, steered[name], own_seed(seed, source, target))
            for called, bare in steered.items():
                finished = with_label_prior(model, bare, template, data.splits.validation) if calibrate else bare
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
            made.append(
                row | {"choice_of_place": choices.get(evaluation.method.name)} | self.demonstrations(evaluation.method)
            )
        return made

    def demonstrations(self, method: Method) -> Row:
        """How many demonstrations a prompt shows, and how many more there were to show."""
        o, shown = self._options, len(method.before.examples if method.before else method.demonstrations)
        offered = {"cross-task few-shot": o.samples, "few-shot, more labels": o.shots + o.development}
        return {"shown": shown, "left_out": offered.get(method.name, shown) - shown}

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
