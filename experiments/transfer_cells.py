"""Cells of the transfer matrix: rows put together by pair of tasks; their means, and differences with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from crossed_bootstrap import RESAMPLES, crossed_weights
from numpy.typing import NDArray

from laai.evaluation import share_interval

Row = dict[str, Any]
Cell = dict[str, Row]
"""Method -> row, of a source, a target and a seed (`completed`), or of all a pair's seeds together (`pooled`)."""

OWN = ("zero-shot", "few-shot", "few-shot, more labels", "label prior")
"""Methods that use the target alone."""
WHOLE = "cross-task few-shot, none left out"
"""`cross-task few-shot` where the prompt has room for as many examples as the vector has samples."""
FEWEST = 3
"""Sources, and targets, below which there is no interval: resamples of fewer are too alike."""


class Paired(NamedTuple):
    """A mean difference over pairs of tasks, with its 95% bootstrap interval over sources, targets and queries."""

    mean: float
    low: float
    high: float
    pairs: int
    tasks: int
    """Sources or targets, whichever are fewer."""


def at_site(site: str) -> str:
    """The method that chooses among places of one site alone."""
    return f"cast, {site} only"


def completed(rows: Sequence[Row]) -> list[Cell]:
    """One cell for each source, target and seed, with the target's own rows and the refusal rule in it."""
    own = {(r["target"], r["seed"], r["method"]): r for r in rows if r["source"] is None}
    cells: dict[tuple[str, str, int], Cell] = {}
    for row in rows:
        if row["source"] is not None:
            cells.setdefault((row["source"], row["target"], row["seed"]), {})[row["method"]] = row
    for (source, target, seed), cell in cells.items():
        for method in OWN:
            if (target, seed, method) in own:
                cell[method] = own[target, seed, method] | {"source": source}
        if (prompted := cell.get("cross-task few-shot")) and prompted.get("left_out") == 0:
            cell[WHOLE] = prompted | {"method": WHOLE}
        helps = cell["cast"]["choice_of_place"]["helps"]
        cell["cast, if it helps"] = cell["cast" if helps else "zero-shot"] | {"method": "cast, if it helps"}
    return list(cells.values())


def pooled(cells: Sequence[Cell]) -> list[Cell]:
    """One cell for each pair of tasks: its seeds' queries together, so that a pair counts once whatever it has of them.

    Methods that not all of a pair's seeds have are left out of it. `seed` holds all of them, and `choice_of_place` a
    list.
    """
    by_pair: dict[tuple[str, str], list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell["cast"]["seed"]):
        by_pair.setdefault((cell["cast"]["source"], cell["cast"]["target"]), []).append(cell)
    return [
        {method: _together([cell[method] for cell in own]) for method in own[0] if all(method in cell for cell in own)}
        for own in by_pair.values()
    ]


def _together(rows: Sequence[Row]) -> Row:
    made: Row = {name: rows[0][name] for name in ("source", "target", "method") if name in rows[0]}
    made |= {"seed": tuple(row["seed"] for row in rows), "queries": [len(row["exact"]) for row in rows]}
    for name in ("exact", "choice", "calibrated"):
        values = [row.get(name) or [None] * len(row["exact"]) for row in rows]
        made[name] = [one for some in values for one in some]
    for name in ("nll", "prompt_tokens", "chance", "choice_accuracy_mean"):
        numbers = [row[name] for row in rows if row.get(name) is not None]
        made[name] = float(np.mean(numbers)) if len(numbers) == len(rows) else None
    right = torch.tensor([choice for choice in made["choice"] if choice is not None], dtype=torch.float32)
    made["choice_accuracy_low"] = share_interval(right).low if len(right) else None
    return made | {"n": len(made["exact"]), "choice_of_place": [row.get("choice_of_place") for row in rows]}


def paired(cells: Sequence[Cell], a: str, b: str, measure: str) -> Paired:
    """Mean of a - b over cells, each the mean over its queries; sources, targets and their queries are resampled."""
    rng = np.random.default_rng(0)
    known = [cell for cell in cells if has(cell, a, measure) and has(cell, b, measure)]
    if not known:
        return Paired(float("nan"), float("nan"), float("nan"), 0, 0)
    differences = [np.array(cell[a][measure], dtype=float) - np.array(cell[b][measure]) for cell in known]
    drawn: dict[tuple[str, int], NDArray[np.int64]] = {}  # cells of one target and seed share their queries
    means = np.stack([_resampled(d, cell["cast"], drawn, rng) for cell, d in zip(known, differences, strict=True)], 1)
    pairs = [(cell["cast"]["source"], cell["cast"]["target"]) for cell in known]
    weights = crossed_weights(pairs, rng)
    some = weights.sum(axis=1) > 0
    totals = (weights * means).sum(axis=1)[some] / weights.sum(axis=1)[some]
    low, high = np.quantile(totals, [0.025, 0.975])
    middle = float(np.mean([d.mean() for d in differences]))
    tasks = min(len(set(side)) for side in zip(*pairs, strict=True))
    return Paired(middle, float(low), float(high), len(set(pairs)), tasks)


def _resampled(
    values: NDArray[np.float64], row: Row, drawn: dict[tuple[str, int], NDArray[np.int64]], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Means of resamples of a cell's queries, (RESAMPLES,), each seed's drawn anew among themselves."""
    seeds = row["seed"] if isinstance(row["seed"], tuple) else (row["seed"],)
    total, start = np.zeros(RESAMPLES), 0
    for seed, count in zip(seeds, row.get("queries", [len(values)]), strict=True):
        key = row["target"], seed
        if key not in drawn:
            drawn[key] = rng.integers(count, size=(RESAMPLES, count))
        total += values[start : start + count][drawn[key]].sum(axis=1)
        start += count
    return total / len(values)


def mean(cells: Sequence[Cell], method: str, measure: str) -> float:
    """Mean over the cells that have it; a number for a cell, or one for each of its queries."""
    values = [np.mean(c[method][measure]) for c in cells if has(c, method, measure)]
    return float(np.mean(values)) if values else float("nan")


def has(cell: Cell, method: str, measure: str) -> bool:
    """Whether a cell measured this: not all tasks have choices, and not all have the same for all queries."""
    found = cell[method].get(measure) if method in cell else None
    return None not in found if isinstance(found, list) else found is not None


def above_chance(cell: Cell) -> bool:
    """Whether a target's zero-shot forced choice is above chance by its 95% interval; no where chance is unknown."""
    if not has(cell, "zero-shot", "choice"):
        return False
    return bool(cell["zero-shot"]["choice_accuracy_low"] > (cell["cast"].get("chance") or 1))


def with_interval(found: Paired) -> str:
    """A difference as the reports show it; without an interval where there are fewer than `FEWEST` on a side."""
    if not found.pairs:
        return "-"
    if found.tasks < FEWEST:
        return f"{found.mean:+.3f} ({found.pairs} pair{'s' * (found.pairs > 1)})"
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f}; {found.pairs})"
