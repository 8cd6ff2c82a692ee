"""What the engine's benchmarks share: timing in turn, peak memory, prompts of a wanted length."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict

import laai
from laai.models import LanguageModel
from laai.prompts import Prompt, Template


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


def in_turn(tasks: Mapping[str, Callable[[], object]], rounds: int, warm: bool = True) -> dict[str, float]:
    """Median seconds of each task, all run in turn, so that a machine whose speed drifts is fair to all."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + warm):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            if turn >= warm:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_above(task: Callable[[], object]) -> float:
    """Megabytes of resident memory that a call needs above what there was before it, at least 1 (Linux; else nan)."""
    try:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else memory that was freed before would hide what is needed now
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS:")
        task()
        return max(_status("VmHWM:") - before, 1e6) / 1e6
    except OSError:
        return float("nan")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def prompts_of_length(model: LanguageModel, tokens: int, count: int, task: str = "antonym") -> list[Prompt]:
    """Real prompts of exactly `tokens` tokens with their answers: a query behind as much of other examples as fits.

    Every prompt has other examples before its query, so that no two share a beginning. Answers have one token and a
    terminator.
    """
    table = laai.load_task(task)
    template = Template(model.tokenizer, table)
    encoded = [(e, template.encode(e.input, answer=e.output)) for e in table.examples]
    chosen = [(e, p) for e, p in encoded if len(p.answer) == 2 and len(p.prompt) <= 12][:count]
    shots = [e for e, _ in encoded[-120:]]
    made = []
    for i, (_, prompt) in enumerate(chosen):
        turned = shots[7 * i % len(shots) :] + shots[: 7 * i % len(shots)]
        before = template.encode("", turned).prompt
        made.append(Prompt((*before[: tokens - len(prompt.prompt)], *prompt.prefix), prompt.suffix))
        assert len(made[-1].prompt) == tokens, "not enough text for prompts of this length"
    assert len(made) == count
    return made
