"""Zero-shot, few-shot, CAST and LAAI on the built-in tasks: equal examples, prompts, queries and seeds for each.

    python experiments/studies/compare_methods.py                          all tasks, 3 seeds: an hour on two cores
    python experiments/studies/compare_methods.py --tasks antonym synonym --seeds 0 --test 40
    python experiments/studies/compare_methods.py --methods laai laai-zero

Every finished (task, seed) is kept in the JSON file, and a run that was stopped goes on from there. Besides the four
methods: `laai-zero` learns from zero vectors, `laai-all` learns on all layers instead of the first two thirds,
`cast-ridge` adds what a ridge map makes of each query's own state, and `random` adds random directions with the
learned vectors' own norms.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import laai
from laai.compare import COLOURS, Options, Row, Runner, Study, compare, number, picture, plot, ratio_interval, table
from laai.methods import METHODS
from laai.models import LanguageModel
from laai.runtime import FewShotDataModule

RESULTS = Path(__file__).parents[1] / "results"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Tasks, methods and sizes."""
    parser.add_argument("--tasks", nargs="+", default=laai.builtin_tasks(), help="built-in names, files or folders")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["zero-shot", "few-shot", "cast", "laai"])
    parser.add_argument("--num_examples", type=int, default=10)
    parser.add_argument("--test", type=int, default=100, help="test queries per task")
    parser.add_argument("--plot", type=Path, default=RESULTS / "compare_methods.png")


def cells(options: Options) -> list[Row]:
    """All methods on each draw of a task."""
    axes = [(seed, task, method) for seed in options.seeds for task in options.tasks for method in options.methods]
    return [{"task": task, "seed": seed, "method": method} for seed, task, method in axes]


def runner(model: LanguageModel, options: Options) -> Runner:
    """Measure the methods that are missing on one draw of examples."""

    def run(draw: Row, missing: list[Row], _: Sequence[Row]) -> list[Row]:
        data = FewShotDataModule(draw["task"], options.num_examples, seed=draw["seed"], test=options.test)
        made = []
        for one in compare(model, data, [cell["method"] for cell in missing]):
            made.append(draw | {name: value for name, value in one.as_row().items() if name != "choice"})
            told = f"{draw['task']:22s} seed {draw['seed']}  {one.arm.name:10s} {made[-1]['exact_match']:.2f}"
            print(told, flush=True)
        return made

    return run


def mean(rows: Sequence[Row], method: str, task: str | None = None, key: str = "exact_match") -> float:
    """Mean over tasks and seeds."""
    values = [r[key] for r in rows if r["method"] == method and task in (None, r["task"]) and r[key] is not None]
    return sum(values) / len(values) if values else float("nan")


def report(rows: list[Row], facts: Row, options: Options) -> str:
    """Exact match by task and method in Markdown, and the comparison with few-shot prompting."""
    tasks, methods = sorted({row["task"] for row in rows}), options.methods
    lines = [[task, *(f"{mean(rows, m, task):.2f}" for m in methods)] for task in tasks]
    lines.append(["**mean**", *(f"**{mean(rows, m):.3f}**" for m in methods)])
    for key, title in (("choice_accuracy", "mean forced choice"), ("nll", "mean NLL")):
        lines.append([title, *(f"{mean(rows, m, key=key):.2f}" for m in methods)])
    text = "\n".join(table(["exact match", *methods], lines))
    if {"laai", "few-shot", "zero-shot"} <= set(methods):
        ours, shots, zero = ([mean(rows, m, task) for task in tasks] for m in ("laai", "few-shot", "zero-shot"))
        low, high = ratio_interval(list(zip(ours, shots, strict=True)))
        level = sum(a >= b for a, b in zip(ours, shots, strict=True))
        above = sum(a > b for a, b in zip(ours, zero, strict=True))
        interval = f"95% bootstrap interval over tasks, paired: {low:.2f} to {high:.2f}"
        text += f"\n\nLAAI / few-shot: {ratio(rows)} ({interval})"
        text += f". Not below few-shot on {level} of {len(tasks)} tasks, above zero-shot on {above} of {len(tasks)}."
        fresh = [row for row in rows if row["seed"] != 0]
        if fresh and len(fresh) < len(rows):  # the defaults were settled on draws of seed 0
            text += f" Without seed 0: {ratio(fresh)}."
    return text


def ratio(rows: Sequence[Row]) -> str:
    """Exact match of LAAI over that of few-shot prompting; a dash where that is never right."""
    shots = mean(rows, "few-shot")
    return number(mean(rows, "laai") / shots if shots else float("nan"), 2)


def draw(rows: list[Row], facts: Row, options: Options) -> None:
    """Exact match by task: one dot a method, a line from few-shot to LAAI."""
    tasks = sorted(sorted({row["task"] for row in rows}), key=lambda task: mean(rows, "laai", task))
    means = {name: [mean(rows, name, task) for task in tasks] for name in COLOURS if name in options.methods}
    with picture(options.plot, (8, 0.36 * len(tasks) + 1.4)) as axes:
        axis, places = axes[0, 0], list(range(len(tasks)))
        if {"few-shot", "laai"} <= means.keys():
            axis.hlines(places, means["few-shot"], means["laai"], color="#d0d0d0", zorder=1)
        plot(axis, {name: (found, places) for name, found in means.items()}, line="", xlabel="exact match")
        axis.set_yticks(places, tasks)
        axis.set_xlim(-0.02, 1.02)
        axis.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


STUDY = Study(
    about=__doc__, arguments=arguments, seeds=(0, 1, 2), facts=("base_model", "num_examples", "test"), cells=cells,
    together=("task", "seed"), shown={"task": "tasks", "seed": "seeds"}, runner=runner, report=report, beside=draw,
    results=RESULTS / "compare_methods.json", written=False,
)  # fmt: skip
main = STUDY.main

if __name__ == "__main__":
    main()
