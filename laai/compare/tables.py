"""Reports in Markdown: one table writer, and how numbers are written in its cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from laai.evaluation import Interval

Row = dict[str, Any]


def table(head: Sequence[object], rows: Iterable[Sequence[object]], align: str = "l") -> list[str]:
    """The lines of a table; `align` has a letter, l or r, for each column, those that it leaves out are r."""
    rules = ["---" if letter == "l" else "---:" for letter in align.ljust(len(head), "r")]
    return [line(head).replace("|  |", "| |"), line(rules), *map(line, rows)]


def line(cells: Sequence[object]) -> str:
    """One row of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def number(value: float, digits: int = 3) -> str:
    """A number; a dash for NaN, which is what was not measured."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def signed(found: Interval, told: object = "", few: str | None = None, digits: int = 3) -> str:
    """A difference or correlation with its interval, and behind it what is `told` of how many there are.

    Args:
        found: what to write; a dash where it is of nothing.
        told: behind the interval.
        few: in place of the interval where it is of too few to mean anything.
        digits: behind the point.
    """
    if not found.n:
        return "-"
    behind = few if few is not None else f"{found.low:+.{digits}f} to {found.high:+.{digits}f}"
    return f"{found.mean:+.{digits}f} ({behind}{f'; {told}' if told and few is None else ''})"


def counted(count: int, what: str) -> str:
    """`1 pair`, `2 pairs`."""
    return f"{count} {what}{'s' * (count > 1)}"


def about(facts: Mapping[str, object], between: str = ", ") -> str:
    """Settings that rows have in common."""
    return between.join(f"{name} {value}" for name, value in facts.items() if value is not None)


def distinct(rows: Iterable[Row], *names: str) -> list[Any]:
    """The values of one axis of rows, or tuples of several, in the order in which they come first."""
    return list(dict.fromkeys(r[names[0]] if len(names) == 1 else tuple(r[name] for name in names) for r in rows))


def only(rows: Iterable[Row], **axes: Any) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in axes.items())]
