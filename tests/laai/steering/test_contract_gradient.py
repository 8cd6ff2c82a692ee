"""Gradients of the vectors, for every site and architecture, against autograd through plain hooks; dtypes; compile."""

import pytest
import torch
from torch import nn

from laai.errors import UserError
from laai.steering.intervention import Intervention
from laai.steering.positions import prompts_of
from tests.tiny_models import (
    ARCHITECTURES,
    build,
    hooks_of,
    pad,
    positions_of,
    random_vectors,
    shared,
    site_module,
    steered_by_hand,
    tokens,
)

POSITIONS = ("last_prompt", "generated", "all")
SITES = ("residual", "heads")
PROMPTS, EXTRA = (6, 3), 2


def batch(seed=0):
    ids, mask = pad([tokens(1, n + EXTRA, seed=n + seed)[0] for n in PROMPTS], "left")
    return ids, mask, torch.tensor(PROMPTS)


def columns(positions, width):
    first = [width - EXTRA - 1] * 2
    return {"last_prompt": [[c] for c in first], "generated": [range(c, width) for c in first]}.get(
        positions, [range(width)] * 2
    )


def loss_of(model, ids, mask, lengths=None):
    """Cross-entropy of the tokens after the prompt."""
    options = {} if type(model).__name__.startswith(("Bloom", "Mpt")) else {"position_ids": positions_of(mask)}
    with prompts_of(lengths) if lengths is not None else torch.enable_grad():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **options).logits.float()
    return nn.functional.cross_entropy(logits[:, -EXTRA - 1 : -1].flatten(0, 1), ids[:, -EXTRA:].flatten())


def gradients(intervention):
    return {key: vector.grad for key, vector in intervention.items()}


def assert_equal_gradients(found, expected):
    """To 1e-5 of the largest entry."""
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[key], gradient, rtol=0, atol=1e-5 * gradient.abs().max().item())


def by_hand(model, name, vectors, positions, ids, mask):
    leaves = {key: vector.clone().requires_grad_() for key, vector in vectors.items()}
    with steered_by_hand(model, name, leaves, columns(positions, ids.shape[1])):
        loss = loss_of(model, ids, mask)
    loss.backward()
    return loss.detach(), {key: leaf.grad for key, leaf in leaves.items()}


@pytest.fixture(params=ARCHITECTURES)
def name(request):
    return request.param


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("site", SITES)
def test_gradient_equals_autograd_by_hand(name, site, positions):
    model, (ids, mask, lengths) = shared(name).requires_grad_(False), batch()
    vectors = random_vectors(name, [(site, 0), (site, 2)], 0.3)
    loss, expected = by_hand(model, name, vectors, positions, ids, mask)
    intervention = Intervention(vectors, positions=positions)
    with intervention.on(model):
        found = loss_of(model, ids, mask, lengths)
    found.backward()
    torch.testing.assert_close(found.detach(), loss)
    assert_equal_gradients(gradients(intervention), expected)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("site", SITES)
def test_activation_checkpointing_changes_no_gradient(name, site, positions, reentrant):
    model, (ids, mask, lengths) = build(name).requires_grad_(False), batch()
    vectors = random_vectors(name, [(site, 0), (site, 2)], 0.3)
    _, expected = by_hand(model, name, vectors, positions, ids, mask)
    if reentrant:
        model.enable_input_require_grads()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.train()  # transformers checkpoints in training mode only; no dropout in these models
    calls, module = [], site_module(model, name, "heads", 1)
    module.register_forward_hook(lambda *_: calls.append(1))
    intervention = Intervention(vectors, positions=positions)
    with intervention.on(model):
        loss_of(model, ids, mask, lengths).backward()
        assert len(calls) == 2, "the layer was run again"
        assert_equal_gradients(gradients(intervention), expected)
        intervention.zero_grad()
        # Twice more: other positions, and an unrelated forward without a graph between forward and backward.
        (ids, mask), lengths = pad([tokens(1, 8, seed=n)[0] for n in (8, 9)], "left"), torch.tensor([6, 6])
        loss = loss_of(model, ids, mask, lengths)
        with torch.no_grad():
            loss_of(model, ids, mask, torch.tensor([2, 3]))
        loss.backward()
    model.eval()
    _, expected = by_hand(model, name, vectors, positions, ids, mask)
    assert_equal_gradients(gradients(intervention), expected)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("positions", POSITIONS)
def test_two_forwards_before_one_backward(site, positions):
    """Right, or refused: silently wrong is out of the question."""
    model = build("llama").requires_grad_(False)
    vectors = random_vectors("llama", [(site, 0), (site, 2)], 0.3)
    first, second = batch(), batch(seed=20)
    second = (*second[:2], torch.tensor([4, 5]))  # other prompt lengths in an input of the same shape
    plain = Intervention(vectors, positions=positions)
    with plain.on(model):
        (loss_of(model, *first) + loss_of(model, *second)).backward()
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    for pair in ((first, first), (first, second)):
        found = Intervention(vectors, positions=positions)
        with found.on(model):
            loss = loss_of(model, *pair[0]) + loss_of(model, *pair[1])
            if site == "heads" and positions != "all" and pair[0] is not pair[1]:
                with pytest.raises(RuntimeError, match="after each forward"):
                    loss.backward()
                continue
            loss.backward()
    if site == "residual" or positions == "all":
        assert_equal_gradients(gradients(found), gradients(plain))


def test_forwards_without_a_backward_pile_nothing_up():
    model = shared("llama").requires_grad_(False)
    with Intervention(random_vectors("llama", [("residual", 0)])).on(model):
        (hook,) = model.model._forward_pre_hooks.values()
        for length in range(1, 9):
            model(input_ids=tokens(1, length))
        assert len(hook.__self__._calls.call.to_recompute) <= 2


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("site", SITES)
def test_bf16_models_and_fp32_vectors(name, site, autocast):
    model, (ids, mask, lengths) = build(name).requires_grad_(False), batch()
    model = model if autocast else model.bfloat16()
    intervention = Intervention(random_vectors(name, [(site, 1)], 0.3), positions="all", scale=0.5)
    types, outputs = {}, {}

    def note(into):
        def hook(module, args, out):
            into[module] = (args[0].dtype, (out[0] if isinstance(out, tuple) else out).dtype)

        return hook

    modules = [site_module(model, name, "residual", layer) for layer in range(3)] + [model.lm_head]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for into in (types, outputs):
            handles = [module.register_forward_hook(note(into)) for module in modules]
            if into is types:
                loss_of(model, ids, mask, lengths)
            else:
                with intervention.on(model):
                    loss_of(model, ids, mask, lengths).backward()
            for handle in handles:
                handle.remove()
    assert types == outputs, "no activation changes its dtype"
    vector = intervention[site, 1]
    assert vector.dtype == vector.grad.dtype == torch.float32
    assert vector.grad.abs().max() > 0


def test_compiled_models_are_refused_and_steered_ones_compile():
    ids = tokens(2, 5)
    intervention = Intervention(random_vectors("llama", [("residual", 1), ("heads", 2)]), positions="all")
    in_place = build("llama")
    in_place.compile(backend="eager")
    for model in (torch.compile(build("llama"), backend="eager"), in_place):
        with pytest.raises(UserError, match=r"torch\.compile"):
            intervention.attach(model)
        assert not hooks_of(model)
    model = build("llama")
    for positions in POSITIONS:
        torch.compiler.reset()
        steered = Intervention(dict(intervention.items()), positions=positions)
        with steered.on(model), torch.no_grad():
            expected = model(input_ids=ids, use_cache=False).logits
            found = torch.compile(model, backend="eager")(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.compiler.reset()
