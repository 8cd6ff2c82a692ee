"""Methods side by side through Lightning's test loop."""

from __future__ import annotations

import pytest
import torch

from laai.errors import UserError
from laai.evaluation import arms as comparing
from laai.evaluation.arms import Arm, evaluate_arms
from laai.evaluation.measuring import measure
from laai.prompts.templates import Template
from laai.steering.intervention import Intervention


@pytest.fixture
def vector(tiny):
    return Intervention.random(tiny, "residual", [1], norm=3.0)


def test_rows_equal_what_is_measured_directly(tiny, word_task, words_data, quiet_trainer, vector):
    data = words_data(test=7, eval_batch_size=3)
    arms = [Arm("a"), Arm("b", demonstrations=data.splits.train), Arm("c", vector)]
    tests = evaluate_arms(quiet_trainer(), tiny, data, [*arms, Arm("a again")])
    template, examples = Template(tiny.tokenizer, word_task), list(enumerate(data.splits.test))
    for test, arm in zip(tests, arms, strict=False):
        if arm.steering is None:
            direct = measure(tiny, template, examples, arm.demonstrations)
        else:
            with arm.steering.on(tiny):
                direct = measure(tiny, template, examples)
        scores = test.scores
        assert (scores.method, scores.n) == (arm.name, 7)
        assert scores.nll == pytest.approx(sum(m.nll for m in direct) / 7, rel=1e-5)
        assert scores.exact_match == pytest.approx(sum(m.exact for m in direct) / 7)
        assert scores.choice_accuracy == pytest.approx(sum(m.choice_sum for m in direct) / 7)
        assert scores.choice_accuracy_mean == pytest.approx(sum(m.choice_mean for m in direct) / 7)
        assert scores.prompt_tokens == pytest.approx(sum(m.prompt_tokens for m in direct) / 7)
        assert sorted(m.row for m in test.measured) == list(range(7))
        assert {m.row: m.answer for m in test.measured} == {m.row: m.answer for m in direct}
    assert tests[3].scores.nll == tests[0].scores.nll, "no method leaves a trace"
    assert len({round(test.scores.nll, 4) for test in tests}) == 3


def test_the_answers_limit_is_that_of_all_examples(tiny, words_data, quiet_trainer, monkeypatch):
    """Else a batch of short answers would cut, and so credit, answers that go on."""
    limits, real = [], comparing.measure
    monkeypatch.setattr(
        comparing, "measure", lambda *a, **o: limits.append(o["max_new_tokens"]) or real(*a, **o)
    )  # fmt: skip
    data = words_data(test=8, eval_batch_size=1)
    evaluate_arms(quiet_trainer(), tiny, data, [Arm("a")])
    template = data.template(tiny.tokenizer)
    longest = max(len(template.encode(e.input, answer=e.output).answer) for e in data.splits.test)
    assert limits == [longest] * 8


def test_the_model_is_unhooked_when_measuring_raises(tiny, words_data, quiet_trainer, vector, monkeypatch):
    def fail(*_, **__):
        assert any(m._forward_hooks for m in tiny.llm.modules())
        raise KeyError("failed on purpose")

    monkeypatch.setattr(comparing, "measure", fail)
    with pytest.raises(KeyError):
        evaluate_arms(quiet_trainer(), tiny, words_data(), [Arm("a", vector)])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.llm.modules())


def test_no_examples_and_vectors_that_do_not_fit(tiny, words_data, quiet_trainer):
    with pytest.raises(UserError):
        evaluate_arms(quiet_trainer(), tiny, words_data(test=0), [Arm("a")])
    wide = Intervention({("residual", 0): torch.zeros(33)})
    with pytest.raises(UserError, match="width"):
        evaluate_arms(quiet_trainer(), tiny, words_data(), [Arm("a", wide)])
