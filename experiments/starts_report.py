"""The report of `laai_starts.py`: exact match by number of examples and start, paired differences, a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from laai.files import write_atomically

Row = dict[str, Any]
LABELS = {
    "zero": "zero",
    "random": "random, norms of own CAST",
    "own": "own CAST × 0.5",
    "mean": "mean CAST of four other tasks × 0.5",
    "one": "CAST of one other task × 0.5",
    "similar": "that mean, weighted by cosine",
    "selected": "that mean, of selected samples",
    "own:1": "own CAST × 1",
    "blend": "half own CAST, half that mean",
    "prior": "own CAST as prior",
}


def write_report(rows: list[Row], facts: Row, path: Path) -> str:
    """Write PATH.md, and PATH.png where there is a curve to draw, beside the JSON file; returns the report."""
    text = report(rows, facts)
    write_atomically(path.with_suffix(".md"), lambda file: file.write_text(text))
    draw(rows, path.with_suffix(".png"))
    return text


def table(rows: list[Row], start: str, size: int, at_step: int | None = None) -> dict[tuple[str, int], float]:
    """Exact match by (task, seed), at the end or after so many steps; what had ended by then counts as it ended."""
    found = {}
    for r in rows:
        ended = r["at_step"] is None and (at_step is None or r["steps"] <= at_step)
        if (r["start"], r["size"]) == (start, size) and (ended or r["at_step"] == at_step):
            found[r["task"], r["seed"]] = float(np.mean(r["exact"]))
    return found


def difference(a: dict[Any, float], b: dict[Any, float]) -> tuple[float, float, float, int]:
    """Mean of a − b over the (task, seed) that both have, its 95% interval over tasks, and their number.

    Student's t over the tasks' means, each over its seeds: seeds of one task are not independent tasks. Of eight tasks
    the percentile bootstrap would cover 88%, not 95%. NaN of one task.
    """
    from scipy import stats

    by_task: dict[str, list[float]] = {}
    for key in sorted(a.keys() & b.keys()):
        by_task.setdefault(key[0], []).append(a[key] - b[key])
    means = np.array([np.mean(values) for values in by_task.values()])
    middle, count = float(means.mean()), sum(map(len, by_task.values()))
    if len(means) < 2:
        return middle, float("nan"), float("nan"), count
    half = float(stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / len(means) ** 0.5)
    return middle, middle - half, middle + half, count


def from_others(start: str, size: int) -> bool:
    """Whether a start holds, or is as long as, vectors of other tasks."""
    name = start.partition(":")[0]
    return name in ("one", "mean", "selected", "similar", "blend") or (name == "random" and size == 1)


def report(rows: list[Row], facts: Row) -> str:
    """The Markdown report."""
    starts = list(dict.fromkeys(r["start"] for r in rows))
    sizes = sorted({r["size"] for r in rows})
    tasks, seeds = sorted({r["task"] for r in rows}), sorted({r["seed"] for r in rows})
    about = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    out = ["# Starts of LAAI", "", f"{len(tasks)} tasks ({', '.join(tasks)}), seeds {seeds}; {about}.", ""]
    out += ["Mean exact match after learning, by number of examples (over how many tasks and seeds, if not all):", ""]
    out += [f"| start | {' | '.join(map(str, sizes))} |", "| --- |" + " ---: |" * len(sizes)]
    for start in starts:
        cells = [_mean(table(rows, start, size), whole=len(tasks) * len(seeds)) for size in sizes]
        out.append(f"| {start} | {' | '.join(cells)} |")
    if before := sum(from_others(r["start"], r["size"]) and not r.get("untested_inputs") for r in rows):
        out += [
            "",
            f"{before} rows of starts from other tasks were made when inputs of queries that are in those tasks'",
        ]
        out += ["tables too could still be, with the other tasks' answers, among the examples of their vectors."]
    if "zero" in starts:
        out += ["", "Against the start from zero: paired differences, 95% intervals over tasks (Student's t, of each"]
        out += ["task's mean over its seeds; not adjusted for how many differences there are):", ""]
        out += [f"| start | {' | '.join(map(str, sizes))} |", "| --- |" + " ---: |" * len(sizes)]
        for start in [s for s in starts if s != "zero"]:
            cells = [_difference(table(rows, start, size), table(rows, "zero", size)) for size in sizes]
            out.append(f"| {start} | {' | '.join(cells)} |")
    for size in sizes:
        steps = sorted({r["at_step"] for r in rows if r["size"] == size and r["at_step"] is not None})
        if steps:
            out += ["", f"By optimiser step, {size} examples:", ""]
            out += [f"| start | {' | '.join(map(str, steps))} | end |", "| --- |" + " ---: |" * (len(steps) + 1)]
            for start in starts:
                cells = [_mean(table(rows, start, size, step)) for step in [*steps, None]]
                out.append(f"| {start} | {' | '.join(cells)} |")
            for start in [s for s in starts if s != "zero" and "zero" in starts]:
                pairs = [(table(rows, start, size, step), table(rows, "zero", size, step)) for step in [*steps, None]]
                out.append(f"| {start} − zero | {' | '.join(_difference(*pair) for pair in pairs)} |")
    out += ["", "By task (mean over seeds), " + " / ".join(starts) + ":", ""]
    out += [f"| task | {' | '.join(f'{size} examples' for size in sizes)} |", "| --- |" + " --- |" * len(sizes)]
    for task in tasks:
        own = [r for r in rows if r["task"] == task]
        cells = [" / ".join(_mean(table(own, start, size), 2) for start in starts) for size in sizes]
        out.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def draw(rows: list[Row], path: Path) -> None:
    """Exact match against numbers of examples, and against steps where these were asked for: one line a start.

    Over the tasks and seeds that all starts have run, which lines that are compared have in common. Nothing of a
    single number and no steps.
    """
    starts, sizes = list(dict.fromkeys(r["start"] for r in rows)), sorted({r["size"] for r in rows})
    stepped = [size for size in sizes if any(r["size"] == size and r["at_step"] is not None for r in rows)]
    panels: list[int | None] = [None] * (len(sizes) > 1) + stepped
    if not panels:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(1.5 + 5.7 * len(panels), 4.2), layout="constrained", squeeze=False, sharey=True
    )
    for axis, size in zip(axes[0], panels, strict=True):
        own = [r for r in rows if r["size"] == size]
        end = max((r["steps"] for r in own if r["at_step"] is None), default=0)
        at = sizes if size is None else sorted({r["at_step"] for r in own if r["at_step"] is not None} | {end})
        tables = {
            (start, n): table(rows, start, n) if size is None else table(rows, start, size, n)
            for start in starts
            for n in at
        }
        for number, start in enumerate(starts):
            points = []
            for n in at:
                if found := tables[start, n]:
                    shared = set.intersection(*(set(tables[s, n]) for s in starts if tables[s, n]))
                    points.append((n, float(np.mean([v for k, v in found.items() if k in shared]))))
            axis.plot(*zip(*points, strict=True), marker="o", ms=4, label=LABELS.get(start, start), color=f"C{number}")
        if size is None:
            axis.set_xscale("log")
            axis.minorticks_off()
        axis.set_xticks(at, [str(n) for n in at])
        axis.set_xlabel("training examples" if size is None else f"optimiser steps, {size} examples")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("mean exact match")
    axes[0, 0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _mean(found: dict[Any, float], digits: int = 3, whole: int | None = None) -> str:
    if not found:
        return "-"
    some = "" if whole in (None, len(found)) else f" ({len(found)})"
    return f"{np.mean(list(found.values())):.{digits}f}{some}"


def _difference(a: dict[Any, float], b: dict[Any, float]) -> str:
    if not a.keys() & b.keys():
        return "-"
    mean, low, high, cells = difference(a, b)
    if len({task for task, _ in a.keys() & b.keys()}) < 3:
        return f"{mean:+.3f} ({cells} in all)"  # tasks that no interval can be drawn from
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
