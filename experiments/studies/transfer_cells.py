"""Cells of the transfer matrix: rows put together by pair of tasks; their means, and differences with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from laai.compare import Row, counted, crossed_interval, signed
from laai.evaluation import Interval, share_interval

Cell = dict[str, Row]
"""Method -> row, of a source, a target and a seed (`completed`), or of all a pair's seeds together (`pooled`)."""
Cells = Sequence[Cell]

OWN = ("zero-shot", "few-shot", "few-shot, more labels", "label prior")
"""Methods that use the target alone."""
WHOLE = "cross-task few-shot, none left out"
"""`cross-task few-shot` where the prompt has room for as many examples as the vector has samples."""
OURS = ("cast", "cast, if it helps")
FEWEST = 3
"""Sources, and targets, below which there is no interval: resamples of fewer are too alike."""


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
        known = [method for method in OWN if (target, seed, method) in own]
        cell |= {method: own[target, seed, method] | {"source": source} for method in known}
        if (prompted := cell.get("cross-task few-shot")) and prompted.get("left_out") == 0:
            cell[WHOLE] = prompted | {"method": WHOLE}
        helps = cell["cast"]["choice_of_place"]["helps"]
        cell["cast, if it helps"] = cell["cast" if helps else "zero-shot"] | {"method": "cast, if it helps"}
    return list(cells.values())


def pooled(cells: Cells) -> list[Cell]:
    """One cell for each pair of tasks: its seeds' queries together, so that a pair counts once whatever it has of them.

    Methods that not all of a pair's seeds have are left out of it. `seed` holds all of them, and `choice_of_place` a
    list.
    """
    by_pair: dict[tuple[str, str], list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell["cast"]["seed"]):
        by_pair.setdefault(pair_of(cell), []).append(cell)
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


def pair_of(cell: Cell) -> tuple[str, str]:
    """Source and target."""
    return cell["cast"]["source"], cell["cast"]["target"]


def having(cells: Cells, a: str, b: str, measure: str) -> list[Cell]:
    """The cells that measured both methods."""
    return [cell for cell in cells if has(cell, a, measure) and has(cell, b, measure)]


def changes_of(cells: Cells, a: str, b: str, measure: str) -> list[NDArray[np.float64]]:
    """a − b by query, of the cells that have both."""
    known = having(cells, a, b, measure)
    return [np.array(cell[a][measure], dtype=float) - np.array(cell[b][measure]) for cell in known]


def paired(cells: Cells, a: str, b: str, measure: str) -> Interval:
    """Mean of a − b over cells, each the mean over its queries; sources, targets and their queries are resampled."""
    known, values = having(cells, a, b, measure), changes_of(cells, a, b, measure)
    blocks = []  # cells of one target and seed share their queries
    for cell, own in zip(known, values, strict=True):
        row = cell["cast"]
        seeds = row["seed"] if isinstance(row["seed"], tuple) else (row["seed"],)
        counts = row.get("queries", [len(own)])
        blocks.append([((row["target"], seed), count) for seed, count in zip(seeds, counts, strict=True)])
    return crossed_interval(values, [pair_of(cell) for cell in known], blocks)


def difference(cells: Cells, a: str, b: str, measure: str) -> str:
    """`paired` as the reports show it; without an interval where there are fewer than `FEWEST` on a side."""
    found = paired(cells, a, b, measure)
    sides = zip(*(pair_of(cell) for cell in having(cells, a, b, measure)), strict=True)
    few = min((len(set(side)) for side in sides), default=0) < FEWEST
    return signed(found, found.n, few=counted(found.n, "pair") if few else None)


def mean(cells: Cells, method: str, measure: str) -> float:
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
