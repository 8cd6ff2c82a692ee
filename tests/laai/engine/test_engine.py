"""One engine: what it settles once, that it answers in every case, and leaves the model as it was."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from laai.engine import Engine, answer_nll
from laai.engine import engine as module
from laai.engine.forward import last_logits
from laai.errors import UserError
from laai.models import LanguageModel
from laai.prompts.batches import IGNORE, Prompt, collate, without_unlabelled_end
from laai.steering.intervention import Intervention
from tests.tiny_models import (
    CONFIGS,
    STATEFUL,
    build,
    hooks_of,
    language_model,
    make_cache_lie,
    model_of,
    random_vectors,
    tokens,
)

BEGINNING = tokens(1, 14, seed=9)[0].tolist()


def prompt_of(prefix, answer, seed, before=()):
    ids = tokens(1, prefix + 1 + answer, seed=seed)[0].tolist()
    return Prompt((*before, *ids[:prefix]), tuple(ids[prefix:]))


PROMPTS = [prompt_of(n, 1 + n % 2, n) for n in (9, 4, 7, 2)]
SHOWN = [prompt_of(n, 1, n, BEGINNING) for n in (3, 5, 4, 3)]  # behind the same demonstrations
BATCH = without_unlabelled_end(collate(PROMPTS, 0))


def vectors(layer=1, positions="last_prompt", seed=2):
    return Intervention(random_vectors("llama", [("residual", layer)], 0.5, seed=seed), positions=positions)


def nlls(model, engine, prompts, shown=False):
    """Summed NLL of each answer, by two passes of the engine, which have to agree."""
    found = []
    with engine.passes(prompts, shown) as batches:
        for size in (2, 3):
            found.append([0.0] * len(prompts))
            for started in batches(prompts, size):
                sums = answer_nll(model, started.batch, started.before).detach().sum(-1).tolist()
                for row, total in zip(started.rows, sums, strict=True):
                    found[-1][row] = total
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    return found[0]


def by_hand(model, prompts):
    """By whole prompts, one at a time."""
    return [float(answer_nll(model, collate([prompt], 0)).detach().sum()) for prompt in prompts]


def running(model):
    """The numbers of tokens that the model runs, row by row, and a handle to stop counting."""
    ran = []
    hook = model.llm.get_input_embeddings().register_forward_hook(lambda _, __, out: ran.append(out.shape[:2]))
    return ran, hook


def failing(batches):
    """A consumer that fails on its first batch."""
    for _ in batches:
        raise KeyError


def learn(steered):
    with torch.no_grad():
        return steered.logits(BATCH)


def test_settled_once_for_each_depth_and_precision(monkeypatch):
    model, asked, real = model_of("llama"), [], module.find_way
    monkeypatch.setattr(module, "find_way", lambda *a, **k: asked.append(len(a[2])) or real(*a, **k))
    engine = Engine(model)
    for layer in (1, 1, 0, 1):
        engine.sweep([vectors(layer)], [0.0, 1.0], PROMPTS, batch_size=2)
    assert asked == [2, 1]
    with vectors().on(model):
        learn(engine.steered(vectors()))
        assert asked == [2, 1]
        with torch.autocast("cpu", torch.bfloat16):
            for _ in range(2):
                learn(engine.steered(vectors()))
    assert asked == [2, 1, 2]
    engine.clear()
    engine.sweep([vectors()], [1.0], PROMPTS)
    assert asked == [2, 1, 2], "what was settled stays"


def longrope():
    options = {**CONFIGS["llama"][1], "max_position_embeddings": 2048}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 270}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    return AutoModelForCausalLM.from_config(transformers.LlamaConfig(**options, rope_parameters=rope))


def stateful(name):
    kind, options = STATEFUL[name]
    return AutoModelForCausalLM.from_config(getattr(transformers, kind)(**options))


CASES = {
    "plain": lambda: build("llama"),
    "off": lambda: build("llama"),
    "sharded": lambda: build("llama"),
    "inference": lambda: build("llama"),
    "longrope": longrope,
    **{name: (lambda name=name: stateful(name)) for name in STATEFUL},
}


@pytest.mark.parametrize("case", CASES)
def test_every_method_answers_in_every_case(monkeypatch, caplog, case):
    model = language_model(CASES[case]())
    model.llm.generation_config.eos_token_id = None
    if case == "sharded":
        monkeypatch.setattr(LanguageModel, "sharded", True)
        monkeypatch.setattr(model.llm, "generate", lambda *a, synced_gpus, _own=model.llm.generate, **k: _own(*a, **k))
    engine = Engine(model, "off" if case == "off" else "auto")
    candidate = Intervention.random(model, "residual", [1], norm=2.0)
    rows = [*PROMPTS, PROMPTS[0]] if case not in STATEFUL else [prompt_of(6, 2, n) for n in range(4)]  # no padding
    with torch.inference_mode(case == "inference"), caplog.at_level(logging.WARNING):
        for shown, prompts in ((False, rows), (True, SHOWN[::3])):
            assert nlls(model, engine, prompts, shown) == pytest.approx(by_hand(model, prompts), rel=1e-3)
        engine.begin(SHOWN[::3])
        (text, *_) = engine.generate(rows[:2], 3)
        assert isinstance(text, str)
        for found, batch, logits in engine.logits(rows, 2):
            assert logits.shape[:2] == batch.labels.shape
            assert len(found) == len(batch.rows)
        with torch.no_grad():
            for read in engine.activations(rows, [("residual", 0)], 2):
                for k, row in enumerate(read.rows):
                    ids = torch.tensor([rows[row].prompt])
                    alone = last_logits(model, ids, torch.ones_like(ids), 1)[0, 0]
                    torch.testing.assert_close(read.logits[k], alone, rtol=1e-3, atol=1e-3)
        assert engine.activation_rms(rows, "residual", [0])[0] > 0
        scores = engine.sweep([candidate], [0.0, 1.0], rows).nll[0]
        with candidate.on(model):
            steered = engine.steered(candidate)
            batch = collate(rows, 0)
            sums = answer_nll(model, batch).detach().sum(-1)
            torch.testing.assert_close(scores[1], sums / (batch.labels != IGNORE).sum(-1), rtol=1e-3, atol=1e-3)
            short = without_unlabelled_end(batch)
            whole = Engine(model, "off").steered(candidate)
            for _ in range(2):
                with torch.no_grad():
                    found, expected = (one.logits(short)[short.labels != IGNORE] for one in (steered, whole))
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert caplog.text.count("frozen prefix") == (case == "sharded" or case in STATEFUL)
    assert (engine.way is None) == (case == "sharded" or case in STATEFUL)
    assert (engine._passes.store.size > 0) == (case in ("plain", "inference", "longrope"))


def test_a_compiled_model_runs_whole_prompts(caplog):
    model, vector = language_model(build("llama")), vectors()
    with vector.on(model):
        expected = answer_nll(model, BATCH).detach()
        model.llm.model.layers[0]._compiled_call_impl = model.llm.model.layers[0]._call_impl  # as `compile()` leaves it
        engine = Engine(model)
        steered = engine.steered(vector)
        for _ in range(2):
            learn(steered)
        torch.testing.assert_close(answer_nll(model, BATCH).detach(), expected)
    assert engine.way is None
    assert caplog.text.count("it is compiled") == 1
    with pytest.raises(UserError, match="compiled before"):
        engine.sweep([vector], [1.0], PROMPTS)


def test_a_cache_that_lies_is_found_out_on_bare_prompts_too():
    """Without answers, nothing would differ: the likeliest tokens stand for them."""
    model = language_model(build("llama"))
    make_cache_lie(model.llm)
    bare = [Prompt(prompt.prefix, prompt.suffix[:1]) for prompt in PROMPTS]
    engine = Engine(model)
    with engine.passes(bare) as batches:
        for started in batches(bare, 4):
            assert started.before is None


@pytest.mark.parametrize("wrong", [{("residual", 0): torch.zeros(33)}, {("heads", 7): torch.zeros(32)}])
@pytest.mark.parametrize("positions", ["last_prompt", "all"])
def test_a_candidate_that_does_not_fit_is_refused_before_anything_runs(wrong, positions):
    model = model_of("llama")
    engine, before = Engine(model), hooks_of(model.llm)
    ran, hook = running(model)
    try:
        with pytest.raises(UserError):
            engine.sweep([vectors(), Intervention(wrong, positions=positions)], [1.0], PROMPTS)
    finally:
        hook.remove()
    assert ran == []
    assert hooks_of(model.llm) == before
    assert "generate" not in vars(model.llm)


def test_two_engines_on_one_model_do_not_disturb_each_other():
    model = model_of("llama")
    one, other = Engine(model), Engine(model)
    nlls(model, one, PROMPTS)
    taken = one._memory.taken
    first, second = vectors(1), vectors(2, seed=6)
    with first.on(model):
        learning = one.steered(first)
        alone = learn(learning)
        scores = other.sweep([second], [1.0], PROMPTS)
        with second.on(model):
            both = learn(other.steered(second))
            assert torch.equal(learn(learning), learn(Engine(model, "off").steered(first))), "both act"
        other.clear()
        torch.testing.assert_close(learn(learning), alone, rtol=0, atol=0)
    assert one._memory.taken >= taken
    labelled = BATCH.labels != IGNORE
    assert not torch.allclose(both[labelled], alone[labelled], atol=1e-2)
    with first.on(model), second.on(model):
        by_hand_both = answer_nll(model, collate(PROMPTS, 0)).detach().sum(-1)
    counts = (collate(PROMPTS, 0).labels != IGNORE).sum(-1)
    torch.testing.assert_close(scores.nll[0, 0], by_hand_both / counts, rtol=1e-4, atol=1e-4)


def test_no_recorder_is_left_on_the_model_by_a_consumer_that_fails():
    model = model_of("llama")
    before = hooks_of(model.llm)
    with pytest.raises(KeyError) as failed:
        failing(Engine(model).activations(PROMPTS, [("residual", 0)], 2))
    assert failed.traceback
    assert hooks_of(model.llm) == before


def test_no_prompts_are_no_error():
    engine = Engine(model_of("llama"))
    engine.begin(SHOWN)
    for shown in (False, True):
        with engine.passes([], shown) as batches:
            assert list(batches([], 3)) == []
    assert engine.generate([], 3) == []
    assert engine.sweep([vectors()], [1.0], []).nll.shape == (1, 1, 0)
