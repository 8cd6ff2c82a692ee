"""Rows in their file: kept, gone on from, refused."""

from __future__ import annotations

import json

import pytest

from laai.compare import Rows
from laai.errors import UserError


def test_rows_are_kept_and_gone_on_from(tmp_path):
    path = tmp_path / "rows.json"
    rows = Rows(path, {"queries": 3})
    assert rows.rows == []
    assert not path.exists()
    rows.add([{"task": "a", "seed": 0}])
    again = Rows(path, {"queries": 3})
    again.add([{"task": "b", "seed": 0}])
    assert json.loads(path.read_text()) == {"queries": 3, "rows": [{"task": "a", "seed": 0}, {"task": "b", "seed": 0}]}
    assert again.has({"task": "a"})
    assert not again.has({"task": "a", "seed": 1})


def test_rows_of_other_settings_do_not_mix_and_a_report_takes_those_of_the_file(tmp_path):
    path = tmp_path / "rows.json"
    Rows(path, {"queries": 3}).add([{"task": "a"}])
    with pytest.raises(UserError, match="holds results of other settings; move it away or name another --json"):
        Rows(path, {"queries": 4})
    found = Rows(path, {"queries": 4, "later": 1}, report=True)
    assert (found.facts, found.rows) == ({"queries": 3, "later": None}, [{"task": "a"}])
    Rows(path, {"queries": 3, "later": None})  # a setting that older files do not tell of


@pytest.mark.parametrize("text", ["[1]", "{", '{"rows": 3}'])
def test_what_is_no_file_of_results(tmp_path, text):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(UserError, match="as a study's results"):
        Rows(tmp_path / "rows.json", {})
    with pytest.raises(UserError, match="is not there: nothing to report"):
        Rows(tmp_path / "none.json", {}, report=True)


def test_rows_by_part_stand_apart_in_the_file(tmp_path):
    path = tmp_path / "rows.json"
    Rows(path, {}, parted=True).add([{"part": "b", "x": 1}, {"part": "a", "x": 2}, {"part": "b", "x": 3}])
    assert json.loads(path.read_text()) == {"parts": {"b": [{"x": 1}, {"x": 3}], "a": [{"x": 2}]}}
    assert Rows(path, {}, parted=True).rows == [{"x": 1, "part": "b"}, {"x": 3, "part": "b"}, {"x": 2, "part": "a"}]
