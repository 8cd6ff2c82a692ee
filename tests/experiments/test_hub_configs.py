"""The tasks that `experiments/configs/hub_tasks.json` names, from rows in the form that those data sets have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from laai.tasks.loading import load_task
from laai.tasks.rows import to_example

CONFIGS = json.loads((Path(__file__).parents[2] / "experiments" / "configs" / "hub_tasks.json").read_text())
ARC = {"question": "Q", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "2"}
CSQA = {"question": "Q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
ROWS = {
    "ag_news": ({"text": "T", "label": 3}, "Text: T", "technology"),
    "arc_easy": (ARC, "Question: Q\nA. x\nB. y\nC. z", "y"),
    "arc_challenge": (ARC, "Question: Q\nA. x\nB. y\nC. z", "y"),
    "boolq": ({"question": "Q", "passage": "P", "answer": True}, "Passage: P\nQuestion: Q", "True"),
    "commonsense_qa": (CSQA, "Question: Q\nA. x\nB. y", "y"),
    "race": (
        {"article": "C", "question": "Q", "options": ["w", "x", "y", "z"], "answer": "D"},
        "Context: C\nQuestion: Q\nA. w\nB. x\nC. y\nD. z",
        "z",
    ),
    "qqp": ({"question1": "a", "question2": "b", "label": 1}, "Question 1: a\nQuestion 2: b", "duplicate"),
    "medmcqa": (
        {"question": "Q", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 0},
        "Question: Q\nA. w\nB. x\nC. y\nD. z",
        "w",
    ),
    "sciq": (
        {"question": "Q", "correct_answer": "r", "distractor1": "x", "distractor2": "y", "distractor3": "z"},
        "Question: Q",
        "r",
    ),
    "social_i_qa": (
        {"context": "C", "question": "Q", "answerA": "x", "answerB": "y", "answerC": "z", "label": "3"},
        "Context: C\nQuestion: Q\nA. x\nB. y\nC. z",
        "z",
    ),
    "sib200_eng_Latn": ({"text": "T", "category": "travel"}, "Text: T", "travel"),
}
CLASS_LABELS = {
    "sst2": (["negative", "positive"], {"sentence": "S", "label": 1}, "Review: S"),
    "mnli": (
        ["entailment", "neutral", "contradiction"],
        {"premise": "P", "hypothesis": "H", "label": 2},
        "Premise: P\nHypothesis: H",
    ),
    "financial_phrasebank": (["negative", "neutral", "positive"], {"sentence": "S", "label": 2}, "Sentence: S"),
}


def columns(name):
    """Those that say how a row is read."""
    return {k: v for k, v in CONFIGS[name]["columns"].items() if k not in ("split", "test_split", "revision")}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_hub_is_an_example(name):
    row, text, answer = ROWS[name]
    example = to_example(row, name, columns(name))
    assert (example.input, example.output) == (text, answer)
    assert example.choices is not None
    assert example.choices[example.label] == answer


@pytest.mark.parametrize("name", CLASS_LABELS)
def test_names_of_classes_are_the_choices(tmp_path, name):
    datasets = pytest.importorskip("datasets")
    names, row, text = CLASS_LABELS[name]
    features = {k: datasets.Value("string") for k in row} | {"label": datasets.ClassLabel(names=names)}
    table = {k: [v, v if k == "label" else "other"] for k, v in row.items()}
    data = datasets.Dataset.from_dict(table, features=datasets.Features(features))
    data.save_to_disk(tmp_path / "saved")
    example, _ = load_task(f"hf:{tmp_path}/saved", columns=columns(name)).examples
    assert (example.input, example.output, example.choices) == (text, names[row["label"]], tuple(names))


def test_every_task_of_the_suites_is_named(scripts):
    (matrix,) = scripts("transfer_tasks")
    named = {*matrix.PAPER_SOURCES, *matrix.PAPER_TARGETS, *matrix.LANGUAGES}
    assert named == set(CONFIGS)
    assert all(entry["instruction"] and entry["answer_prefix"] for entry in CONFIGS.values())
    assert set(ROWS) | set(CLASS_LABELS) | set(matrix.LANGUAGES) == named
