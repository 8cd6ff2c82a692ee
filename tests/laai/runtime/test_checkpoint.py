"""Checkpoints of `LAAIModule`: small, resumable, and refused where they do not belong."""

from __future__ import annotations

import pytest
import torch

from laai.errors import UserError
from laai.learn.module import LAAIModule
from laai.learn.stopping import StopAtBest, StopAtLoss
from laai.models.language_model import LanguageModel
from laai.runtime.checkpoints import RunCheckpoint, check_belongs


@pytest.fixture
def checkpoint(learn, quiet_trainer, tmp_path):
    """A function that learns for some steps and returns the module and the file of its last step."""

    def make(steps, callbacks=(), **options):
        saver = RunCheckpoint(tmp_path / f"after{steps}")
        trainer = quiet_trainer(max_steps=steps, enable_checkpointing=True, callbacks=[saver, *callbacks])
        return learn(trainer=trainer, **options), saver.last_model_path

    return make


def assert_equal_vectors(a, b):
    for key, vector in a.intervention.items():
        assert torch.equal(vector, b.intervention[key]), key


def test_it_holds_vectors_and_optimiser_only(checkpoint, tmp_path):
    module, path = checkpoint(2, layers="all")
    found = torch.load(path, weights_only=True)
    assert set(found["state_dict"]) == {f"steered.intervention.vectors.heads_{i}" for i in range(3)}
    for name, vector in found["state_dict"].items():
        assert vector.dtype == torch.float32
        assert torch.equal(vector, module.intervention.vectors[name.rpartition(".")[2]])
    assert len(found["optimizer_states"][0]["state"]) == 3
    assert (tmp_path / "after2" / "last.ckpt").stat().st_size < 40_000


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("init", ["zero", "cast"])
def test_resuming_gives_the_vectors_of_an_uninterrupted_run(learn, checkpoint, words_data, init, batch_size):
    """With batches of 4 of 6 examples the order of the second epochs counts too."""
    options = {"init": init, "l1": 0.05, "schedule": "constant"}
    whole = learn(steps=6, data=words_data(batch_size=batch_size), **options)
    _, path = checkpoint(4, data=words_data(batch_size=batch_size), **options)
    resumed = learn(steps=6, data=words_data(batch_size=batch_size), ckpt_path=path, **options)
    assert resumed.trainer.global_step == 6
    assert_equal_vectors(whole, resumed)


@pytest.mark.parametrize("site", ["heads", "residual"])
def test_resuming_in_the_middle_of_an_epoch(learn, quiet_trainer, words_data, tmp_path, site, fault):
    """From every step of three epochs of three batches; the engine keeps prefixes and, at one layer, states."""
    data, options = words_data(7, batch_size=3), {"site": site, "layers": [2], "schedule": "linear"}
    saver = RunCheckpoint(tmp_path, every_seconds=0)
    saver.save_top_k = -1
    trainer = quiet_trainer(max_steps=9, enable_checkpointing=True, callbacks=[StopAtLoss(0.0), saver])
    whole = learn(trainer=trainer, data=data, **options)
    assert whole.engine.way is not None
    for step in range(1, 9):
        callbacks = [StopAtLoss(0.0), RunCheckpoint(tmp_path / "other")]
        trainer = quiet_trainer(max_steps=9, enable_checkpointing=True, callbacks=callbacks)
        resumed = learn(trainer=trainer, data=data, ckpt_path=tmp_path / f"step={step}.ckpt", **options)
        assert resumed.trainer.global_step == 9
        assert_equal_vectors(whole, resumed)
    fault("resumed after each step, in the middle of epochs too", 8, "nothing lost: the bits of an uninterrupted run")


def test_a_run_that_had_stopped_stays_stopped(learn, checkpoint, words_data):
    """Killed while testing, say: going on from its last checkpoint learns no further."""
    data = words_data(6, batch_size=4)
    module, path = checkpoint(6, [StopAtLoss(1e6)], data=data)
    assert module.trainer.global_step == 2
    resumed = learn(steps=6, data=data, ckpt_path=path, callbacks=[StopAtLoss(1e6)])
    assert resumed.trainer.global_step == 2
    assert_equal_vectors(module, resumed)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_resuming_with_a_threshold_on_the_loss(learn, checkpoint, words_data, batch_size):
    """Lightning ends the checkpoint's epoch first, where no loss is known yet."""
    data = words_data(batch_size=batch_size)
    _, path = checkpoint(2, [StopAtLoss(0.0)], data=data)
    resumed = learn(steps=5, data=data, ckpt_path=path, callbacks=[StopAtLoss(0.0)])
    assert resumed.trainer.global_step == 5
    stopped = learn(steps=8, data=data, ckpt_path=path, callbacks=[StopAtLoss(1e6)])
    assert stopped.trainer.global_step in (3, 4), "at the end of the first epoch after"


def test_resuming_remembers_the_best_vectors(learn, checkpoint, quiet_trainer, words_data, monkeypatch):
    scores = [3.0, 1.0, 2.0, 4.0, 5.0]  # of each validation
    monkeypatch.setattr(LAAIModule, "on_validation_epoch_end", lambda self: self.log("val/nll", scores.pop(0)))
    data = words_data(validation=3)
    stopper = StopAtBest(5)
    _, path = checkpoint(3, [stopper], data=data)
    best = {name: vector.clone() for name, vector in stopper.state_dict()["best"].items()}
    later = StopAtBest(5)
    trainer = quiet_trainer(max_steps=5, enable_checkpointing=True, callbacks=[later])
    resumed = learn(trainer=trainer, data=data, ckpt_path=path)
    for name, vector in resumed.state_dict().items():
        assert torch.equal(vector, best[name])


def test_another_model_is_refused(learn, checkpoint, character_model, tiny):
    _, path = checkpoint(1)
    other = LanguageModel(character_model("llama").llm, tiny.tokenizer, "other")
    assert other.config_hash != tiny.config_hash
    found = torch.load(path, weights_only=True)
    found["laai"]["config_hash"] = other.config_hash
    torch.save(found, path)
    with pytest.raises(UserError, match="made for"):
        learn(ckpt_path=path)


@pytest.mark.parametrize("change", ["rename", "drop", "add"])
def test_other_keys_are_refused(learn, checkpoint, change):
    """Lightning would load what it finds and leave the rest zero, without a word."""
    _, path = checkpoint(1, layers="all")
    found = torch.load(path, weights_only=True)
    state = found["state_dict"]
    name = "steered.intervention.vectors.heads_1"
    if change != "add":
        vector = state.pop(name)
    if change != "drop":
        state[name.replace("heads_1", "heads_7")] = vector if change == "rename" else torch.zeros(32)
    torch.save(found, path)
    with pytest.raises(UserError, match="heads_"):
        learn(ckpt_path=path, layers="all")


def test_a_checkpoint_of_other_layers_is_refused(learn, checkpoint):
    _, path = checkpoint(1, site="residual", layers=[0])
    with pytest.raises(UserError, match="residual_"):
        learn(ckpt_path=path, site="residual", layers=[1])


def test_other_examples_are_refused(learn, checkpoint, words_data):
    """The same model and layers, but another draw, number or style: its vectors are another task's."""
    _, path = checkpoint(2, data=words_data(6))
    for other in (words_data(5), words_data(6, seed=1), words_data(6, validation=1)):
        with pytest.raises(UserError, match="the checkpoint learned from 6 examples of colours"):
            learn(ckpt_path=path, data=other)
    assert learn(ckpt_path=path, data=words_data(6)).trainer.global_step == 3


def test_another_revision_is_refused():
    made = {"laai": {"base_model": "m", "revision": "a", "config_hash": "1"}, "state_dict": {"v": 0}}
    here = {"base_model": "m", "revision": "a", "config_hash": "1"}
    check_belongs(made, here, ["v"], {})
    check_belongs(made, here | {"revision": None}, ["v"], {})  # a local copy knows none
    with pytest.raises(UserError, match="made for revision a, not for b"):
        check_belongs(made, here | {"revision": "b"}, ["v"], {})
