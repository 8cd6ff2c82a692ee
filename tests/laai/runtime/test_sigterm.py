"""SIGTERM ends tests and extractions, keeps what is done, and leaves the model clean."""

from __future__ import annotations

import os
import signal

import pytest

from cast.extraction.contrast import Contrast
from cast.extraction.vectors import extract
from laai.evaluation import arms as comparing
from laai.evaluation.arms import Arm, evaluate_arms
from laai.steering.intervention import Intervention


@pytest.fixture(autouse=True)
def own_handler():
    """Whatever a failing test leaves behind, the test session keeps its handler."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before, "Lightning puts it back"


def terminated(function, after):
    """The function, which is sent SIGTERM after so many calls."""
    calls = []

    def run(*arguments, **options):
        calls.append(1)
        if len(calls) == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **options)

    return run


def test_an_extraction_ends_and_goes_on(tiny, word_task, quiet_trainer, tmp_path, monkeypatch):
    options = {"samples": 8, "shots": 2, "batch_size": 2, "progress": False, "partial": tmp_path / "v.partial"}
    ran, run = [], Contrast.run
    monkeypatch.setattr(Contrast, "run", terminated(run, 3))
    with pytest.raises(SystemExit) as caught:
        extract(tiny, word_task, **options, trainer=quiet_trainer())
    assert caught.value.code == 143
    assert (tmp_path / "v.partial.0").exists()
    monkeypatch.setattr(Contrast, "run", lambda self, pairs: (ran.extend(pairs), run(self, pairs))[1])
    extract(tiny, word_task, **options, trainer=quiet_trainer())
    assert len(ran) == 4, "two of four batches were kept"


def test_a_comparison_ends(tiny, words_data, quiet_trainer, monkeypatch):
    vector = Intervention.random(tiny, "residual", [1], norm=3.0)
    monkeypatch.setattr(comparing, "measure", terminated(comparing.measure, 2))
    with pytest.raises(SystemExit) as caught:
        evaluate_arms(quiet_trainer(), tiny, words_data(test=6, eval_batch_size=2), [Arm("c", vector)])
    assert caught.value.code == 143
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.llm.modules())


def test_a_handler_of_ones_own_is_left_alone(tiny, words_data, quiet_trainer, monkeypatch):
    import lightning.pytorch as pl

    seen = []

    class Own(pl.Callback):
        def on_test_start(self, *_):
            signal.signal(signal.SIGTERM, lambda *_: seen.append(1))

    monkeypatch.setattr(comparing, "measure", terminated(comparing.measure, 1))
    evaluate_arms(quiet_trainer(callbacks=[Own()]), tiny, words_data(test=2), [Arm("a")])
    assert seen == [1]
