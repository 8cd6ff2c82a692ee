"""Cells of tables over pairs of tasks: what (pair, seed) gave, means over them, differences over pairs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from laai.compare import Cell, Row, counted, distinct, only, over_tasks, signed

LEAST_PAIRS = 5
"""Pairs that an interval takes."""
Found = dict[Cell, float]
"""By pair and seed."""


def cells(rows: Sequence[Row], measure: str, **axes: Any) -> Found:
    """Mean of a measure by (pair, seed) of the rows that are at these axes and have it."""
    chosen = [row for row in only(rows, **axes) if row[measure] is not None]
    return {(f"{r['source']} → {r['target']}", r["seed"]): float(np.mean(r[measure])) for r in chosen}


def over(rows: Sequence[Row]) -> str:
    """What a table is over, and how to read its numbers."""
    pairs, seeds = sorted(distinct(rows, "source", "target")), sorted(distinct(rows, "seed"))
    named = ", ".join(map(" → ".join, pairs))
    return (
        f"{len(pairs)} pairs ({named}), seeds {seeds}; means over fewer say over how many. Differences: 95% "
        f"intervals over pairs (Student's t, of each pair's mean over its seeds; pairs that share a task count as "
        f"independent); below {LEAST_PAIRS} pairs no interval, but their number."
    )


def mean(found: Found, whole: Collection[Cell]) -> str:
    """The mean over (pair, seed), and how many these are of the `whole` if not all."""
    if not found:
        return "-"
    own, all_pairs = (len({pair for pair, _ in some}) for some in (found, whole))
    mark = f" ({own} of {all_pairs} pairs)" if own < all_pairs else f" ({len(found)} of {len(whole)} pairs and seeds)"
    return f"{np.mean(list(found.values())):.3f}{mark if len(found) < len(whole) else ''}"


def short(found: Found) -> str:
    """The mean over (pair, seed), briefly."""
    return f"{np.mean(list(found.values())):.2f}" if found else "-"


def difference(a: Found, b: Found) -> str:
    """The mean of a − b over what both have, its interval if it has pairs enough for one, and their number."""
    pairs = counted(number := len({pair for pair, _ in a.keys() & b.keys()}), "pair")
    return signed(over_tasks(a, b), pairs, few=pairs if number < LEAST_PAIRS else None)
