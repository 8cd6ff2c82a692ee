"""What an engine keeps: within one budget, given back whole, and never what attached vectors would change."""

from __future__ import annotations

import gc

import pytest
import torch

from laai.engine import Engine
from laai.prompts.batches import IGNORE
from tests.laai.engine.test_engine import BATCH, BEGINNING, PROMPTS, SHOWN, by_hand, failing, learn, nlls, vectors
from tests.tiny_models import LAYERS, model_of

CPU = torch.device("cpu")
PER_TOKEN = 2 * LAYERS * 16 * 4  # keys and values, two heads of width 8, fp32


def test_one_budget_counts_prefixes_states_and_beginnings_and_gets_all_back():
    model = model_of("llama")
    engine, vector = Engine(model, 10**6), vectors()
    with vector.on(model):
        steered = engine.steered(vector)
        learn(steered)
    nlls(model, engine, PROMPTS)
    engine.begin(SHOWN)
    own = sum(len(p.prefix) for p in PROMPTS) * PER_TOKEN
    states = sum(len(p.suffix) - 1 for p in PROMPTS) * 32 * 4
    assert steered.store.size == own + states
    assert engine._passes.store.size == own
    kept = 2 * own + states + len(BEGINNING) * PER_TOKEN
    assert engine._memory.taken == kept
    assert engine._memory.left(CPU) == {CPU: 10**6 - kept}
    engine.clear()
    assert (engine._memory.taken, len(steered.store), len(engine._passes.store)) == (0, 0, 0)
    assert engine._memory.left(CPU) == {CPU: 10**6}


def test_what_is_full_for_one_is_full_for_all():
    """The beginning takes all that there is: neither prefixes nor states are kept, and everything is right."""
    model, vector = model_of("llama"), vectors()
    engine = Engine(model, len(BEGINNING) * PER_TOKEN)
    engine.begin(SHOWN)
    with vector.on(model):
        steered = engine.steered(vector)
        found = [learn(steered) for _ in range(2)]
        assert (len(steered.store), engine.way) == (0, "split")
        whole = learn(Engine(model, "off").steered(vector))
    for logits in found:
        labelled = BATCH.labels != IGNORE
        torch.testing.assert_close(logits[labelled], whole[labelled], rtol=1e-4, atol=1e-4)
    assert nlls(model, engine, PROMPTS) == pytest.approx(by_hand(model, PROMPTS), rel=1e-4)
    small = Engine(model, len(BEGINNING) * PER_TOKEN - 1)
    small.begin(SHOWN)
    assert small._memory.taken == 0
    assert nlls(model, small, SHOWN, shown=True) == pytest.approx(by_hand(model, SHOWN), rel=1e-4)


def test_passes_behind_demonstrations_give_back_what_is_theirs():
    model = model_of("llama")
    engine = Engine(model, 10**6)
    with engine.passes(SHOWN, shown=True) as batches:
        list(batches(SHOWN, 2))
        longest = max(len(p.prefix) for p in SHOWN)
        assert engine._memory.taken > (len(BEGINNING) + longest) * PER_TOKEN
    assert engine._memory.taken == len(BEGINNING) * PER_TOKEN
    with pytest.raises(KeyError), engine.passes(SHOWN, shown=True) as batches:
        failing(batches(SHOWN, 2))
    assert engine._memory.taken == len(BEGINNING) * PER_TOKEN


def test_steps_that_are_gone_hold_no_memory():
    model, vector = model_of("llama"), vectors()
    engine = Engine(model)
    with vector.on(model):
        steered = engine.steered(vector)
        learn(steered)
        assert engine._memory.taken > 0
        del steered
        gc.collect()
    assert engine._memory.taken == 0


def test_vectors_that_change_prefixes_poison_nothing_that_is_kept():
    """Nothing is kept under them, and nothing that was kept before is used."""
    model = model_of("llama")
    engine, everywhere = Engine(model), vectors(0, "all", seed=5)
    before = {shown: nlls(model, engine, rows, shown) for shown, rows in ((False, PROMPTS), (True, SHOWN))}
    taken = engine._memory.taken
    with everywhere.on(model):
        for shown, rows in ((False, PROMPTS), (True, SHOWN)):
            found = nlls(model, engine, rows, shown)
            assert found == pytest.approx(by_hand(model, rows), rel=1e-4)
            assert found != pytest.approx(before[shown], rel=1e-2)
        engine.begin(SHOWN)
        other = Engine(model)
        other.begin(SHOWN)
        assert other._memory.taken == 0
        inner = vectors()
        with inner.on(model):
            steered = engine.steered(inner)
            assert torch.equal(learn(steered), learn(Engine(model, "off").steered(inner)))
            assert len(steered.store) == 0
    assert engine._memory.taken == taken
    assert nlls(model, engine, SHOWN, True) == before[True]


def test_steps_under_other_vectors_have_states_of_their_own():
    """Of one engine, at two depths, and at one depth above another vector."""
    model = model_of("llama")
    engine = Engine(model)
    for layer, below in ((2, None), (1, None), (2, vectors(0, seed=8)), (2, vectors(0, seed=9))):
        vector = vectors(layer)
        with (below or 0.0 * vectors(0)).on(model), vector.on(model):
            steered = engine.steered(vector)
            for _ in range(2):
                for rows in ([0, 1, 2, 3], [2, 0]):
                    batch = BATCH.rows_at(rows)
                    with torch.no_grad():
                        found = steered.logits(batch)
                        whole = Engine(model, "off").steered(vector).logits(batch)
                    labelled = batch.labels != IGNORE
                    torch.testing.assert_close(found[labelled], whole[labelled], rtol=1e-4, atol=1e-4)


def test_what_is_kept_alone_has_the_same_bits_whatever_is_measured_between():
    """Validation runs the same prompts in batches; a run that is resumed measures at other times."""
    model, vector, found = model_of("llama"), vectors(), []
    for measured in (False, True):
        engine = Engine(model)
        with vector.on(model):
            if measured:
                nlls(model, engine, PROMPTS)
            steered = engine.steered(vector, alone=True)
            found.append([learn(steered)])
            if measured:
                engine.clear()
            found[-1].append(learn(steered))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
