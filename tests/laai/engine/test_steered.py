"""Steps behind frozen prefixes against whole forwards: logits, losses and gradients, and what a step still runs."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from laai.engine import Engine, answer_logits, mean_nll
from laai.learn.steered import SteeredLM
from laai.prompts.batches import IGNORE, Prompt, collate, without_unlabelled_end
from laai.steering.intervention import Intervention
from tests.tiny_models import (
    ARCHITECTURES,
    CONFIGS,
    LAYERS,
    STATEFUL,
    build,
    language_model,
    make_cache_lie,
    model_of,
    random_vectors,
    site_module,
    tokens,
)

APPENDS = {"falcon", "bloom", "mpt"}  # their attention is not one of transformers' attention functions
SITES = ("residual", "heads")


def prompt_of(prefix, answer, seed):
    ids = tokens(1, prefix + 1 + answer, seed=seed)[0].tolist()
    return Prompt(tuple(ids[:prefix]), tuple(ids[prefix:]))


EXAMPLES = [prompt_of(9, 1, 1), prompt_of(0, 3, 2), prompt_of(4, 2, 3), prompt_of(7, 1, 4), prompt_of(2, 2, 5)]
BATCH = collate(EXAMPLES, pad=0)


def outcome(model, vectors, positions, budget, batches):
    """For each batch in turn: loss, and gradient of each vector."""
    engine, found = Engine(model, budget), []
    steered = SteeredLM(engine, Intervention(vectors, positions=positions))
    try:
        for batch in batches:
            steered.intervention.zero_grad()
            loss = mean_nll(steered(batch).nll, batch.labels)
            loss.backward()
            found.append([loss.detach(), *(v.grad.clone() for v in steered.intervention.parameters())])
        return found, engine.way, len(steered._forward.store)
    finally:
        steered.detach()


def assert_same(found, expected, tolerance=1e-5):
    """To `tolerance` of the largest entry of each tensor; fp32 of three layers with weights of size 0.25."""
    for step, wanted in zip(found, expected, strict=True):
        for a, b in zip(step, wanted, strict=True):
            assert b.abs().max() > 0
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance * b.abs().max().item())


@pytest.fixture(params=ARCHITECTURES)
def name(request):
    return request.param


@pytest.mark.parametrize("keys", ["first", "last", "all"])
@pytest.mark.parametrize("positions", ["last_prompt", "generated"])
@pytest.mark.parametrize("site", SITES)
def test_loss_and_gradient_are_those_of_whole_forwards(name, site, positions, keys):
    """Mixed lengths padded on the left, windows shorter than the prompts, batches in another order and of a part."""
    model = model_of(name)
    layers = {"first": [0], "last": [LAYERS - 1], "all": range(LAYERS)}[keys]
    vectors = random_vectors(name, [(site, layer) for layer in layers], 0.3)
    order = [BATCH, BATCH, collate(EXAMPLES[::-1], 0), collate(EXAMPLES[2:4], 0), BATCH]
    found, way, kept = outcome(model, vectors, positions, "auto", order)
    expected, none, _ = outcome(model, vectors, positions, "off", order)
    assert none is None
    assert way == ("append" if name in APPENDS else "split")
    assert kept == len(EXAMPLES)
    assert_same(found, expected, 2e-5)


def test_logits_are_those_of_a_whole_forward(name):
    model, batch = model_of(name), without_unlabelled_end(BATCH)
    intervention = Intervention(random_vectors(name, [("residual", 0), ("heads", 1)], 0.3))
    with intervention.on(model), torch.no_grad():
        engine = Engine(model).steered(intervention)
        whole = answer_logits(model, batch)
        for _ in range(2):
            logits = engine.logits(batch)
            labelled = batch.labels != IGNORE
            torch.testing.assert_close(
                logits[labelled], whole[labelled], rtol=1e-5, atol=1e-5 * whole.abs().max().item()
            )


@pytest.mark.parametrize(("key", "runs"), [(("residual", 0), (1, 2)), (("heads", 1), (1, 2)), (("residual", 2), ())])
def test_a_step_runs_suffixes_and_steered_layers_alone(name, key, runs):
    model, seen = model_of(name), []
    steered = SteeredLM(Engine(model), Intervention(random_vectors(name, [key])))
    try:
        steered(BATCH)
        hooks = []
        for layer in range(LAYERS):
            module = site_module(model.llm, name, "heads", layer)
            hooks.append(module.register_forward_hook(lambda _, args, __, i=layer: seen.append((i, args[0].shape[1]))))
        steered(BATCH)
    finally:
        steered.detach()
        for hook in hooks:
            hook.remove()
    assert seen == [(layer, BATCH.suffix_ids.shape[1] - 1) for layer in runs]


def test_a_small_budget_keeps_some_and_says_so(caplog):
    model, vectors = model_of("llama"), random_vectors("llama", [("residual", 1)], 0.3)
    _, _, all_of_them = outcome(model, vectors, "last_prompt", "auto", [BATCH])
    per_token = 2 * LAYERS * 16 * 4  # keys and values, two heads of width 8, fp32
    order = [BATCH, collate(EXAMPLES[::-1], 0), collate(EXAMPLES[1:4], 0), BATCH]
    expected, *_ = outcome(model, vectors, "last_prompt", "off", order)
    for budget, fits in ((per_token * 22, 5), (per_token * 13, 3), (0, 1)):  # 9 + 0 + 4 + 7 + 2 tokens; 9 + 0 + 4
        caplog.clear()
        found, way, kept = outcome(model, vectors, "last_prompt", budget, order)
        assert (way, kept) == ("split", fits)
        assert ("prefix_cache" in caplog.text) == (fits < all_of_them)
        assert caplog.text.count("prefix_cache") <= 1
        assert_same(found, expected, 2e-5)


def test_positions_all_has_no_frozen_prefix():
    model = model_of("llama")
    intervention = Intervention(random_vectors("llama", [("heads", 1)]), positions="all")
    with intervention.on(model), torch.no_grad():
        steered = Engine(model).steered(intervention)
        assert torch.equal(steered.logits(BATCH), answer_logits(model, BATCH))
    assert len(steered.store) == 0


@pytest.mark.parametrize("name", STATEFUL)
def test_states_that_fold_all_tokens_fall_back_and_say_so_once(name, caplog):
    kind, options = STATEFUL[name]
    model = language_model(AutoModelForCausalLM.from_config(getattr(transformers, kind)(**options)))
    batch = collate([prompt_of(5, 2, 1), prompt_of(5, 2, 2)], 0)
    engine = Engine(model)
    steered = SteeredLM(engine, Intervention.random(model, "residual", [0], norm=1.0))
    try:
        with torch.no_grad(), caplog.at_level(logging.WARNING):
            found = [steered(batch).nll for _ in range(3)]
    finally:
        steered.detach()
    assert caplog.text.count("frozen prefix") == 1
    assert engine.way is None
    with torch.no_grad():
        plain = SteeredLM(Engine(model, "off"), steered.intervention)(batch).nll
    assert all(torch.equal(nll, plain) for nll in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 0.3])
def test_a_model_whose_cache_lies_is_found_out(caplog, dtype, size):
    """Keys that are cached wrongly change the result after a prefix, and only there; with vectors of zeros too."""
    model = language_model(build("llama").to(dtype))
    undo = make_cache_lie(model.llm)
    vectors = random_vectors("llama", [("residual", 0)], size)
    found, way, _ = outcome(model, vectors, "last_prompt", "auto", [BATCH])
    undo()
    expected, *_ = outcome(model, vectors, "last_prompt", "off", [BATCH])
    assert way is None
    assert "whole prompts" in caplog.text
    assert_same(found, expected)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "bloom"])
def test_bf16_agrees_to_its_precision(name):
    model = language_model(build(name).bfloat16())
    vectors = random_vectors(name, [("heads", 0), ("residual", 1)], 0.3)
    found, way, _ = outcome(model, vectors, "last_prompt", "auto", [BATCH, BATCH])
    expected, *_ = outcome(model, vectors, "last_prompt", "off", [BATCH, BATCH])
    assert way is not None
    assert_same(found, expected, 0.1)  # bf16 keeps 8 bits; three layers of sums in another order


def test_autocast_is_compared_by_its_own_precision():
    model, vectors = model_of("llama"), random_vectors("llama", [("heads", 0)], 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        found, way, _ = outcome(model, vectors, "last_prompt", "auto", [BATCH, BATCH])
        expected, *_ = outcome(model, vectors, "last_prompt", "off", [BATCH, BATCH])
    assert way == "split"
    assert_same(found, expected, 0.1)


def test_the_first_batch_may_have_no_prefix_at_all():
    model, vectors = model_of("llama"), random_vectors("llama", [("residual", 0)], 0.3)
    bare = collate([prompt_of(0, 2, 8), prompt_of(0, 1, 9)], 0)
    order = [bare, BATCH, bare]
    found, way, _ = outcome(model, vectors, "last_prompt", "auto", order)
    assert way == "split"
    assert_same(found, outcome(model, vectors, "last_prompt", "off", order)[0], 2e-5)


def test_the_default_model(default_model):
    """30 layers of real weights; prompts of unequal length, answers of several tokens."""
    encode = default_model.tokenizer.encode
    texts = [("Q: hot\nA:", " cold\n"), ("The capital of the United Kingdom is", " London\n")]
    texts, prompts = [*texts, ("1, 2, 3,", " 4, 5, 6\n")], []
    for text, answer in texts:
        ids = encode(text)
        prompts.append(Prompt(tuple(ids[:-1]), (ids[-1], *encode(answer))))
    batch = collate(prompts, 0)
    vectors = {("heads", i): 0.02 * torch.randn(576, generator=torch.Generator().manual_seed(i)) for i in (3, 20)}
    found, way, _ = outcome(default_model, vectors, "last_prompt", "auto", [batch, batch])
    expected, *_ = outcome(default_model, vectors, "last_prompt", "off", [batch, batch])
    assert way == "split"
    assert_same(found, expected, 1e-4)  # of the largest entry of a gradient through 27 layers


@pytest.mark.parametrize("key", [("residual", 0), ("heads", 1)])
def test_other_vectors_on_the_same_model_are_never_missed(key):
    """Attached and detached between steps, below and above, at positions that change the prefix."""
    model = model_of("llama")
    vectors = random_vectors("llama", [("residual", 1)], 0.3)
    other = Intervention(random_vectors("llama", [key], 0.5, seed=7), positions="all")
    found = {}
    for budget in ("auto", "off"):
        steered = SteeredLM(Engine(model, budget), Intervention(vectors))
        try:
            with torch.no_grad():
                found[budget] = [steered(BATCH).nll]
                with other.on(model):
                    found[budget].append(steered(BATCH).nll)
                found[budget].append(steered(BATCH).nll)
        finally:
            steered.detach()
    for a, b in zip(found["auto"], found["off"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found["off"][0], found["off"][1], atol=1e-2)


def test_kept_prefixes_are_freed_at_once():
    """Not by the garbage collector, which knows nothing of a device's memory."""
    model = model_of("llama")
    steered = SteeredLM(Engine(model, 0), Intervention(random_vectors("llama", [("residual", 1)])))
    gc.collect()
    gc.disable()
    try:
        mean_nll(steered(BATCH).nll, BATCH.labels).backward()
        held = weakref.ref(steered._forward._last.prefix.cache.layers[0].keys)
        steered(collate(EXAMPLES[2:4], 0))
        assert held() is None
        steered(BATCH)
        held = weakref.ref(steered._forward._last.prefix.cache.layers[0].keys)
        steered.detach()
        assert held() is None
    finally:
        gc.enable()
        steered.detach()


def test_a_first_look_in_inference_mode_spoils_no_training():
    model, vectors = model_of("llama"), random_vectors("llama", [("residual", 0)], 0.3)
    engine = Engine(model)
    steered = SteeredLM(engine, Intervention(vectors))
    try:
        with torch.inference_mode():
            steered(BATCH)
        mean_nll(steered(BATCH).nll, BATCH.labels).backward()
        assert engine.way == "split"
    finally:
        steered.detach()


def test_rotations_that_change_with_length_are_not_mixed():
    """Longrope takes other factors for all keys once the longest prompt of a forward is long."""
    options = {**CONFIGS["llama"][1], "max_position_embeddings": 2048}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 280}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    model = language_model(AutoModelForCausalLM.from_config(transformers.LlamaConfig(**options, rope_parameters=rope)))
    vectors = random_vectors("llama", [("residual", 0)], 0.3)
    short, long = [prompt_of(n, 1, n) for n in (5, 8)], prompt_of(290, 1, 9)
    order = [collate(short, 0), collate([long, short[0]], 0), collate(short, 0), collate([short[1], long], 0)]
    found, way, kept = outcome(model, vectors, "last_prompt", "auto", order)
    assert (way, kept) == ("split", 2)
    assert_same(found, outcome(model, vectors, "last_prompt", "off", order)[0], 2e-5)
