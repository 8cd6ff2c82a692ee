"""A study: what is compared along which axes, run cell by cell from a command line, kept, and reported."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from laai.compare.rows import Rows
from laai.compare.tables import Row, distinct
from laai.errors import ends_in_one_line
from laai.files import write_atomically
from laai.models import LanguageModel, load_model

Options = argparse.Namespace
Runner = Callable[[Row, list[Row], Sequence[Row]], list[Row]]
"""From what a group's cells have in common, the cells that are missing, and all rows so far, to new rows."""


@dataclass(frozen=True)
class Study:
    """A comparison, declared. Every finished group of cells is kept, and a run that was stopped goes on from there.

    Attributes:
        about: what `--help` says.
        arguments: adds the options that are the study's own, besides --seeds, --base_model, --report and --json.
        facts: the options that all rows of a file have in common, by name.
        cells: the cells that are asked for, each a value by axis, in order.
        runner: of a model and the options, what measures cells.
        report: the report of rows in Markdown, by the file's facts and the options.
        seeds: the default of --seeds; None: those of the rows in a report, else 0.
        together: axes whose values the cells of a group share; default: each cell is a group.
        shown: the axes along which a report is narrowed to what was asked for, each with the option that names it.
        beside: writes what stands beside the report, pictures above all.
        check: refuses options, and completes them.
        results: where rows are kept without --json, by the options.
        written: the report is written beside the rows, as Markdown.
        parted: rows stand in the file by the axis `part`.
    """

    about: str
    arguments: Callable[[argparse.ArgumentParser], object]
    facts: Sequence[str]
    cells: Callable[[Options], Iterable[Row]]
    runner: Callable[[LanguageModel, Options], Runner]
    report: Callable[[list[Row], Row, Options], str]
    results: Path | Callable[[Options], Path]
    seeds: Sequence[int] | None = None
    together: Sequence[str] = ()
    shown: Mapping[str, str] = field(default_factory=dict)
    beside: Callable[[list[Row], Row, Options], object] = lambda *_: None
    check: Callable[[Options], object] = lambda _: None
    written: bool = True
    parted: bool = False

    @ends_in_one_line()
    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Run the cells that are missing, then report; a user's mistake ends in one line and exit code 2."""
        self.run(self.parsed(arguments))

    def parsed(self, arguments: Sequence[str] | None = None) -> Options:
        """The options of a command line."""
        parser = argparse.ArgumentParser(description=self.about, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.arguments(parser)
        shown = "of a report all that there are, else 0" if self.seeds is None else " ".join(map(str, self.seeds))
        parser.add_argument("--seeds", type=int, nargs="+", default=self.seeds, help=f"default: {shown}")
        parser.add_argument("--base_model", default="default", help="default, hub id, folder or GGUF file")
        parser.add_argument("--report", action="store_true", help="run nothing; write the report of what is there")
        where = self.results if isinstance(self.results, Path) else "by the suite"
        parser.add_argument("--json", type=Path, help=f"where rows are kept (default: {where})")
        options = parser.parse_args(arguments)
        if options.json is None:
            options.json = self.results if isinstance(self.results, Path) else self.results(options)
        return options

    def run(self, options: Options) -> None:
        """Measure what is missing, keep it, write the report.

        Raises:
            UserError: options that do not fit, other settings than those of the file, or what a cell raises.
        """
        self.check(options)
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore")
        facts = {name: getattr(options, name) for name in self.facts}
        kept = Rows(options.json, facts, options.report, self.parted)
        if options.seeds is None:
            options.seeds = sorted(set(distinct(kept.rows, "seed"))) if options.report else [0]
        missing = [] if options.report else self.groups(self.cells(options), kept)
        runner = self.runner(load_model(options.base_model), options) if missing else None
        for number, (group, cells) in enumerate(missing, 1):
            assert runner is not None
            began = time.perf_counter()
            kept.add(runner(group, cells, kept.rows))
            took = time.perf_counter() - began
            sys.stdout.write(f"{number}/{len(missing)}  {told(group)}: {took:.0f} s\n")
            sys.stdout.flush()
        asked = {axis: (None, *getattr(options, name)) for axis, name in self.shown.items()}
        rows = [row for row in kept.rows if all(row[axis] in values for axis, values in asked.items())]
        text = self.report(rows, kept.facts, options)
        if self.written:
            write_atomically(options.json.with_suffix(".md"), lambda file: file.write_text(text, encoding="utf-8"))
        self.beside(rows, kept.facts, options)
        sys.stdout.write(f"{text}\n")

    def groups(self, cells: Iterable[Row], kept: Rows) -> list[tuple[Row, list[Row]]]:
        """The cells that are missing, those that are run together in one group with what they share."""
        found: dict[tuple[Any, ...], tuple[Row, list[Row]]] = {}
        for cell in cells:
            if not kept.has(cell):
                shared = {axis: cell[axis] for axis in self.together or cell}
                found.setdefault(tuple(map(str, shared.items())), (shared, []))[1].append(cell)
        return list(found.values())


def told(group: Row) -> str:
    """A group in words: `antonym, seed 0`."""
    known = [(axis, value) for axis, value in group.items() if value is not None]
    return ", ".join(f"{axis} {value}" if isinstance(value, int) else f"{value}" for axis, value in known)
