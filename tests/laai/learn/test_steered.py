"""`SteeredLM` and `answer_nll` against log-likelihoods worked out by hand, one unpadded row at a time."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from laai.engine import Engine, answer_nll, mean_nll
from laai.engine.forward import last_logits
from laai.learn.steered import SteeredLM
from laai.prompts.batches import IGNORE, Prompt, collate
from laai.steering.intervention import Intervention
from tests.tiny_models import (
    ARCHITECTURES,
    build,
    language_model,
    model_of,
    pad,
    random_vectors,
    steered_by_hand,
    tokens,
)

CLOSE = {"rtol": 0, "atol": 5e-5}  # nats; the values are of size 5


def prompt_of(prefix, answer, seed):
    ids = tokens(1, prefix + 1 + answer, seed=seed)[0].tolist()
    return Prompt(tuple(ids[:prefix]), tuple(ids[prefix:]))


PROMPTS = [prompt_of(6, 1, 1), prompt_of(0, 3, 2), prompt_of(4, 2, 3), prompt_of(2, 0, 4)]


@torch.no_grad()
def nll_by_hand(model, name, vectors, positions, prompt):
    """Negative log-likelihood of each answer token."""
    ids = torch.tensor([prompt.prefix + prompt.suffix])
    last = len(prompt.prefix)
    columns = {"last_prompt": [last], "generated": range(last, ids.shape[1]), "all": range(ids.shape[1])}[positions]
    with steered_by_hand(model, name, vectors, [columns]):
        scores = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    return [-scores[last + j, token].item() for j, token in enumerate(prompt.answer)]


@pytest.mark.parametrize("positions", ["last_prompt", "generated", "all"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loss_of_each_answer_token(name, positions):
    model, vectors = model_of(name), random_vectors(name, [("residual", 0), ("heads", 2)])
    batch = collate(PROMPTS, pad=0)
    steered = SteeredLM(Engine(model), Intervention(vectors, positions=positions))
    try:
        with torch.no_grad():
            nll = steered(batch).nll
    finally:
        steered.detach()
    assert nll.shape == batch.labels.shape
    assert nll.dtype == torch.float32
    for row, prompt in enumerate(PROMPTS):
        expected = nll_by_hand(model.llm, name, vectors, positions, prompt)
        torch.testing.assert_close(nll[row, : len(expected)], torch.tensor(expected), **CLOSE)
        assert not nll[row, len(expected) :].any()
        plain = nll_by_hand(model.llm, name, {}, positions, prompt)
        torch.testing.assert_close(answer_nll(model, batch)[row, : len(plain)].detach(), torch.tensor(plain), **CLOSE)
    total = sum(nll_by_hand(model.llm, name, vectors, positions, p)[j] for p in PROMPTS for j in range(len(p.answer)))
    assert mean_nll(nll, batch.labels).item() == pytest.approx(total / 6, abs=1e-4)


@pytest.mark.parametrize("positions", ["last_prompt", "generated", "all"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_frozen_prefix_changes_neither_loss_nor_gradient(name, positions):
    model, vectors = model_of(name), random_vectors(name, [("residual", 0), ("heads", 2)], 0.3)
    batches = [collate(PROMPTS, pad=0), collate(PROMPTS[::-1], pad=0)]
    found, runs = {}, []
    handle = model.llm.get_input_embeddings().register_forward_hook(lambda _, __, out: runs.append(out.shape[1]))
    for frozen in (False, True):
        steered = SteeredLM(Engine(model, "auto" if frozen else "off"), Intervention(vectors, positions=positions))
        try:
            for step, batch in enumerate((batches[0], batches[0], batches[1], batches[0])):
                runs.clear()
                nll = steered(batch).nll
                steered.intervention.zero_grad()
                mean_nll(nll, batch.labels).backward()
                grads = [vector.grad.clone() for vector in steered.intervention.parameters()]
                found[frozen, step] = [nll.detach(), *grads]
                if step == 1:
                    suffix = batch.suffix_ids.shape[1] - 1  # the last answer token predicts nothing
                    whole = suffix + batch.prefix_ids.shape[1]
                    assert runs == [suffix if frozen and positions != "all" else whole], "what the second step runs"
        finally:
            steered.detach()
    handle.remove()
    for step in range(4):
        for frozen, plain in zip(found[True, step], found[False, step], strict=True):
            torch.testing.assert_close(frozen, plain, rtol=0, atol=2e-5 * max(1.0, plain.abs().max().item()))


def test_mean_of_no_answer_is_zero_and_not_nan():
    labels = torch.full((2, 3), IGNORE)
    assert mean_nll(torch.zeros(2, 3), labels).item() == 0.0


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_inside_peft_positions_follow_the_mask(name):
    model = build(name)
    target = {"llama": "o_proj", "gpt2": "c_proj", "opt": "out_proj"}[name]
    options = {"target_modules": [target], "init_lora_weights": False, "fan_in_fan_out": name == "gpt2"}
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    nll = answer_nll(language_model(wrapped), collate(PROMPTS, pad=0)).detach()
    for row, prompt in enumerate(PROMPTS):
        expected = nll_by_hand(model, name, {}, "all", prompt)
        torch.testing.assert_close(nll[row, : len(expected)], torch.tensor(expected), **CLOSE)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_last_logits_are_those_of_the_last_columns(name):
    model = model_of(name)
    ids, mask = pad([tokens(1, 5)[0], tokens(1, 3)[0]], "left")
    with torch.no_grad():
        found, whole = last_logits(model, ids, mask, keep=2), last_logits(model, ids, mask, keep=5)
    assert found.shape == (2, 2, 97)
    torch.testing.assert_close(found, whole[:, -2:], rtol=0, atol=2e-5)


def test_gradient_reaches_the_vectors_and_nothing_else():
    model = language_model(build("llama"))
    steered = SteeredLM(Engine(model), Intervention.zeros(model, "heads", [0, 1, 2]))
    trained = {n for n, p in steered.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in steered.named_parameters() if n.startswith("intervention.")}
    assert len(trained) == 3
    batch = collate(PROMPTS, pad=0)
    mean_nll(steered(batch).nll, batch.labels).backward()
    assert all(p.grad is None for p in model.llm.parameters())
    for vector in steered.intervention.parameters():
        assert vector.grad.isfinite().all()
        assert vector.grad.abs().max() > 0


def test_training_mode_does_not_reach_the_model():
    llm = build("gpt2").train()
    llm.transformer.drop = nn.Dropout(0.5)
    model, batch = language_model(llm), collate(PROMPTS, pad=0)
    expected = answer_nll(model, batch).detach()
    steered = SteeredLM(Engine(model), Intervention.zeros(model, "residual", [0]))
    for returned in (steered, steered.train(), steered.train(False), steered.train(True)):
        assert returned is steered
        assert not any(module.training for module in llm.modules())
    assert steered.training
    assert steered.intervention.training
    torch.testing.assert_close(steered(batch).nll.detach(), expected, **CLOSE)


def test_detach_restores():
    model, batch = language_model(build("llama")), collate(PROMPTS, pad=0)
    before = answer_nll(model, batch).detach()
    steered = SteeredLM(Engine(model), Intervention.random(model, "residual", [0], norm=10.0))
    assert not torch.allclose(steered(batch).nll, before, atol=1e-2)
    steered.detach()
    steered.detach()  # a second time does nothing
    assert torch.equal(answer_nll(model, batch).detach(), before)
    assert "generate" not in vars(model.llm)


def test_a_step_on_the_vectors_lowers_the_loss():
    model, batch = language_model(build("llama")), collate(PROMPTS, pad=0)
    steered = SteeredLM(Engine(model), Intervention.zeros(model, "residual", [1], positions="generated"))
    optimiser, losses = torch.optim.Adam(steered.intervention.parameters(), lr=0.05), []
    for _ in range(20):
        loss = mean_nll(steered(batch).nll, batch.labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
