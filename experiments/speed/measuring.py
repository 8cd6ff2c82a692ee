"""What the benchmarks share: rows, timing in turn, peak memory, prompts of a wanted length, pictures."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from peer_worker import resident, reset_peak
from peers import Ask

import laai
from laai.models import LanguageModel
from laai.prompts import Prompt, Template

RESULTS = Path(__file__).parents[1] / "results"
Tasks = dict[str, Callable[[], Any]]


class Bench(NamedTuple):
    """What is measured: the model, the other libraries' process (None without one), and whether in short."""

    model: LanguageModel
    ask: Ask | None
    quick: bool


class Row(TypedDict):
    """One comparison: `ratio` is what `name` says, of `ours` and `rival` in `unit`; None over a rival of zero."""

    name: str
    ours: float
    rival: float
    ratio: float | None
    unit: str


def faster(name: str, ours: float, rival: float, unit: str) -> Row:
    """A row whose ratio tells how many times the rival's cost is ours."""
    return {"name": name, "ours": ours, "rival": rival, "ratio": rival / ours, "unit": unit}


def relative(name: str, ours: float, rival: float, unit: str) -> Row:
    """A row whose ratio is our cost in units of the other."""
    return {"name": name, "ours": ours, "rival": rival, "ratio": ours / rival if rival else None, "unit": unit}


def over_first(name: str, costs: Mapping[str, float], unit: str) -> list[Row]:
    """A row for each rival (`{}` in `name`) of the first of `costs`, which is ours."""
    (_, ours), *rivals = costs.items()
    return [faster(name.format(rival), ours, cost, unit) for rival, cost in rivals]


def in_turn(tasks: Tasks, rounds: int, warm: bool = True) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each task and what it last gave: all run in turn, so that a drifting machine is fair to all."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    found = {}
    for _ in range(rounds + warm):
        for name, task in tasks.items():
            seconds, found[name] = timed(task)
            times[name].append(seconds)
    return {name: statistics.median(values[warm:]) for name, values in times.items()}, found


def timed(task: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and what it gave."""
    began = time.perf_counter()
    found = task()
    return time.perf_counter() - began, found


def peak_above(task: Callable[[], object]) -> float:
    """Megabytes of resident memory that a call needs above what there was before it, at least 1 (Linux; else nan)."""
    try:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else memory that was freed before would hide what is needed now
        reset_peak()
        before = resident("VmRSS:")
        task()
        return max(resident("VmHWM:") - before, 1e6) / 1e6
    except OSError:
        return float("nan")


def prompts_of_length(model: LanguageModel, tokens: int, count: int, task: str = "antonym") -> list[Prompt]:
    """Real prompts of exactly `tokens` tokens with their answers: a query behind as much of other examples as fits.

    Every prompt has other examples before its query, so that no two share a beginning. Answers have one token and a
    terminator.
    """
    table = laai.load_task(task)
    template = Template(model.tokenizer, table)
    encoded = [template.encode(e.input, answer=e.output) for e in table.examples]
    shots = table.examples[-120:]
    made = []
    for i, prompt in enumerate([p for p in encoded if len(p.answer) == 2 and len(p.prompt) <= 12][:count]):
        turn = 7 * i % len(shots)
        before = template.encode("", [*shots[turn:], *shots[:turn]]).prompt
        made.append(Prompt((*before[: tokens - len(prompt.prompt)], *prompt.prefix), prompt.suffix))
        assert len(made[-1].prompt) == tokens, "not enough text for prompts of this length"
    assert len(made) == count
    return made


@contextlib.contextmanager
def picture(path: Path, size: tuple[float, float], columns: int = 1) -> Iterator[Any]:
    """Axes, `columns` of them, to draw into; the picture (inches) is saved when they are drawn."""
    from matplotlib.figure import Figure

    figure = Figure(size, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    yield axes
    for each in axes:
        each.grid(alpha=0.3)
        each.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=140)
