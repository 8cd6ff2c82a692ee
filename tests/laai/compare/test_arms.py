"""Methods by name, measured side by side."""

from __future__ import annotations

import pytest

from laai.compare import compare
from laai.errors import UserError
from laai.evaluation.arms import Arm
from laai.steering.intervention import Intervention


def test_methods_and_arms_on_the_same_queries(tiny, words_data, quiet_trainer):
    vector = Intervention.random(tiny, "residual", [1], norm=3.0)
    data = words_data(test=4)
    found = compare(
        tiny, data, ["zero-shot", Arm("own", vector), "few-shot", "steered"], made={"steered": 1.0 * vector}
    )
    rows = [one.as_row() for one in found]
    assert [row["method"] for row in rows] == ["zero-shot", "own", "few-shot", "steered"]
    assert all(len(row["exact"]) == len(row["choice"]) == row["n"] == 4 for row in rows)
    assert rows[1]["nll"] == rows[3]["nll"] != rows[0]["nll"]
    assert rows[2]["prompt_tokens"] > rows[0]["prompt_tokens"]
    (again,) = compare(tiny, data, ["zero-shot"], trainer=quiet_trainer())
    assert again.as_row()["nll"] == rows[0]["nll"]


def test_an_unknown_method_is_refused_before_anything_runs(tiny, words_data, monkeypatch):
    monkeypatch.setattr("laai.compare.arms.evaluate_arms", lambda *_: pytest.fail("nothing is to be measured"))
    with pytest.raises(UserError, match=r"expected a method among .*, found 'few_shot'; did you mean few-shot\?"):
        compare(tiny, words_data(), ["zero-shot", "few_shot"])
