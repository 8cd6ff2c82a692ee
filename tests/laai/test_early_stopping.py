"""When to stop, and with which vectors."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from cast import CastStart
from laai.early_stopping import StopAtBest, StopAtLoss
from laai.module import LAAIModule


class Record(Callback):
    """The vectors and the loss of every step."""

    def __init__(self):
        self.vectors, self.losses = [], []

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.vectors.append({name: v.clone() for name, v in module.state_dict().items()})
        self.losses.append(float(outputs["loss"]))


@pytest.mark.parametrize(
    ("scores", "patience", "steps", "best"),
    [
        ([3.0, 2.0, 2.5, 2.4, 1.0], 2, 4, 1),
        ([3.0, 2.0, 2.5, 1.0, 1.5, 1.4, 0.1], 2, 6, 3),
        ([1.0, 2.0, 3.0], 1, 2, 0),
        ([5.0, 4.0, 3.0, 2.0, 1.0], 3, 5, 4),
        ([2.0, 2.0, 2.0, 2.0], 2, 3, 0),
    ],
)
def test_the_best_vectors_come_back(learn, words_data, quiet_trainer, monkeypatch, scores, patience, steps, best):
    left, record = list(scores), Record()
    monkeypatch.setattr(LAAIModule, "_log_scores", lambda self, stage: self.log("val/nll", left.pop(0)))
    trainer = quiet_trainer(max_steps=len(scores), callbacks=[CastStart(), record, StopAtBest(patience)])
    module = learn(trainer=trainer, data=words_data(validation=3))
    assert trainer.global_step == len(record.vectors) == steps
    for name, vector in module.state_dict().items():
        assert torch.equal(vector, record.vectors[best][name])
    assert all(v.requires_grad for _, v in module.intervention.items())


def test_a_threshold_on_the_training_loss(learn, quiet_trainer):
    record = Record()
    learn(steps=6, callbacks=[record], layers="all")
    threshold = (record.losses[2] + record.losses[3]) / 2
    stopped = Record()
    learn(steps=6, callbacks=[stopped, StopAtLoss(threshold)], layers="all")
    assert len(stopped.losses) == 4, "the first step below it is the last"
    assert stopped.losses == pytest.approx(record.losses[:4])
    never = Record()
    learn(steps=6, callbacks=[never, StopAtLoss(0.0)], layers="all")
    assert len(never.losses) == 6
