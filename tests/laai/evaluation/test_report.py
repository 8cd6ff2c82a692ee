"""What people read after a run."""

from __future__ import annotations

import io
import json
import math

from laai.evaluation.measuring import Measured
from laai.evaluation.report import answers_markdown, markdown_table, print_table, write_results
from laai.evaluation.scores import Scores
from laai.tasks.examples import Example


def row(method, choice=0.5, nll=1.234):
    return Scores(method, 0.25, 0.1, 0.4, choice, choice, choice, choice, nll, 20, 12.5, 3.6)


def answer(number, text, exact=False):
    return Measured(number, text, exact, 1.0, None, None, (), 5, 0.1)


def test_the_table_keeps_its_cells_without_a_terminal():
    file = io.StringIO()
    print_table([row("zero-shot"), row("laai", None)], "antonym: 10 examples", file)
    lines = file.getvalue().splitlines()
    assert "antonym: 10 examples" in lines[0]
    (zero,) = [line for line in lines if "zero-shot" in line]
    assert all(cell in zero for cell in ("0.25", "0.10 to 0.40", "0.50", "1.23", "12.5", "4"))


def test_markdown_has_a_cell_for_each_column():
    lines = markdown_table([row("zero-shot"), row("laai", None)]).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_answers_side_by_side():
    examples = [Example("a|b", "c"), Example("d\ne", "f"), Example("g", "h")]
    answers = {
        "zero": [answer(1, "x"), answer(0, "y|z"), answer(2, "h", True)],
        "laai": [answer(0, "c", True), answer(2, "i"), answer(1, "f", True)],
    }
    lines = answers_markdown(examples, answers).splitlines()
    assert len(lines) == 5
    cells = [line.replace("\\|", "/").strip("|").split("|") for line in lines]
    assert all(len(line) == 4 for line in cells)
    assert [cell.strip() for cell in cells[2]] == ["a/b", "c", "y/z", "**c**"]
    assert [cell.strip() for cell in cells[3]] == ["d e", "f", "x", "**f**"]
    assert len(answers_markdown(examples, answers, limit=1).splitlines()) == 3


def test_answers_of_one_device_of_two():
    examples = [Example(str(i), "x") for i in range(4)]
    answers = {"zero": [answer(0, "a"), answer(2, "b")], "laai": [answer(0, "c"), answer(2, "d")]}
    lines = answers_markdown(examples, answers).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_results_are_strict_json(tmp_path):
    path = write_results(
        tmp_path / "r.json", {"task": "größe"}, [row("a", nll=math.nan)], {"fit": 1.23456}, {"fit": 9.87}
    )
    found = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: 1 / 0)
    assert found["task"] == "größe"
    assert found["rows"][0]["nll"] is None
    assert found["seconds"]["fit"] == 1.235
    assert found["peak_megabytes"] == {"fit": 9.9}
