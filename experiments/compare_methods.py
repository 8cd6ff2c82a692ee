"""Zero-shot, few-shot, CAST and LAAI on the built-in tasks: equal examples, prompts, queries and seeds for each.

    python experiments/compare_methods.py                          all tasks, 3 seeds: an hour on two cores
    python experiments/compare_methods.py --tasks antonym synonym --seeds 0 --test 40
    python experiments/compare_methods.py --methods laai laai-zero

Every finished (task, seed) is kept in the JSON file, and a run that was stopped goes on from there. Besides the four
methods: `laai-zero` learns from zero vectors, `laai-all` learns on all layers instead of the first two thirds, and
`random` adds random directions with the learned vectors' own norms.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from resuming import kept_results

import cast
import laai
from cast.extraction import of_equal_norm
from laai.errors import ends_in_one_line
from laai.evaluation import Method, compare
from laai.files import write_json
from laai.models import LanguageModel
from laai.runtime import FewShotDataModule, encode_training
from laai.steering import Intervention

METHODS = ("zero-shot", "few-shot", "cast", "laai", "laai-zero", "laai-all", "random")
RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


@ends_in_one_line()
def main() -> None:
    """Run what is missing, then print the tables and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=laai.builtin_tasks(), help="built-in names, files or folders")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS[:4]))
    parser.add_argument("--num_examples", type=int, default=10)
    parser.add_argument("--test", type=int, default=100, help="test queries per task")
    parser.add_argument("--base_model", default="default")
    parser.add_argument("--json", type=Path, default=RESULTS / "compare_methods.json")
    parser.add_argument("--plot", type=Path, default=RESULTS / "compare_methods.png")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    facts = {"base_model": options.base_model, "num_examples": options.num_examples, "test": options.test}
    rows: list[Row] = kept_results(parser, options.json, facts).get("rows", [])
    model: LanguageModel | None = None
    for seed in options.seeds:
        for task in options.tasks:
            done = {row["method"] for row in rows if row["task"] == task and row["seed"] == seed}
            wanted = [method for method in options.methods if method not in done]
            if wanted:
                model = model or laai.load_model(options.base_model)
                rows += run(model, task, seed, options.num_examples, options.test, wanted)
                write_json(options.json, facts | {"rows": rows})
    shown = [r for r in rows if r["task"] in options.tasks and r["seed"] in options.seeds]
    print(report(shown, options.methods))
    draw(shown, options.methods, options.plot)


def run(model: LanguageModel, task: str, seed: int, num_examples: int, test: int, wanted: list[str]) -> list[Row]:
    """Measure the wanted methods on one draw of examples."""
    data = FewShotDataModule(task, num_examples, seed=seed, test=test)
    template = data.template(model.tokenizer)
    own = cast.extract_own(model, template, data.splits.train, progress=False)
    prompts = [prompt for _, prompt in encode_training(template, data.splits.train)]
    learned: dict[str, Intervention] = {}
    if {"laai", "random"} & set(wanted):
        learned["laai"] = laai.fit(model, data.task, num_examples, init=0.5 * own, seed=seed)
        learned["random"] = of_equal_norm(model, learned["laai"], seed)
    if "laai-zero" in wanted:
        learned["laai-zero"] = laai.fit(model, data.task, num_examples, init="zero", seed=seed)
    if "laai-all" in wanted:
        learned["laai-all"] = laai.fit(model, data.task, num_examples, init=0.5 * own, layers="all", seed=seed)
    methods = []
    for name in wanted:
        if name == "few-shot":
            methods.append(Method(name, demonstrations=data.splits.train))
        elif name == "cast":
            methods.append(Method(name, cast.best_scale(model, own, prompts) * own))
        else:
            methods.append(Method(name, learned.get(name)))
    trainer = pl.Trainer(devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    rows = []
    for evaluation in compare(trainer, model, data, methods):
        assert evaluation.scores is not None
        exact = [int(m.exact) for m in sorted(evaluation.measured, key=lambda m: m.row)]
        rows.append({"task": task, "seed": seed} | evaluation.scores.as_json() | {"exact": exact})
        print(f"{task:22s} seed {seed}  {evaluation.method.name:10s} {evaluation.scores.exact_match:.2f}", flush=True)
    return rows


def mean(rows: list[Row], method: str, task: str | None = None, key: str = "exact_match") -> float:
    """Mean over tasks and seeds."""
    values = [r[key] for r in rows if r["method"] == method and task in (None, r["task"]) and r[key] is not None]
    return sum(values) / len(values) if values else float("nan")


def report(rows: list[Row], methods: list[str]) -> str:
    """Exact match by task and method in Markdown, and the comparison with few-shot prompting."""
    tasks = sorted({row["task"] for row in rows})
    cells = [[task, *(f"{mean(rows, m, task):.2f}" for m in methods)] for task in tasks]
    cells.append(["**mean**", *(f"**{mean(rows, m):.3f}**" for m in methods)])
    cells.append(["mean forced choice", *(f"{mean(rows, m, key='choice_accuracy'):.2f}" for m in methods)])
    cells.append(["mean NLL", *(f"{mean(rows, m, key='nll'):.2f}" for m in methods)])
    lines = [["exact match", *methods], ["---", *["---:"] * len(methods)], *cells]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if {"laai", "few-shot", "zero-shot"} <= set(methods):
        low, high = ratio_interval(rows)
        level = sum(mean(rows, "laai", t) >= mean(rows, "few-shot", t) for t in tasks)
        above = sum(mean(rows, "laai", t) > mean(rows, "zero-shot", t) for t in tasks)
        ratio = mean(rows, "laai") / mean(rows, "few-shot")
        text += f"\n\nLAAI / few-shot: {ratio:.2f} (95% bootstrap interval over tasks, paired: {low:.2f} to {high:.2f})"
        text += f". Not below few-shot on {level} of {len(tasks)} tasks, above zero-shot on {above} of {len(tasks)}."
        fresh = [row for row in rows if row["seed"] != 0]
        if fresh and len(fresh) < len(rows):  # the defaults were settled on draws of seed 0
            text += f" Without seed 0: {mean(fresh, 'laai') / mean(fresh, 'few-shot'):.2f}."
    return text


def ratio_interval(rows: list[Row], resamples: int = 10_000) -> tuple[float, float]:
    """95% interval of mean(LAAI) / mean(few-shot) by resampling tasks, each with all its seeds."""
    tasks = sorted({row["task"] for row in rows})
    pairs = torch.tensor([[mean(rows, m, task) for m in ("laai", "few-shot")] for task in tasks])
    draws = torch.randint(len(tasks), (resamples, len(tasks)), generator=torch.Generator().manual_seed(0))
    means = pairs[draws].mean(dim=1)
    low, high = (means[:, 0] / means[:, 1]).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def draw(rows: list[Row], methods: list[str], path: Path) -> None:
    """Exact match by task: one dot a method, a line from few-shot to LAAI."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = sorted({r["task"] for r in rows}, key=lambda task: mean(rows, "laai", task))
    figure, axes = pyplot.subplots(figsize=(8, 0.36 * len(tasks) + 1.4), layout="constrained")
    colours = {"zero-shot": "#b0b0b0", "few-shot": "#1f77b4", "cast": "#2ca02c", "laai": "#d62728"}
    for y, task in enumerate(tasks):
        if {"few-shot", "laai"} <= set(methods):
            axes.plot([mean(rows, "few-shot", task), mean(rows, "laai", task)], [y, y], color="#d0d0d0", zorder=1)
        for name in [name for name in colours if name in methods]:
            label = name if y == 0 else None
            axes.scatter(mean(rows, name, task), y, color=colours[name], label=label, s=45, zorder=2)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set(xlabel="exact match", xlim=(-0.02, 1.02))
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    main()
