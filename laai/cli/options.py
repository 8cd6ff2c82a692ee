"""What the commands' parsers share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from laai.errors import UserError
from laai.tasks import Task, builtin_tasks, load_task


def load_with(columns: Mapping[str, str], names: Sequence[str]) -> Callable[[str], Task]:
    """A function that reads tasks by name: those that are not built in by their columns, and all with an instruction.

    Args:
        columns: as `load_task` takes them.
        names: of the tasks to be read.

    Raises:
        UserError: columns, and no task that takes them.
    """
    said = {field: text for field, text in columns.items() if field == "instruction"}
    if columns.keys() - said.keys() and all(name in builtin_tasks() for name in names):
        raise UserError("expected --columns with a file, folder or hf:NAME, found built-in tasks alone: leave it out")
    return lambda name: load_task(name, columns=said if name in builtin_tasks() else columns)


Parsers = Any  # argparse's own class for this has a private name


def add_command(commands: Parsers, name: str, run: Callable[[Any], None], help: str, examples: str) -> Any:
    """Add a command whose help ends in examples; returns its parser."""
    parser = commands.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_model_options(parser: Any, default: str | None = "default") -> None:
    """Options that say which model runs, and how."""
    origin = "the one the file was made for" if default is None else default
    parser.add_argument(
        "--base_model", default=default, help=f"default, hub id, folder or GGUF file (default: {origin})"
    )
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, float16 or auto (default: float32)")


def add_columns(parser: Any, option: str = "columns", of: str = "") -> None:
    """How a file or hub data set names what we call input, output, choices, label, split and test_split.

    And `instruction`, a text, for any task.

    Args:
        parser: gets the option.
        option: its name.
        of: for the help, which data it is about.
    """
    parser.add_argument(
        f"--{option}",
        nargs="+",
        default=[],
        metavar="FIELD=COLUMN",
        help=f"{of}say, input=text output=answer split=validation; instruction='…' is what prompts begin with",
    )


def columns_of(options: Any, option: str = "columns") -> dict[str, str]:
    """Those of an option, as `load_task` takes them."""
    pairs = [pair.partition("=") for pair in getattr(options, option)]
    if bad := next(("".join(pair) for pair in pairs if not all(pair)), None):
        raise UserError(f"expected --{option} as FIELD=COLUMN, such as input=text, found {bad!r}")
    return {field: column for field, _, column in pairs}
