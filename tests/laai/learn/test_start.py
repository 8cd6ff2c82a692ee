"""A CAST start: from the run's own examples, or from other tasks', less what is tested."""

from __future__ import annotations

import pytest
import torch

from cast import CastStart, extract, extract_own
from laai.errors import UserError
from laai.prompts.templates import Template
from laai.runtime.data import FewShotDataModule
from laai.tasks.examples import without
from laai.tasks.loading import load_task


def vectors(module):
    return {key: value.detach().clone() for key, value in module.intervention.items()}


def assert_close(a, b):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key])


def test_extracted_once_a_run(learn, tiny, words_data, word_task, monkeypatch):
    calls, real = [], extract_own
    monkeypatch.setattr("laai.learn.start.extract_own", lambda *a, **o: (calls.append(1), real(*a, **o))[1])
    still = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "init": "cast", "init_scale": 1.0}
    data = words_data(seed=1)
    module = learn(steps=1, data=data, **still)
    assert module.cast_vector() is module.cast_vector()
    assert calls == [1]
    own = extract_own(tiny, Template(tiny.tokenizer, word_task), data.splits.train, progress=False)
    for key, vector in module.intervention.items():
        torch.testing.assert_close(vector, own[key])


def test_what_is_tested_is_no_source(learn, words_data, word_file, monkeypatch):
    """The task of the run itself as its source: its test and validation inputs are kept out."""
    pools, real = [], extract
    monkeypatch.setattr("laai.learn.start.extract", lambda m, task, **o: (pools.append(task), real(m, task, **o))[1])
    data = words_data(validation=4)
    module = learn(steps=1, data=data, init="cast", source=str(word_file), cast=CastStart(samples=50, shots=2))
    (pool,) = pools
    held_out = {example.input for example in (*data.splits.test, *data.splits.validation)}
    assert len(pool.examples) == 40 - 5 - 4
    assert not held_out & {example.input for example in pool.examples}
    assert module.cast_vector().provenance.cast["samples"] == 31


def test_nothing_is_extracted_unasked(learn, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("extracted")

    monkeypatch.setattr("laai.learn.start.extract_own", fail)
    assert learn(steps=1, init="zero").prepared.cast is None


def test_cast_start_from_another_task(learn, tiny, word_file, words_data):
    data = words_data(seed=3, validation=2)
    module = learn(
        steps=1, init="cast", init_scale=1.0, source=str(word_file), layers=[0, 2], site="residual",
        optimizer=lambda p: torch.optim.SGD(p, lr=0.0), data=data,
        cast=CastStart(samples=4, shots=2),
    )  # fmt: skip
    source = without(load_task(word_file), {e.input for e in (*data.splits.test, *data.splits.validation)})
    expected = extract(
        tiny, source, samples=4, shots=2, site="residual", layers=[0, 2], seed=3, progress=False
    )  # fmt: skip
    assert_close(vectors(module), dict(expected.items()))
    start = module.learned().provenance.start
    assert (start["samples"], start["shots"], start["source"]) == (4, 2, "colours")


def test_cast_start_from_several_tasks(learn, tiny, word_file, words_data):
    still = {"steps": 1, "init": "cast", "init_scale": 1.0, "optimizer": lambda p: torch.optim.SGD(p, lr=0.0)}
    one, other = (
        vectors(learn(**still, source=source, cast=CastStart(samples=2, shots=2)))
        for source in (str(word_file), "antonym")
    )
    both = learn(**still, source=[str(word_file), "antonym"], cast=CastStart(samples=4, shots=2))
    assert_close(vectors(both), {key: (one[key] + other[key]) / 2 for key in one})
    parts = both.learned().provenance.start["combined"]
    assert [(part["source"], part["samples"], part["weight"]) for part in parts] == [
        ("colours", 2, 0.5),
        ("antonym", 2, 0.5),
    ]


def test_a_single_example_starts_from_built_in_tasks(learn, word_task):
    def starts(task, count):
        data = FewShotDataModule(task, count, test=2)
        return learn(steps=1, init="cast", data=data, cast=CastStart(samples=8, shots=1)).learned().provenance

    def sources(task):
        return [part["source"] for part in starts(task, 1).start["combined"]]

    assert sources(word_task) == ["antonym", "capital-country", "country-capital", "country-language"]
    assert sources("present-past") == ["singular-plural", "word-sentiment", "antonym", "capital-country"]
    assert starts(word_task, 2).start["own"] is True


def test_built_in_tasks_that_the_test_takes_most_of_are_passed_over(learn, word_task):
    """All countries but one are trained on or tested; too few examples are left to extract from."""
    data = FewShotDataModule("country-region", 1, test=None)
    module = learn(steps=1, init="cast", data=data, cast=CastStart(samples=20, shots=5))
    parts = module.learned().provenance.start["combined"]
    assert {part["source"] for part in parts}.isdisjoint({"country-capital", "country-language"})
    assert [part["samples"] for part in parts] == [5] * 4


@pytest.mark.parametrize("sizes", [{"samples": 0}, {"shots": 0}])
def test_no_samples_are_refused_not_made_one(sizes):
    with pytest.raises(UserError, match="at least 1 sample and 1 shot"):
        CastStart(**sizes)
