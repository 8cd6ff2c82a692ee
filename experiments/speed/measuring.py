"""What the benchmarks share: rows, timing in turn, pictures."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

from laai import compare

RESULTS = Path(__file__).parents[1] / "results"
Tasks = dict[str, Callable[[], Any]]


class Row(TypedDict):
    """One comparison: `ratio` is what `name` says, of `ours` and `rival` in `unit`; None over a rival of zero."""

    name: str
    ours: float
    rival: float
    ratio: float | None
    unit: str


def relative(name: str, ours: float, rival: float, unit: str) -> Row:
    """A row whose ratio is our cost in units of the other."""
    return {"name": name, "ours": ours, "rival": rival, "ratio": ours / rival if rival else None, "unit": unit}


def faster(name: str, ours: float, rival: float, unit: str) -> Row:
    """A row whose ratio tells how many times the rival's cost is ours."""
    return relative(name, ours, rival, unit) | {"ratio": rival / ours}


def over_first(name: str, costs: Mapping[str, float], unit: str) -> list[Row]:
    """A row for each rival (`{}` in `name`) of the first of `costs`, which is ours."""
    (_, ours), *rivals = costs.items()
    return [faster(name.format(rival), ours, cost, unit) for rival, cost in rivals]


def timed(task: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and what it gave."""
    began = time.perf_counter()
    found = task()
    return time.perf_counter() - began, found


def in_turn(tasks: Tasks, rounds: int, warm: bool = True) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each task and what it last gave: all run in turn, so that a drifting machine is fair to all."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    found = {}
    for _ in range(rounds + warm):
        for name, task in tasks.items():
            seconds, found[name] = timed(task)
            times[name].append(seconds)
    return {name: statistics.median(values[warm:]) for name, values in times.items()}, found


@contextlib.contextmanager
def picture(path: Path, size: tuple[float, float], columns: int = 1) -> Iterator[Any]:
    """Axes, `columns` of them, to draw into; the picture (inches) is saved when they are drawn."""
    with compare.picture(path, size, columns=columns) as (axes,):
        yield axes
        for each in axes:
            each.grid(alpha=0.3)
            each.spines[["top", "right"]].set_visible(False)
