"""From one row of user data (a JSON object, a CSV line, a data set row) to an Example."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from laai.errors import UserError
from laai.tasks.examples import Example, unreadable

Row = Mapping[str, object]
FIELDS = ("input", "output", "choices", "label", "labels")
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
LISTED = "{choices}"
"""In an input template: the choices, each on a line behind its letter."""


def check_columns(columns: Mapping[str, str], where: str, also: Sequence[str] = ()) -> None:
    """Raise UserError if ``columns`` maps a field there is not, or to something that is no column name."""
    known = (*FIELDS, *also)
    for field, column in columns.items():
        if field not in known:
            raise UserError(f"{where}: columns has no field {field!r}; the fields are {', '.join(known)}")
        if not isinstance(column, str) or not column:
            raise UserError(f"{where}: columns[{field!r}] must be a column name or template, got {column!r}")


def to_example(
    row: object, where: str, columns: Mapping[str, str], default_choices: tuple[str, ...] | None = None
) -> Example:
    """Build an example from a row.

    Args:
        row: a mapping with ``input``, and ``output`` or ``label``; anything else is an error.
        where: names the row in errors, such as "data.csv, line 3".
        columns: other names for the fields, see ``laai.tasks.loading.load_task``.
        default_choices: choices for a row that has none of its own.

    Raises:
        UserError: one line saying what is wrong with the row and how to cure it.
    """
    if not isinstance(row, Mapping):
        raise UserError(f'{where}: expected an object like {{"input": "…", "output": "…"}}, found {describe(row)}')
    names = {field: columns.get(field, field) for field in FIELDS}
    choices = _choices(row, names["choices"], where, required="choices" in columns) or default_choices
    text = _text(row, names["input"], "input", where, choices)
    if "labels" in columns:
        label: int | None = _named_label(row, names["label"], names["labels"], where)
    else:
        label = _label(row, names["label"], where, required="label" in columns)
    if label is not None and choices is None:
        raise UserError(f"{where}: has a label but no choices; give choices, or an output instead of the label")
    if label is not None and choices is not None and not 0 <= label < len(choices):
        raise UserError(f"{where}: label {label} is out of range; {len(choices)} choices allow 0 to {len(choices) - 1}")
    if label is not None and choices is not None and "output" not in columns and row.get("output") is None:
        return Example(text, choices[label], choices, label)
    output = _text(row, names["output"], "output", where)
    if choices is not None and output not in choices:
        raise UserError(f"{where}: output {output!r} is none of the choices {list(choices)}; use one of them")
    if label is not None and choices is not None and choices[label] != output:
        raise UserError(f"{where}: label {label} means {choices[label]!r}, but output is {output!r}; correct one")
    return Example(text, output, choices, label)


def describe(value: object) -> str:
    """What a JSON value is, in words: "null", "the number 3", "a list"."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return f"{'the value' if isinstance(value, bool) else 'the number'} {_literal(value)}"
    words = {"str": "a text", "list": "a list", "tuple": "a list", "dict": "an object"}
    return words.get(type(value).__name__, type(value).__name__)


def _literal(value: bool | int | float) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value!r:.40}"


def _lookup(row: Row, column: str, where: str) -> object:
    """The value of a column, or of a dotted path into nested values."""
    if column in row:
        return row[column]
    value: object = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            found = ", ".join(map(str, row)) or "none"
            cure = f"rename the keys or give columns={{…: {column!r}}} its right name"
            raise UserError(f"{where}: no key {column!r}; found keys: {found}; {cure}")
        value = value[part]
    return value


def _text(row: Row, column: str, field: str, where: str, choices: tuple[str, ...] | None = None) -> str:
    """The text of a column or of a template, stripped; never empty. `choices` stand where `LISTED` does."""
    if column not in row and PLACEHOLDER.search(column):

        def part(match: re.Match[str]) -> str:
            if match[0] == LISTED and choices:
                return "\n".join(f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(choices))
            return _part(row, match[1], where)

        value: object = PLACEHOLDER.sub(part, column)
    else:
        value = _lookup(row, column, where)
    return checked_text(value, field, where)


def _part(row: Row, column: str, where: str) -> str:
    """One value inside a template, where numbers are welcome."""
    value = _lookup(row, column, where)
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return str(value)
    raise UserError(f"{where}: {column!r} in a template is {describe(value)}; expected a text or a number")


def checked_text(value: object, field: str, where: str) -> str:
    """The value without outer white space, if it is a text that is not empty; else UserError."""
    if not isinstance(value, str):
        cure = f'quote it: "{_literal(value)}"' if isinstance(value, bool | int | float) else "give a quoted text"
        raise UserError(f"{where}: {field} is {describe(value)}, expected a text; {cure}")
    if not value.strip():
        raise UserError(f"{where}: {field} is empty; fill it in or delete the entry")
    if unreadable(value):
        raise UserError(f"{where}: {field} holds half of a surrogate pair, such as a cut emoji; mend the text")
    return value.strip()


def _choices(row: Row, column: str, where: str, *, required: bool) -> tuple[str, ...] | None:
    """The options of a row: a list, a JSON list in a text, "a|b", or "{option1}|{option2}"."""
    if column not in row and "|" in column:
        return tuple(_text(row, option, "choices", where) if "{" in option else option for option in column.split("|"))
    if column not in row and not required:
        return None
    value = _lookup(row, column, where)
    if isinstance(value, str):
        value = _split_choices(value, where)
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise UserError(f'{where}: choices is {describe(value)}; expected a list of texts such as ["yes", "no"]')
    if len(value) < 2:
        raise UserError(f"{where}: choices has {len(value)} entries; give 2 or more, or leave choices out")
    return tuple(checked_text(option, f"choices[{index}]", where) for index, option in enumerate(value))


def _split_choices(text: str, where: str) -> object:
    """A list from its text in a CSV field; None where it is empty."""
    if not text.strip():
        return None
    if not text.lstrip().startswith("["):
        return text.split("|")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{where}: choices is no JSON list ({error}); write ["yes", "no"] or yes|no') from error


def _named_label(row: Row, column: str, labels: str, where: str) -> int:
    """The index of a label among the names that labels have: "A|B|C|D", or a column with a list of them."""
    names = _choices(row, labels, where, required=True) or ()
    value = _lookup(row, column, where)
    name = str(value).strip() if isinstance(value, str | int) else ""
    if name not in names:
        given = name or describe(value)
        raise UserError(f"{where}: label {given!r} is none of labels: {', '.join(names)}; correct one")
    return names.index(name)


def _label(row: Row, column: str, where: str, *, required: bool) -> int | None:
    """The index of the right choice, or None."""
    if column not in row and not required:
        return None
    value = _lookup(row, column, where)
    if isinstance(value, str):
        if not value.strip():
            return None
        if re.fullmatch(r"\s*-?[0-9]{1,9}\s*", value):
            return int(value)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    shown = repr(value) if isinstance(value, str) else describe(value)
    raise UserError(f"{where}: label is {shown}; expected the index of the right choice, counted from 0")
