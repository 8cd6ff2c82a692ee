"""Tasks by name: built in, from a file, a folder or the hub."""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from laai.errors import UserError
from laai.tasks.examples import Task, short, unreadable
from laai.tasks.files import FILE_SUFFIXES, load_file, load_folder
from laai.tasks.hub import load_hub

HUB_PREFIX = "hf:"


def builtin_tasks() -> list[str]:
    """The sorted names of the tasks that come with the library."""
    tables = importlib.resources.files("laai.tasks.tables").iterdir()
    return sorted(table.name.removesuffix(".json") for table in tables if table.name.endswith(".json"))


def load_task(spec: str | Path, *, columns: Mapping[str, str] | None = None) -> Task:
    """Load a built-in task, a file, a folder or a hub data set.

    Args:
        spec: the name of a built-in task; a .json file (Function Vectors' list, or a table like the built-in ones), a
            .jsonl or .csv file; a folder with train.jsonl and perhaps test.jsonl; or ``hf:name[/config]``, a data set
            of the hub, or ``hf:/a/folder``.
        columns: which column or key of the data holds ``input``, ``output``, ``choices`` and ``label``, if their names
            differ. ``input`` and ``output`` may be templates ("{premise}\\n{hypothesis}"); ``choices`` may be
            "no|yes" or "{option1}|{option2}"; dots reach into nested values ("answers.text"). ``labels`` names the
            labels of the choices where ``label`` is no index: "A|B|C|D", or a column with a list. In an ``input``
            template ``{choices}`` stands for the choices, each on a line behind its letter. For hub data also
            ``split`` ("train" by default), ``test_split`` and ``revision``. For any task, a built-in one too,
            ``instruction``: a text that every prompt begins with, in place of the task's own.

    Raises:
        UserError: there is no such task, or its data are not as they should be; the message names the line.
    """
    given = dict(columns or {})
    instruction = given.pop("instruction", None)
    task = _read(spec, given)
    if instruction is None:
        return task
    if not isinstance(instruction, str) or unreadable(instruction):
        raise UserError(f"expected columns['instruction'] as a text, found {instruction!r}")
    return replace(task, instruction=instruction)


def _read(spec: str | Path, columns: Mapping[str, str]) -> Task:
    text = str(spec)
    if text.startswith(HUB_PREFIX):
        return load_hub(text.removeprefix(HUB_PREFIX), columns)
    if isinstance(spec, str) and spec in builtin_tasks():
        if columns:
            raise UserError(f"task {spec} is built in and takes no columns; for a file of that name write ./{spec}")
        with importlib.resources.as_file(importlib.resources.files("laai.tasks.tables") / f"{spec}.json") as path:
            return load_file(path, {})
    try:
        path = Path(spec).expanduser()
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot look at {short(text)}: {error}") from error
    if is_folder:
        return load_folder(path, columns)
    if isinstance(spec, Path) or path.suffix in FILE_SUFFIXES or len(path.parts) > 1 or exists:
        return load_file(path, columns)
    close = difflib.get_close_matches(text, builtin_tasks())
    hint = f"close matches: {', '.join(close)}; " if close else ""
    raise UserError(
        f"unknown task {short(text)}; {hint}`laai tasks` lists the built-in ones, and a .json, .jsonl or .csv file, a "
        "folder or hf:name is a task too"
    )
