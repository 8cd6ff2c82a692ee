"""How a start changes what LAAI learns from 1 to 20 examples: zero, random, its own CAST vector, other tasks', a prior.

    python experiments/studies/laai_starts.py                            the curve: 8 tasks, 5 seeds; hours on two cores
    python experiments/studies/laai_starts.py --tasks antonym --seeds 0 --sizes 2 10 --queries 30
    python experiments/studies/laai_starts.py --starts zero own --sizes 2 5 10 --distill 0 --json PATH  likelihood alone
    python experiments/studies/laai_starts.py --starts own own:0.25 own:1 one similar --sizes 2 10 --json PATH

Starts are named NAME[:SCALE]. `zero`. `own`: the CAST vector of the training examples themselves (from 2 on). `random`:
random directions, each vector as long as that of `own` (of `mean` where there is one example). `one`: the CAST vector
of another task; `mean`: the mean over four others; `selected`: the same from samples that CAST selects instead of
random ones; `similar`: over the four, weighted by their cosine with `own`; `blend`: half `own`, half `mean`. `prior`:
starts from `own`, and the group penalty pulls towards it. Other tasks' vectors come from examples whose inputs are not
among the queries. All learn by the default recipe on the same examples and answer the same queries. Every finished
(task, seed) is kept in the JSON file, and a run that was stopped goes on from there; the report and the picture are
written beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from starts_report import draw, from_others, report

import cast
from cast.extraction import combined, of_equal_norm
from laai.compare import Options, Row, Runner, Study
from laai.engine import Engine
from laai.errors import UserError
from laai.evaluation import measure
from laai.learn import SEVERAL, LAAIModule, Recipe, StopAtLoss, others_of
from laai.models import LanguageModel
from laai.runtime import FewShotDataModule, quiet_trainer
from laai.steering import Intervention
from laai.tasks import Task, load_task, without
from laai.vocabulary import Strategy

STARTS = ("zero", "random", "own", "mean", "prior")
STEPS = 30
PRIOR = 0.5
"""Strength of the group penalty of `prior`."""
OTHERS = 4


def arguments(parser: argparse.ArgumentParser) -> None:
    """Tasks, sizes, starts and how to learn."""
    parser.add_argument("--tasks", nargs="+", default=SEVERAL, help="built-in names, files or folders")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 2, 5, 10, 20], help="numbers of training examples")
    parser.add_argument("--starts", nargs="+", default=STARTS, help="NAME[:SCALE], see above")
    parser.add_argument("--at_steps", nargs="+", type=int, default=[], help="also measure after so many steps")
    parser.add_argument("--queries", type=int, default=50, help="test queries of a task (default: 50)")
    parser.add_argument("--site", choices=("heads", "residual"), default="heads")
    distill = "weight of the divergence from few-shot answers (default: LAAI's)"
    parser.add_argument("--distill", type=float, help=distill)
    parser.set_defaults(steps=STEPS)


def cells(options: Options) -> list[Row]:
    """All sizes and starts of each task and seed; one example has no vector of its own."""
    axes = [(seed, task, size) for seed in options.seeds for task in options.tasks for size in options.sizes]
    return [
        {"task": task, "seed": seed, "size": size, "start": start}
        for seed, task, size in axes
        for start in options.starts
        if size > 1 or start.partition(":")[0] not in ("own", "prior", "similar", "blend")
    ]


def runner(model: LanguageModel, options: Options) -> Runner:
    """Learn from the starts that are missing of one task and seed."""
    others: dict[tuple[Task, int, Strategy], Intervention] = {}

    def run(draw: Row, missing: list[Row], _: Sequence[Row]) -> list[Row]:
        draws = Draw(model, draw["task"], draw["seed"], options, others)
        return [row for cell in missing for row in draws.run(cell["size"], cell["start"])]

    return run


@dataclass
class Draw:
    """One task and one seed: all sizes and starts share its queries, and each size its examples."""

    model: LanguageModel
    task: str
    seed: int
    options: Options
    others_vectors: dict[tuple[Task, int, Strategy], Intervention]  # of all draws: what it is from -> CAST vector
    vectors: dict[int, Intervention] = field(default_factory=dict)
    data: dict[int, FewShotDataModule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Zero-shot prompts are run once for all starts."""
        self.engine = Engine(self.model)

    def run(self, size: int, start: str) -> list[Row]:
        """Learn from a start; one row, and one for each step that is asked for."""
        name, _, scale = start.partition(":")
        data = self.examples(size)
        vector = self.start(name, float(scale or 0.5), size)
        options: dict[str, Any] = {"prior": "start", "group_l2": PRIOR} if name == "prior" else {}
        options |= {} if self.options.distill is None else {"distill": self.options.distill}
        recipe = Recipe(self.model.name, site=self.options.site, init="zero", **options)
        module = LAAIModule(recipe, data, self.model, start=vector)
        curve = Curve(self, data, self.options.at_steps)
        trainer = quiet_trainer([StopAtLoss(0.1), curve], max_steps=self.options.steps)
        trainer.fit(module, datamodule=data)
        measured = self.measured(module, data)
        module.steered.detach()
        facts: Row = {"task": self.task, "seed": self.seed, "size": size, "start": start}
        facts |= {"untested_inputs": True} if from_others(start, size) else {}
        made = [facts | {"at_step": step} | found for step, found in curve.found.items()]
        return [facts | {"at_step": None, "steps": trainer.global_step} | measured, *made]

    def examples(self, size: int) -> FewShotDataModule:
        """Training examples and queries; the queries are the same at every size."""
        if size not in self.data:
            self.data[size] = FewShotDataModule(self.task, size, seed=self.seed, test=self.options.queries)
        return self.data[size]

    def measured(self, module: LAAIModule, data: FewShotDataModule) -> Row:
        """Exact match by query, and NLL, of the module as it is."""
        queries = list(enumerate(data.splits.test))
        found = measure(self.model, module.template, queries, batch_size=25, engine=self.engine)
        return {"exact": [int(m.exact) for m in found], "nll": sum(m.nll for m in found) / len(found)}

    def start(self, name: str, scale: float, size: int) -> Intervention:
        """The vectors before the first step."""
        if name == "zero":
            layers = self.model.decoder.steerable(self.options.site)
            return Intervention.zeros(self.model, self.options.site, layers)
        if name == "one":
            return scale * self.other(self.others()[0])
        if name in ("mean", "selected"):
            return scale * self.mean("cast" if name == "selected" else "random")
        if name == "random":
            return of_equal_norm(self.model, scale * (self.own(size) if size > 1 else self.mean()), self.seed)
        own = self.own(size)
        if name in ("own", "prior"):
            return scale * own
        if name == "similar":
            return scale * self.weighted(own)
        if name == "blend":
            return scale * combined([own, self.mean()], [0.5, 0.5])
        raise UserError(f"unknown start {name!r}; see --help")

    def own(self, size: int) -> Intervention:
        """The CAST vector of the training examples."""
        if size not in self.vectors:
            data = self.examples(size)
            options: dict[str, Any] = {"site": self.options.site, "progress": False}
            template = data.template(self.model.tokenizer)
            self.vectors[size] = cast.extract_own(self.model, template, data.splits.train, **options)
        return self.vectors[size]

    def others(self) -> list[str]:
        """The four tasks that come next in the list."""
        return others_of(self.task)[:OTHERS]

    def other(self, task: str, strategy: Strategy = "random") -> Intervention:
        """The CAST vector of another task, from ten of its examples whose inputs are not tested: tables share some."""
        tested = {example.input for example in self.examples(self.options.sizes[0]).splits.test}  # same at all sizes
        source, site = without(load_task(task), tested), self.options.site
        key = (source, self.seed, strategy)  # draws that take nothing, or the same, out of the table share the vector
        if key not in self.others_vectors:
            self.others_vectors[key] = cast.extract(
                self.model, source, samples=10, shots=5, strategy=strategy, site=site, seed=self.seed, progress=False
            )
        return self.others_vectors[key]

    def mean(self, strategy: Strategy = "random") -> Intervention:
        """The mean of the other tasks' vectors."""
        return combined([self.other(task, strategy) for task in self.others()], [1 / OTHERS] * OTHERS)

    def weighted(self, own: Intervention) -> Intervention:
        """Their mean, weighted by how alike they are to the own vector (cosine, negative ones left out)."""
        vectors = [self.other(task) for task in self.others()]
        flat = [torch.cat([part.detach() for _, part in vector.items()]) for vector in (own, *vectors)]
        weights = [max(float(torch.cosine_similarity(one, flat[0], dim=0)), 1e-6) for one in flat[1:]]
        return combined(vectors, [weight / sum(weights) for weight in weights])


class Curve(pl.Callback):
    """Measures the module on the queries after some steps."""

    def __init__(self, draw: Draw, data: FewShotDataModule, steps: list[int]) -> None:
        self._draw, self._data, self._steps = draw, data, steps
        self.found: dict[int, Row] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """After a step."""
        if trainer.global_step in self._steps and isinstance(pl_module, LAAIModule):
            self.found[trainer.global_step] = self._draw.measured(pl_module, self._data)


STUDY = Study(
    about=__doc__, arguments=arguments, seeds=(0, 1, 2, 3, 4), cells=cells, together=("task", "seed"), runner=runner,
    facts=("base_model", "queries", "site", "at_steps", "steps", "distill"), report=report, beside=draw,
    shown={"task": "tasks", "seed": "seeds", "size": "sizes", "start": "starts"},
    results=Path(__file__).parents[1] / "results" / "laai_starts.json",
)  # fmt: skip
main = STUDY.main

if __name__ == "__main__":
    main()
