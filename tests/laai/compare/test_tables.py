"""How reports are written."""

from __future__ import annotations

import pytest

from laai.compare import about, counted, distinct, number, only, signed, table
from laai.evaluation.metrics import Interval


def test_a_table():
    assert table(["", "a", "b"], [["x", 1, ""]]) == ["| | a | b |", "| --- | ---: | ---: |", "| x | 1 |  |"]
    assert table(["a", "b", "c"], [], align="lrl") == ["| a | b | c |", "| --- | ---: | --- |"]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({}, "+0.250 (-0.100 to +0.600)"),
        ({"told": "3 pairs", "digits": 2}, "+0.25 (-0.10 to +0.60; 3 pairs)"),
        ({"told": "3 pairs", "few": "2 pairs"}, "+0.250 (2 pairs)"),
    ],
)
def test_differences_are_written_with_what_they_are_over(more, text):
    assert signed(Interval(0.25, -0.1, 0.6, 3), **more) == text
    assert signed(Interval(0.0, 0.0, 0.0, 0), **more) == "-"


def test_numbers_and_settings():
    assert (number(float("nan")), number(0.5, 1), counted(1, "pair"), counted(2, "pair")) == (
        "-",
        "0.5",
        "1 pair",
        "2 pairs",
    )
    assert about({"a": 1, "b": None, "c": False}) == "a 1, c False"


def test_axes_of_rows():
    rows = [{"a": 2, "b": 1}, {"a": 1, "b": 1}, {"a": 2, "b": 3}]
    assert distinct(rows, "a") == [2, 1], "in the order of the rows"
    assert distinct(rows, "a", "b") == [(2, 1), (1, 1), (2, 3)]
    assert only(rows, a=2, b=3) == rows[2:]
    assert only(rows, c=None) == rows
    assert only(rows, c=1) == []
