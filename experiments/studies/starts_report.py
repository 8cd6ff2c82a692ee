"""The report of `laai_starts.py`: exact match by number of examples and start, paired differences, a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from laai.compare import OTHERS, Cell, Options, Row, about, distinct, only, over_tasks, picture, plot, signed, table

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
COLOURS = dict(zip(LABELS.values(), OTHERS, strict=True))
Found = dict[Cell, float]


def exact(rows: Sequence[Row], start: str, size: int, at_step: int | None = None) -> Found:
    """Exact match by (task, seed), at the end or after so many steps; what had ended by then counts as it ended."""
    found = {}
    for r in only(rows, start=start, size=size):
        ended = r["at_step"] is None and (at_step is None or r["steps"] <= at_step)
        if ended or r["at_step"] == at_step:
            found[r["task"], r["seed"]] = float(np.mean(r["exact"]))
    return found


def from_others(start: str, size: int) -> bool:
    """Whether a start holds, or is as long as, vectors of other tasks."""
    name = start.partition(":")[0]
    return name in ("one", "mean", "selected", "similar", "blend") or (name == "random" and size == 1)


def stepped(rows: Sequence[Row], size: int) -> list[int]:
    """The steps at which this size was measured."""
    return sorted({r["at_step"] for r in only(rows, size=size) if r["at_step"] is not None})


def report(rows: list[Row], facts: Row, options: Options) -> str:
    """The Markdown report."""
    starts, sizes = distinct(rows, "start"), sorted(distinct(rows, "size"))
    tasks, seeds = sorted(distinct(rows, "task")), sorted(distinct(rows, "seed"))
    later = [start for start in starts if start != "zero"] if "zero" in starts else []
    out = ["# Starts of LAAI", "", f"{len(tasks)} tasks ({', '.join(tasks)}), seeds {seeds}; {about(facts)}.", ""]
    out += ["Mean exact match after learning, by number of examples (over how many tasks and seeds, if not all):", ""]
    whole = len(tasks) * len(seeds)
    out += table(["start", *sizes], [[s, *(_mean(exact(rows, s, n), whole=whole) for n in sizes)] for s in starts])
    if before := sum(from_others(r["start"], r["size"]) and not r.get("untested_inputs") for r in rows):
        out += [
            f"\n{before} rows of starts from other tasks were made when inputs of queries that are in those tasks'\n"
            "tables too could still be, with the other tasks' answers, among the examples of their vectors."
        ]
    if "zero" in starts:
        out += [
            "\nAgainst the start from zero: paired differences, 95% intervals over tasks (Student's t, of each\n"
            "task's mean over its seeds; not adjusted for how many differences there are):\n"
        ]
        found = [[s, *(_against(exact(rows, s, n), exact(rows, "zero", n)) for n in sizes)] for s in later]
        out += table(["start", *sizes], found)
    for size in sizes:
        if steps := stepped(rows, size):
            at = [*steps, None]
            means = [[s, *(_mean(exact(rows, s, size, n)) for n in at)] for s in starts]
            means += [
                [f"{s} − zero", *(_against(exact(rows, s, size, n), exact(rows, "zero", size, n)) for n in at)]
                for s in later
            ]
            out += ["", f"By optimiser step, {size} examples:", "", *table(["start", *steps, "end"], means)]
    out += ["", "By task (mean over seeds), " + " / ".join(starts) + ":", ""]
    lines = [
        [t, *(" / ".join(_mean(exact(only(rows, task=t), s, n), 2) for s in starts) for n in sizes)] for t in tasks
    ]
    out += table(["task", *(f"{size} examples" for size in sizes)], lines, align="l" * (len(sizes) + 1))
    return "\n".join(out) + "\n"


def draw(rows: list[Row], facts: Row, options: Options) -> None:
    """Exact match against numbers of examples, and against steps where these were asked for: one line a start.

    Over the tasks and seeds that all starts have run, which lines that are compared have in common. Nothing of a
    single number and no steps.
    """
    starts, sizes = distinct(rows, "start"), sorted(distinct(rows, "size"))
    panels = [None] * (len(sizes) > 1) + [size for size in sizes if stepped(rows, size)]
    if not panels:
        return
    path, width = options.json.with_suffix(".png"), 1.5 + 5.7 * len(panels)
    with picture(path, (width, 4.2), columns=len(panels), sharey=True) as axes:
        for axis, size in zip(axes[0], panels, strict=True):
            end = max((r["steps"] for r in only(rows, size=size, at_step=None)), default=0)
            at = sizes if size is None else sorted({*stepped(rows, size), end})
            found = {(s, n): exact(rows, s, n) if size is None else exact(rows, s, size, n) for s in starts for n in at}
            xlabel = "training examples" if size is None else f"optimiser steps, {size} examples"
            lines = {LABELS.get(s, s): _line(found, s, starts, at) for s in starts}
            styles = ["--" if s == "prior" else "-" for s in starts]  # it often runs along `own`
            plot(axis, lines, styles, COLOURS, xlabel=xlabel)
            if size is None:
                axis.set_xscale("log")
                axis.minorticks_off()
            axis.set_xticks(at, [str(n) for n in at])
            axis.set_ylim(bottom=0)
        axes[0, 0].set_ylabel("mean exact match")
        axes[0, 0].legend(frameon=False, fontsize=9)


def _line(
    found: dict[tuple[str, int], Found], start: str, starts: Sequence[str], at: Sequence[int]
) -> tuple[list[float], list[float]]:
    """Where a start was measured, and its mean there over the tasks and seeds that all starts have."""
    x = [n for n in at if found[start, n]]
    shared = {n: set.intersection(*(set(found[s, n]) for s in starts if found[s, n])) for n in x}
    return list(x), [float(np.mean([v for key, v in found[start, n].items() if key in shared[n]])) for n in x]


def _mean(found: Found, digits: int = 3, whole: int | None = None) -> str:
    if not found:
        return "-"
    some = "" if whole in (None, len(found)) else f" ({len(found)})"
    return f"{np.mean(list(found.values())):.{digits}f}{some}"


def _against(a: Found, b: Found) -> str:
    """A difference; of less than three tasks no interval can be drawn."""
    found, tasks = over_tasks(a, b), len({task for task, _ in a.keys() & b.keys()})
    return signed(found, few=f"{found.n} in all" if tasks < 3 else None)
