"""`CastStart`: the callback through which a `LAAIModule` asks for its start."""

from __future__ import annotations

import torch

import cast.start
from cast import CastStart, extract_own
from laai.prompts import Template


def test_extracted_once_a_run_and_anew_for_the_next(learn, tiny, words_data, quiet_trainer, word_task):
    start = CastStart()
    still = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "init": "cast", "init_scale": 1.0}
    for seed in (0, 1):
        data = words_data(seed=seed)
        module = learn(trainer=quiet_trainer(max_steps=1, callbacks=[start]), data=data, **still)
        assert start.extract(module) is start.extract(module)
        own = extract_own(tiny, Template(tiny.tokenizer, word_task), data.splits.train, progress=False)
        for key, vector in module.intervention.items():
            torch.testing.assert_close(vector, own[key])


def test_what_is_tested_is_no_source(learn, words_data, quiet_trainer, word_file, monkeypatch):
    """The task of the run itself as its source: its test and validation inputs are kept out."""
    pools, real = [], cast.start.extract
    monkeypatch.setattr(cast.start, "extract", lambda model, task, **o: (pools.append(task), real(model, task, **o))[1])
    start, data = CastStart(samples=50, shots=2), words_data(validation=4)
    trainer = quiet_trainer(max_steps=1, callbacks=[start])
    learn(trainer=trainer, data=data, init="cast", source=str(word_file))
    (pool,) = pools
    held_out = {example.input for example in (*data.splits.test, *data.splits.validation)}
    assert len(pool.examples) == 40 - 5 - 4
    assert not held_out & {example.input for example in pool.examples}
    assert start.vector.metadata["cast"]["samples"] == 31


def test_nothing_is_extracted_unasked(learn, quiet_trainer, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("extracted")

    monkeypatch.setattr("cast.start.extract_own", fail)
    start = CastStart()
    learn(trainer=quiet_trainer(max_steps=1, callbacks=[start]), init="zero")
    assert start.vector is None
