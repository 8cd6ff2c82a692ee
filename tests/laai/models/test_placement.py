"""What the vectors and the model are kept in and where: precisions, recomputation, several devices of one process."""

from __future__ import annotations

import pytest
import torch

from laai.engine import Engine
from laai.errors import UserError
from laai.evaluation.arms import Arm, Evaluation
from laai.learn.steered import SteeredLM
from laai.models.loading import load_model
from laai.steering.intervention import Intervention
from tests.laai.learn.test_module import Losses, assert_close, vectors


def test_a_bf16_model_has_fp32_vectors(learn, tiny_folder):
    model = load_model(str(tiny_folder), dtype="bfloat16")
    losses = Losses()
    module = learn(steps=8, model=model, layers="all", callbacks=[losses])
    assert model.llm.dtype == torch.bfloat16
    assert all(v.dtype == torch.float32 for v in vectors(module).values())
    assert losses.values[-1] < losses.values[0] - 0.05


def test_mixed_precision_learns_the_same_in_fp32_vectors(learn, quiet_trainer):
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        record = Losses()
        trainer = quiet_trainer(max_steps=8, precision=precision, callbacks=[record])
        module = learn(trainer=trainer, layers="all")
        assert all(v.dtype == torch.float32 and bool(v.ne(0).all()) for v in vectors(module).values())
        losses[precision] = record.values
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.02)
    assert losses["bf16-mixed"] != losses["32-true"]


@pytest.mark.parametrize("site", ["heads", "residual"])
def test_activation_checkpointing_changes_nothing_but_memory(learn, tiny, site):
    calls = []
    handle = tiny.llm.model.layers[2].mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    try:
        plain = learn(steps=3, site=site, layers=[0, 1], prefix_cache="off")
        before = sum(calls)
        calls.clear()
        saved = learn(steps=3, site=site, layers=[0, 1], activation_checkpointing=True)
    finally:
        handle.remove()
    assert sum(calls) == before + 3, "the last layer is run again in each of three backward passes"
    assert_close(vectors(saved), vectors(plain), rtol=1e-5, atol=1e-7)
    assert not tiny.llm.is_gradient_checkpointing
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in tiny.llm.modules())


def test_one_process_may_spread_the_model(learn, tiny_folder, words_data):
    """A map of one device here; what is spread over several stays where it is."""
    module = learn(steps=2, model=load_model(str(tiny_folder), device_map="cpu"), layers=[1])
    assert module.trainer.global_step == 2
    spread = load_model(str(tiny_folder))
    spread.llm.hf_device_map = {"model.embed_tokens": 0, "model.layers": 1}
    steered = SteeredLM(Engine(spread), Intervention.zeros(spread, "heads", [1]))
    evaluation = Evaluation(spread, words_data(), Arm("zero-shot"))
    spread.to(torch.device("meta"))
    for module in (steered, evaluation):
        module.to(torch.float64)
        assert module.llm.dtype == torch.float32
        assert module.llm.device.type == "cpu"
    assert steered.intervention["heads", 1].dtype == torch.float64
    steered.detach()


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_precisions_that_would_cast_the_vectors_are_refused(learn, quiet_trainer, precision):
    with pytest.raises(UserError, match="fp32"):
        learn(trainer=quiet_trainer(precision=precision))
