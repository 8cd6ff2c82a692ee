"""What a run leaves behind for people: the printed table, `results.json`, and pages in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table

from laai.evaluation.measuring import Measured
from laai.evaluation.scores import Scores
from laai.files import write_json
from laai.tasks import Example

_INTERVAL = "95% interval"
_COLUMNS = ("method", "exact match", _INTERVAL, "forced choice", _INTERVAL, "NLL", "prompt tokens", "ms / query")


def _cells(s: Scores) -> tuple[str, ...]:
    return (
        s.method,
        f"{s.exact_match:.2f}",
        f"{s.exact_match_low:.2f} to {s.exact_match_high:.2f}",
        "-" if s.choice_accuracy is None else f"{s.choice_accuracy:.2f}",
        "-" if s.choice_accuracy is None else f"{s.choice_accuracy_low:.2f} to {s.choice_accuracy_high:.2f}",
        f"{s.nll:.2f}",
        f"{s.prompt_tokens:.1f}",
        f"{s.ms_per_query:.0f}",
    )


def print_table(rows: Sequence[Scores], title: str, file: IO[str] | None = None) -> None:
    """Print the results table; it keeps its width where there is no terminal."""
    table = Table(title=title, title_justify="left")
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    console = Console(file=file)
    console.width = max(console.width, 125)
    console.print(table)


def markdown_table(rows: Sequence[Scores]) -> str:
    """The same table in Markdown."""
    lines = [_COLUMNS, ("---",) + ("---:",) * (len(_COLUMNS) - 1), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_results(
    path: Path,
    facts: Mapping[str, Any],
    rows: Sequence[Scores],
    seconds: Mapping[str, float],
    peak_megabytes: Mapping[str, float],
) -> Path:
    """Write `results.json`: the facts of the run, one row per method, where the time went, and peak memory by then."""
    spent = {"seconds": {name: round(value, 3) for name, value in seconds.items()}}
    spent["peak_megabytes"] = {name: round(value, 1) for name, value in peak_megabytes.items()}
    return write_json(path, {**facts, "rows": [row.as_json() for row in rows], **spent})


def answers_markdown(examples: Sequence[Example], answers: Mapping[str, Sequence[Measured]], limit: int = 12) -> str:
    """Sample answers of several methods side by side, in Markdown; exact matches are bold.

    Examples that another device measured are left out.
    """
    by_row = {name: {m.row: m for m in measured} for name, measured in answers.items()}
    lines = [f"| input | expected | {' | '.join(by_row)} |", "| --- " * (2 + len(by_row)) + "|"]
    here = [row for row in range(len(examples)) if all(row in measured for measured in by_row.values())]
    for row in here[:limit]:
        example, given = examples[row], [measured[row] for measured in by_row.values()]
        cells = [example.input, example.output, *(f"**{m.answer}**" if m.exact else m.answer for m in given)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines)
