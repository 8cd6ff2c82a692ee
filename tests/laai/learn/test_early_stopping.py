"""When to stop, and with which vectors."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from laai.learn.module import LAAIModule
from laai.learn.stopping import StopAtBest, StopAtLoss


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
    monkeypatch.setattr(LAAIModule, "on_validation_epoch_end", lambda self: self.log("val/nll", left.pop(0)))
    trainer = quiet_trainer(max_steps=len(scores), callbacks=[record, StopAtBest(patience)])
    module = learn(trainer=trainer, data=words_data(validation=3))
    assert trainer.global_step == len(record.vectors) == steps
    for name, vector in module.state_dict().items():
        assert torch.equal(vector, record.vectors[best][name])
    assert all(v.requires_grad for _, v in module.intervention.items())


def test_a_threshold_on_the_training_loss(learn, quiet_trainer):
    record = Record()
    options = {"steps": 6, "layers": "all", "distill": 0.0}
    learn(callbacks=[record], **options)
    threshold = (record.losses[2] + record.losses[3]) / 2
    stopped = Record()
    learn(callbacks=[stopped, StopAtLoss(threshold)], **options)
    assert len(stopped.losses) == 4, "the first step below it is the last"
    assert stopped.losses == pytest.approx(record.losses[:4])
    never = Record()
    learn(callbacks=[never, StopAtLoss(0.0)], **options)
    assert len(never.losses) == 6


def test_the_threshold_is_on_all_batches_of_an_epoch(learn, words_data):
    """Batches of 4 and 2: neither the first nor the last batch alone stops the fit, and tokens count equally."""
    options = {"steps": 8, "layers": "all", "distill": 0.0, "data": words_data(6, batch_size=4)}
    record = Record()
    learn(callbacks=[record], **options)
    pairs = list(zip(record.losses[::2], record.losses[1::2], strict=True))
    threshold = (2 * pairs[2][0] + pairs[2][1]) / 3 + 1e-3  # all answers have equally many tokens
    first = next(i for i, (four, two) in enumerate(pairs) if (2 * four + two) / 3 < threshold)
    stopped = Record()
    learn(callbacks=[stopped, StopAtLoss(threshold)], **options)
    assert len(stopped.losses) == 2 * (first + 1)
