"""The choice of one layer by cross-validation on the training examples."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from laai import layer_choice
from laai.errors import UserError
from laai.layer_choice import choose_layer
from laai.prompts import Template


@pytest.fixture
def prompts(tiny, word_task):
    template = Template(tiny.tokenizer, word_task)
    return [template.encode(e.input, answer=e.output) for e in word_task.examples[:6]]


@pytest.mark.parametrize("site", ["residual", "heads"])
def test_the_same_layer_each_time_and_the_model_untouched(tiny, prompts, weights, site):
    before = weights(tiny.llm)
    chosen = {choose_layer(tiny, site, "last_prompt", prompts, steps=3) for _ in range(2)}
    assert len(chosen) == 1
    assert chosen <= {0, 1, 2}
    after = tiny.llm.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.llm.modules())


@pytest.mark.parametrize("best", [0, 1, 2])
def test_it_is_the_one_with_the_lowest_held_out_loss(tiny, prompts, monkeypatch, best):
    seen = []

    def held_out(model, start, learn, held, steps, rate):
        (layer,) = start.layers
        assert all(bool((v == 0).all()) for _, v in start.items())
        assert not {tuple(r) for r in learn.prefix_ids.tolist()} & {tuple(r) for r in held.prefix_ids.tolist()}
        seen.append((layer, len(learn.rows), len(held.rows)))
        return 1.0 + (layer != best) * (0.5 + layer)

    monkeypatch.setattr(layer_choice, "_held_out_nll", held_out)
    assert choose_layer(tiny, "residual", "all", prompts[:5]) == best
    assert sorted(seen) == sorted((layer, *sizes) for layer in range(3) for sizes in ((3, 2), (2, 3)))


def test_a_layer_that_can_learn_beats_one_that_cannot(tiny, prompts, monkeypatch):
    """With a rate of zero everywhere but at layer 1, it must be layer 1."""
    real = layer_choice._held_out_nll
    monkeypatch.setattr(
        layer_choice, "_held_out_nll",
        lambda model, start, *batches_and_steps: real(
            model, start, *batches_and_steps[:-1], batches_and_steps[-1] if start.layers == [1] else 0.0
        ),
    )  # fmt: skip
    assert choose_layer(tiny, "residual", "last_prompt", prompts) == 1


def test_two_examples_at_least(tiny, prompts):
    assert choose_layer(tiny, "residual", "all", prompts[:2], steps=1) in (0, 1, 2)
    with pytest.raises(UserError, match="at least 2"):
        choose_layer(tiny, "residual", "all", prompts[:1])


@pytest.mark.parametrize("count", [2, 5, 8])
@pytest.mark.parametrize("layers", [[0], list(range(7)), list(range(30)), [3, 7, 11, 15, 19, 23, 27, 31]])
def test_candidates_are_spread_evenly(layers, count):
    spread = layer_choice._spread(layers, count)
    assert len(spread) == min(count, len(layers))
    assert spread == sorted(set(spread))
    assert set(spread) <= set(layers)
    assert (spread[0], spread[-1]) == (layers[0], layers[-1])
    places = [layers.index(layer) for layer in spread]
    gaps = {b - a for a, b in pairwise(places)}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
