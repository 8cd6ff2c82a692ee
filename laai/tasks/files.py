"""Tasks from files and folders: JSON, JSONL and CSV, with errors that name the line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from json.decoder import JSONDecodeError
from pathlib import Path

from laai.errors import UserError
from laai.tasks.examples import Example, Task
from laai.tasks.repeats import dedupe
from laai.tasks.rows import check_columns, checked_text, describe, to_example

Located = tuple[str, object]  # where a row is from, for errors, and the row
FILE_SUFFIXES = (".json", ".jsonl", ".csv")
TEXT_FIELDS = ("instruction", "input_prefix", "answer_prefix", "source", "licence", "language")


def load_file(path: Path, columns: Mapping[str, str]) -> Task:
    """Load a .json, .jsonl or .csv file.

    A JSON file is a list of objects with "input" and "output" (Function Vectors' format), or an object with that list
    as "examples" beside "instruction", "choices" and the other fields of the built-in tables.

    Raises:
        UserError: the file is missing, empty or not as expected.
    """
    check_columns(columns, str(path))
    suffix = path.suffix.lower()
    if path.exists() and suffix not in FILE_SUFFIXES:
        raise UserError(f"{path}: expected a .json, .jsonl or .csv file; rename it to its format")
    text = _read_text(path)
    fields: dict[str, object] = {}
    if suffix == ".json":
        value = _parse_json(text, str(path))
        if isinstance(value, dict) and "examples" in value:
            fields = {key: item for key, item in value.items() if key != "examples"}
            rows = _table_rows(value["examples"], path)
        else:
            rows = _list_rows(value, text, path)
    else:
        rows = (_csv_rows if suffix == ".csv" else _jsonl_rows)(text, path)
    return _task(path.stem, _examples(rows, columns, path, fields), None, fields, path)


def load_folder(folder: Path, columns: Mapping[str, str]) -> Task:
    """Load a folder with train.jsonl and, perhaps, test.jsonl.

    ``index.json`` in the folder, or in its parent under the folder's name, may give instruction, input_prefix,
    answer_prefix, choices, language, source and licence. The input prefix is empty unless it is given.

    Raises:
        UserError: there is no train.jsonl, or a file is not as expected.
    """
    check_columns(columns, str(folder))
    if not (folder / "train.jsonl").is_file():
        raise UserError(f"{folder}: a task folder needs train.jsonl; add it, or give the path of a file")
    folder = folder.resolve()
    fields, index = _index(folder)
    sets: list[list[Example]] = []
    for path in (folder / "train.jsonl", folder / "test.jsonl"):
        if path.is_file():
            rows = _jsonl_rows(_read_text(path), path)
            sets.append(_examples(rows, columns, path, fields, least=1 if sets else 2))
    test = sets[1] if len(sets) > 1 else None
    return _task(folder.name, sets[0], test, {"input_prefix": "", "source": str(folder), **fields}, index)


def _index(folder: Path) -> tuple[dict[str, object], Path]:
    """The fields that index.json gives for a folder, and where they are from."""
    for path, key in ((folder / "index.json", None), (folder.parent / "index.json", folder.name)):
        if path.is_file():
            value = _parse_json(_read_text(path), str(path))
            if not isinstance(value, dict):
                raise UserError(f'{path}: expected an object such as {{"instruction": "…"}}, found {describe(value)}')
            fields = value if key is None else value.get(key, {})
            if not isinstance(fields, dict):
                raise UserError(f"{path}: expected an object under {key!r}, found {describe(fields)}")
            if fields:
                return fields, path
    return {}, folder


def _examples(
    rows: Iterator[Located], columns: Mapping[str, str], path: Path, fields: Mapping[str, object], least: int = 2
) -> list[Example]:
    """The examples of one file, each input once, at least so many."""
    given = fields.get("choices")
    choices = None
    if isinstance(given, list):
        choices = tuple(checked_text(choice, f"choices[{index}]", str(path)) for index, choice in enumerate(given))
    places, examples = [], []
    for where, row in rows:
        places.append(where)
        examples.append(to_example(row, where, columns, choices))
    examples = dedupe(examples, places)
    if len(examples) < least:
        raise UserError(f"{path}: needs at least {least} examples, found {len(examples)}; add examples")
    return examples


def _task(
    name: str, examples: list[Example], test: list[Example] | None, fields: Mapping[str, object], where: Path
) -> Task:
    """The task with those of its fields that are given."""
    given = {"source": str(where)}
    for field in TEXT_FIELDS:
        if field in fields:
            value = fields[field]
            if not isinstance(value, str):
                raise UserError(f"{where}: {field} is {describe(value)}, expected a text; quote it or leave it out")
            given[field] = value
    return Task(name, tuple(examples), None if test is None else tuple(test), **given)


def _read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without byte order mark."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    if not text.strip():
        raise UserError(f"{path}: the file is empty; add at least 2 examples")
    return text


def _parse_json(text: str, where: str, line: int = 0) -> object:
    """Parse JSON; ``line`` is the number of lines before the text where it is one line of a file."""
    try:
        return json.loads(text)
    except JSONDecodeError as error:
        place = f"{where}, line {error.lineno}" if not line else where
        raise UserError(f"{place}: not valid JSON ({error.msg} at column {error.colno}); correct the line") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, brackets nested too deep
        raise UserError(f"{where}: not usable JSON ({error}); simplify it") from error


def _list_rows(value: object, text: str, path: Path) -> Iterator[Located]:
    """The entries of a JSON list with their lines, and their numbers as a file may be one long line."""
    if not isinstance(value, list):
        cure = 'expected a list of {"input": "…", "output": "…"}, or an object with that list as "examples"'
        raise UserError(f"{path}: {cure}, found {describe(value)}")
    decoder, position, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    for number, item in enumerate(value, 1):
        while text[position] in " \t\r\n,":
            position += 1
        line += text.count("\n", counted, position)
        counted = position
        yield f"{path}, line {line}, entry {number}", item
        position = decoder.raw_decode(text, position)[1]


def _table_rows(value: object, path: Path) -> Iterator[Located]:
    """The entries of a table's "examples", which have numbers for places."""
    if not isinstance(value, list):
        raise UserError(f'{path}: "examples" is {describe(value)}; expected a list')
    yield from ((f"{path}, entry {number} of examples", item) for number, item in enumerate(value, 1))


def _jsonl_rows(text: str, path: Path) -> Iterator[Located]:
    """The objects of a JSONL text, blank lines left out."""
    # Only \n ends a line: splitlines would also cut at separators that JSON allows inside strings.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _parse_json(line, where, number)


def _csv_rows(text: str, path: Path) -> Iterator[Located]:
    """The rows of a CSV text with a header, blank lines left out."""
    rows = _csv_records(text, path)
    where, header = next(rows)
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise UserError(f"{where}: column {sorted(repeated)[0]!r} occurs twice in the header; rename one")
    for where, record in rows:
        if len(record) != len(header):
            cure = "quote fields that contain commas"
            raise UserError(f"{where}: {len(record)} fields, but the header has {len(header)}; {cure}")
        yield where, dict(zip(header, record, strict=True))


def _csv_records(text: str, path: Path) -> Iterator[tuple[str, list[str]]]:
    """The non-blank records of a CSV text, each with the line it starts at."""
    limit = csv.field_size_limit(2**31 - 1)
    line = 1
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        records = []
        for record in reader:
            if any(record):
                records.append((f"{path}, line {line}", record))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: not valid CSV ({error}); check the quotes") from error
    finally:
        csv.field_size_limit(limit)
    yield from records
