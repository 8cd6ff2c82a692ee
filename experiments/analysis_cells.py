"""Cells of the tables of `cast_analysis.py`: what (pair, seed) gave, means over them, differences over pairs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import starts_report

Row = dict[str, Any]
Cell = tuple[str, int]  # (pair, seed)
LEAST_PAIRS = 5
"""Pairs that an interval takes."""


def cells(rows: Sequence[Row], measure: str, **only: Any) -> dict[Cell, float]:
    """Mean of a measure by (pair, seed) of the rows that are as `only` says and have it."""
    chosen = [r for r in rows if r[measure] is not None and all(r[name] == value for name, value in only.items())]
    return {(f"{r['source']} → {r['target']}", r["seed"]): float(np.mean(r[measure])) for r in chosen}


def over(rows: Sequence[Row]) -> str:
    """What a table is over, and how to read its numbers."""
    pairs, seeds = {(r["source"], r["target"]) for r in rows}, sorted({r["seed"] for r in rows})
    named = ", ".join(f"{a} → {b}" for a, b in sorted(pairs))
    return (
        f"{len(pairs)} pairs ({named}), seeds {seeds}; means over fewer say over how many. Differences: 95% "
        f"intervals over pairs (Student's t, of each pair's mean over its seeds; pairs that share a task count as "
        f"independent); below {LEAST_PAIRS} pairs no interval, but their number."
    )


def mean(found: dict[Cell, float], whole: Collection[Cell]) -> str:
    """The mean over (pair, seed), and how many these are of the `whole` if not all."""
    if not found:
        return "-"
    own, all_pairs = (len({pair for pair, _ in some}) for some in (found, whole))
    mark = f" ({own} of {all_pairs} pairs)" if own < all_pairs else f" ({len(found)} of {len(whole)} pairs and seeds)"
    return f"{np.mean(list(found.values())):.3f}{mark if len(found) < len(whole) else ''}"


def difference(a: dict[Cell, float], b: dict[Cell, float]) -> str:
    """The mean of a − b over what both have, its interval if it has pairs enough for one, and their number."""
    pairs = len({pair for pair, _ in a.keys() & b.keys()})
    if not pairs:
        return "-"
    middle, low, high, _ = starts_report.difference(a, b)
    if pairs < LEAST_PAIRS:
        return f"{middle:+.3f} ({pairs} pair{'s' * (pairs > 1)})"
    return f"{middle:+.3f} ({low:+.3f} to {high:+.3f}; {pairs} pairs)"
