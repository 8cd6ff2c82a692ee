"""What TensorBoard shows, read back from the event files of a run."""

from __future__ import annotations

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from laai.learn.monitor import Monitor
from laai.steering.intervention import Intervention


@pytest.fixture
def read():
    def events(folder):
        accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0, "scalars": 0})
        accumulator.Reload()
        return accumulator

    return events


@pytest.mark.parametrize("site", ["heads", "residual"])
def test_a_runs_page(run_train, read, site):
    folder = run_train("--model.site", site, "--model.layers", "all", "--model.group_l2", "0.01")
    events = read(folder)
    tags = events.Tags()
    losses = events.Scalars("train/loss")
    assert [e.step for e in losses] == [0, 1, 2]
    assert all(e.value > 0 for e in losses)
    assert {"train/penalty", "vectors/mean relative norm", "vectors/share of zero groups"} <= set(tags["scalars"])
    assert {"final/exact_match", "final/nll", "final/choice_accuracy"} <= set(tags["scalars"])
    assert all(e.value > 0 for e in events.Scalars("train/gradient norm"))
    figures = {"vectors/norm by layer over steps", "vectors/loss without each layer"}
    figures |= {"vectors/norm by head"} if site == "heads" else set()
    assert figures <= set(tags["images"])
    for name in figures:
        image = events.Images(name)[0]
        assert image.encoded_image_string.startswith(b"\x89PNG")
        assert min(image.width, image.height) > 100
    texts = {name.removesuffix("/text_summary"): events.Tensors(name) for name in tags["tensors"] if "text" in name}
    assert {"results", "answers"} <= set(texts)
    assert "few-shot" in texts["results"][0].tensor_proto.string_val[0].decode()
    hparams = events.summary_metadata
    assert any(name.startswith("_hparams_/") for name in hparams)


def test_validation_by_example(run_train, read):
    folder = run_train("--data.validation", "4", "--model.layers", "all")
    image = read(folder).Images("val/NLL by example")[0]
    assert image.encoded_image_string.startswith(b"\x89PNG")


def test_validation_losses_are_kept_in_the_order_of_the_examples(learn, words_data):
    module = learn(steps=2, data=words_data(validation=3, eval_batch_size=2))
    assert [losses.shape for losses in module.scoring.validated] == [(3,), (3,)]
    assert module.scoring.validated[1].mean() < module.scoring.validated[0].mean()


def test_relative_norms_by_hand(learn, quiet_trainer):
    monitor = Monitor()
    module = learn(steps=2, callbacks=[monitor], layers="all", site="heads")
    assert len(monitor._history) == 3, "the start and each step"
    assert bool((monitor._history[0] == 0).all())
    for i, layer in enumerate(module.intervention.layers):
        vector = module.intervention["heads", layer].detach()
        expected = vector.norm() / (module.prepared.rms[layer] * len(vector) ** 0.5)
        torch.testing.assert_close(monitor._history[-1][i], expected, rtol=1e-4, atol=1e-6)
        heads = vector.view(4, -1)
        per_head = heads.norm(dim=1) / (module.prepared.rms[layer] * heads.shape[1] ** 0.5)
        torch.testing.assert_close(monitor._last[i], per_head, rtol=1e-4, atol=1e-6)


def test_a_second_fit_begins_anew(learn, tiny):
    monitor = Monitor()
    for steps in (2, 1):
        learn(steps=steps, callbacks=[monitor], given=Intervention.zeros(tiny, "heads", [0]), layers=[0])
        assert len(monitor._history) == steps + 1
