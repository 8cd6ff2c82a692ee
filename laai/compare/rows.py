"""Rows that a study has measured, in a JSON file that it goes on from: one object of its settings and its rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from laai.compare.tables import Row, distinct, only
from laai.errors import UserError
from laai.files import write_json


class Rows:
    """The rows of a file, which is written again whenever some are added.

    Args:
        path: of the file, which need not be there yet.
        facts: settings that all rows of a file have in common, as they are asked for.
        report: nothing will be added: the facts are the file's own.
        parted: the file has lists of rows by `part`, in place of one.

    Raises:
        UserError: rows of other settings, a report of nothing, or no results of a study.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], report: bool = False, parted: bool = False) -> None:
        self.path, self.facts, self._parted = path, dict(facts), parted
        self.rows: list[Row] = []
        if not path.exists():
            if report:
                raise UserError(f"{path} is not there: nothing to report; run without --report first")
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            kept = {name: found.get(name) for name in facts}
            parts = found.get("parts", {}) if parted else {"": found.get("rows", [])}
            self.rows = [row | ({"part": part} if parted else {}) for part, rows in parts.items() for row in rows]
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise UserError(f"expected {path} as a study's results, found {error}; name another --json") from error
        if not report and kept != self.facts:
            raise UserError(f"{path} holds results of other settings; move it away or name another --json")
        self.facts = kept

    def has(self, key: Row) -> bool:
        """Whether there is a row of these values."""
        return bool(only(self.rows, **key))

    def add(self, rows: Sequence[Row]) -> None:
        """Keep rows, in the file too."""
        self.rows += rows
        kept: dict[str, Any] = {"rows": self.rows}
        if self._parted:
            bare = [(row["part"], {k: v for k, v in row.items() if k != "part"}) for row in self.rows]
            kept = {"parts": {part: [row for own, row in bare if own == part] for part in distinct(self.rows, "part")}}
        write_json(self.path, self.facts | kept)
