"""How a start changes what LAAI learns from 1 to 20 examples: zero, random, its own CAST vector, other tasks', a prior.

    python experiments/laai_starts.py                            the curve: 8 tasks, 5 seeds; hours on two cores
    python experiments/laai_starts.py --tasks antonym --seeds 0 --sizes 2 10 --queries 30
    python experiments/laai_starts.py --starts zero own --sizes 2 5 10 --distill 0 --json PATH   by the likelihood alone
    python experiments/laai_starts.py --starts own own:0.25 own:1 one similar --sizes 2 10 --seeds 0 1 2 --json PATH

Starts are named NAME[:SCALE]. `zero`. `own`: the CAST vector of the training examples themselves (from 2 on). `random`:
random directions, each vector as long as that of `own` (of `mean` where there is one example). `one`: the CAST vector
of another task; `mean`: the mean over four others; `selected`: the same from samples that CAST selects instead of
random ones; `similar`: over the four, weighted by their cosine with `own`; `blend`: half `own`, half `mean`. `prior`:
starts from `own`, and the group penalty pulls towards it. Other tasks' vectors come from examples whose inputs are not
among the queries. All learn by the default recipe on the same examples and answer the same queries. Every finished
(task, seed, size, start) is kept in the JSON file, and a run that was stopped goes on from there; the report and the
picture are written beside it.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from resuming import kept_results
from starts_report import Row, from_others, write_report

import cast
import laai
from cast.extraction import combined, of_equal_norm
from laai.engine import Reuse
from laai.errors import UserError, ends_in_one_line
from laai.evaluation import Measured, measure
from laai.files import write_json
from laai.learn import SEVERAL, LAAIModule, Recipe, StopAtLoss, others_of
from laai.models import LanguageModel, find_decoder
from laai.runtime import FewShotDataModule
from laai.steering import Intervention
from laai.tasks import Task, load_task, without
from laai.vocabulary import Strategy

RESULTS = Path(__file__).parent / "results"
STARTS = ("zero", "random", "own", "mean", "prior")
STEPS = 30
PRIOR = 0.5
"""Strength of the group penalty of `prior`."""
OTHERS = 4


@ends_in_one_line()
def main() -> None:
    """Run what is missing, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=SEVERAL, help="built-in names, files or folders")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 2, 5, 10, 20], help="numbers of training examples")
    parser.add_argument("--starts", nargs="+", default=STARTS, help="NAME[:SCALE], see above")
    parser.add_argument("--at_steps", nargs="+", type=int, default=[], help="also measure after so many steps")
    parser.add_argument("--queries", type=int, default=50, help="test queries of a task (default: 50)")
    parser.add_argument("--site", choices=("heads", "residual"), default="heads")
    parser.add_argument("--distill", type=float, help="weight of the divergence from few-shot answers")
    parser.add_argument("--base_model", default="default")
    parser.add_argument("--report", action="store_true", help="run nothing; write the report of what is there")
    parser.add_argument("--json", type=Path, default=RESULTS / "laai_starts.json")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    facts = {name: getattr(options, name) for name in ("base_model", "queries", "site", "at_steps")} | {"steps": STEPS}
    facts["distill"] = options.distill  # None, as in files of before: LAAI's own
    kept = kept_results(parser, options.json, facts, options.report)
    facts, rows = {name: kept[name] for name in facts}, kept.get("rows", [])
    done = {(r["task"], r["seed"], r["size"], r["start"]) for r in rows}
    cells = [] if options.report else [(seed, task) for seed in options.seeds for task in options.tasks]
    model: LanguageModel | None = None
    others: dict[tuple[Task, int, Strategy], Intervention] = {}
    for number, (seed, task) in enumerate(cells, 1):
        wanted = [(n, s) for n in options.sizes for s in options.starts if n > 1 or not needs_two(s)]
        wanted = [(n, s) for n, s in wanted if (task, seed, n, s) not in done]
        if not wanted:
            continue
        model, began = model or laai.load_model(options.base_model), time.perf_counter()
        cell = Cell(model, task, seed, options, others)
        for size, start in wanted:
            rows += cell.run(size, start)
        write_json(options.json, facts | {"rows": rows})
        print(f"{number}/{len(cells)}  {task}, seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    shown = [r for r in rows if r["task"] in options.tasks and r["seed"] in options.seeds]
    shown = [r for r in shown if r["size"] in options.sizes and r["start"] in options.starts]
    print(write_report(shown, facts, options.json))


@dataclass
class Cell:
    """One task and one seed: all sizes and starts share its queries, and each size its examples."""

    model: LanguageModel
    task: str
    seed: int
    options: argparse.Namespace
    others_vectors: dict[tuple[Task, int, Strategy], Intervention]  # of all cells: what it is from -> CAST vector
    vectors: dict[int, Intervention] = field(default_factory=dict)
    data: dict[int, FewShotDataModule] = field(default_factory=dict)
    reuse: Reuse = field(default_factory=Reuse)

    def run(self, size: int, start: str) -> list[Row]:
        """Learn from a start; one row, and one for each step that is asked for."""
        name, _, scale = start.partition(":")
        data = self.examples(size)
        vector = self.start(name, float(scale or 0.5), size)
        options: dict[str, Any] = {"prior": "start", "group_l2": PRIOR} if name == "prior" else {}
        options |= {} if self.options.distill is None else {"distill": self.options.distill}
        recipe = Recipe(self.model.name, site=self.options.site, init="zero", **options)
        module = LAAIModule(recipe, data, self.model, vector)
        curve = Curve(self, data, self.options.at_steps)
        trainer = pl.Trainer(
            max_steps=STEPS, max_epochs=-1, devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[StopAtLoss(0.1), curve],
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        measured = self.measured(module, data)
        module.steered.detach()
        facts: Row = {"task": self.task, "seed": self.seed, "size": size, "start": start}
        if from_others(start, size):
            facts["untested_inputs"] = True
        made = [facts | {"at_step": step} | found for step, found in curve.found.items()]
        return [facts | {"at_step": None, "steps": trainer.global_step} | measured, *made]

    def examples(self, size: int) -> FewShotDataModule:
        """Training examples and queries; the queries are the same at every size."""
        if size not in self.data:
            self.data[size] = FewShotDataModule(self.task, size, seed=self.seed, test=self.options.queries)
        return self.data[size]

    def measured(self, module: LAAIModule, data: FewShotDataModule) -> Row:
        """Exact match by query, and NLL, of the module as it is."""
        found: list[Measured] = measure(
            module.steered.llm, module.template, list(enumerate(data.splits.test)), batch_size=25, reuse=self.reuse
        )
        return {"exact": [int(m.exact) for m in found], "nll": sum(m.nll for m in found) / len(found)}

    def start(self, name: str, scale: float, size: int) -> Intervention:
        """The vectors before the first step."""
        if name == "zero":
            layers = find_decoder(self.model.llm).steerable(self.options.site)
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
            template = data.template(self.model.tokenizer)
            options: dict[str, Any] = {"site": self.options.site, "progress": False}
            self.vectors[size] = cast.extract_own(self.model, template, data.splits.train, **options)
        return self.vectors[size]

    def others(self) -> list[str]:
        """The four tasks that come next in the list."""
        return others_of(self.task)[:OTHERS]

    def other(self, task: str, strategy: Strategy = "random") -> Intervention:
        """The CAST vector of another task, from ten of its examples whose inputs are not tested: tables share some."""
        tested = {example.input for example in self.examples(self.options.sizes[0]).splits.test}  # same at all sizes
        source, site = without(load_task(task), tested), self.options.site
        key = (source, self.seed, strategy)  # cells that take nothing, or the same, out of the table share the vector
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
        weights = [max(cosine(vector, own), 1e-6) for vector in vectors]
        return combined(vectors, [weight / sum(weights) for weight in weights])


class Curve(pl.Callback):
    """Measures the module on the queries after some steps."""

    def __init__(self, cell: Cell, data: FewShotDataModule, steps: list[int]) -> None:
        self._cell, self._data, self._steps = cell, data, steps
        self.found: dict[int, Row] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """After a step."""
        if trainer.global_step in self._steps and isinstance(pl_module, LAAIModule):
            self.found[trainer.global_step] = self._cell.measured(pl_module, self._data)


def needs_two(start: str) -> bool:
    """Whether a start comes from the training examples, each behind the others."""
    return start.partition(":")[0] in ("own", "prior", "similar", "blend")


def cosine(a: Intervention, b: Intervention) -> float:
    """Of all layers as one vector."""
    x, y = (torch.cat([vector.detach() for _, vector in v.items()]) for v in (a, b))
    return float(torch.cosine_similarity(x, y, dim=0))


if __name__ == "__main__":
    main()
