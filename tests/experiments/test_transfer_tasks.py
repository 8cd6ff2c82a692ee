"""Tasks of the transfer matrix: answers by letter, and which tasks cannot be answered so."""

from __future__ import annotations

import json

import pytest

from laai.errors import UserError


@pytest.fixture
def tasks(scripts):
    (found,) = scripts("transfer_tasks")
    return found


@pytest.fixture
def quiz(tmp_path):
    """A function that writes a folder `quiz` with two questions to train on and one to test."""

    def write(listed, choices, output):
        (tmp_path / "quiz").mkdir()
        for name, questions in (("train", "ab"), ("test", "c")):
            rows = [{"input": f"Question: {q}?\n{listed}", "choices": choices, "output": output} for q in questions]
            (tmp_path / "quiz" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    return write


def test_answers_by_letter(tasks, quiz):
    """An option may take several lines, and the letters are those of the query's own options."""
    folder = quiz("A. hot\nB. cold,\nor cool\nC. mild", ["hot", "cold,\nor cool", "mild"], "cold,\nor cool")
    found, plain = (tasks.find_task(name, folder) for name in ("quiz@letters", "quiz"))
    assert [(e.output, e.choices, e.label) for e in found.test_examples] == [("B", ("A", "B", "C"), 1)]
    assert [e.input for e in found.examples] == [e.input for e in plain.examples]
    assert found.instruction == "Reply with its letter."
    assert plain.examples[0].output == "cold,\nor cool"
    assert found.name == plain.name, "it draws the same queries"


@pytest.mark.parametrize(
    ("listed", "choices"),
    [("A. hot\nB. mild", ["hot", "cold"]), ("A. hotter\nB. cold", ["hot", "cold"]), ("A. hot\nB. cold", None)],
)
def test_what_lists_no_options_has_no_letters(tasks, quiz, listed, choices):
    folder = quiz(listed, choices, "hot")
    with pytest.raises(UserError, match=r"expected queries of quiz to list all options, as 'A. …', found 'Question"):
        tasks.find_task("quiz@letters", folder)


def test_the_suite_of_letters_holds_tasks_of_the_papers_suite(tasks):
    for own, papers in zip(tasks.SUITES["letters"], tasks.SUITES["paper"], strict=True):
        assert {name.removesuffix("@letters") for name in own} < set(papers)
        assert all(name.endswith("@letters") for name in own)
