"""Attention over a prefix that stays where it is, against one softmax over all keys written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from laai.engine.split_attention import NAME, apart, split_attention, splitting
from tests.tiny_models import model_of, tokens


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(query, keys, values, mask, scaling, softcap=None, sinks=None):
    """All tensors with one key head a query head, and one prefix a row."""
    scores = query @ keys.mT * scaling
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    scores = scores if mask is None else scores + mask
    if sinks is not None:
        scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], dim=-1)
    return (scores.softmax(-1)[..., : keys.shape[2]] @ values).transpose(1, 2)


@pytest.mark.parametrize("shared_by", [1, 3])
@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("extra", [{}, {"softcap": 1.5}, {"s_aux": draw(6, seed=9)}])
def test_it_is_one_softmax_over_prefix_and_new_tokens(heads, shared_by, extra):
    rows, kinds, prefix, new, width = 2, 2, 5, 3, 4
    batch = rows * shared_by
    query = draw(batch, heads, new, width, seed=1).requires_grad_()
    key, value = (draw(batch, kinds, new, width, seed=s).requires_grad_() for s in (2, 3))
    keys, values = draw(rows, kinds, prefix, width, seed=4), draw(rows, kinds, prefix, width, seed=5)
    mask = torch.zeros(batch, 1, new, prefix + new, dtype=torch.float64)
    mask[..., prefix:] = torch.full((new, new), -1e300, dtype=torch.float64).triu(1)
    mask[0, :, :, :2] = -1e300
    extra = {name: value[:heads] if name == "s_aux" else value for name, value in extra.items()}
    spread = [torch.cat([old.repeat_interleave(shared_by, 0), now], 2) for old, now in ((keys, key), (values, value))]
    full = [part.repeat_interleave(heads // kinds, 1) for part in spread]
    options = {"softcap": extra.get("softcap"), "sinks": extra.get("s_aux")}
    expected = by_hand(query, *full, mask, 0.3, **options)
    marked = key * 1
    marked.frozen_prefix = (keys, values)
    found, weights = split_attention(nn.Module(), query, marked, value, mask, scaling=0.3, is_causal=True, **extra)
    assert weights is None
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # the softmax is fp32
    upstream = draw(*found.shape, seed=6)
    for a, b in zip(
        *(torch.autograd.grad(out, (query, key, value), upstream) for out in (found, expected)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_keys_that_no_cache_marked_fail():
    query = draw(1, 2, 1, 4)
    with pytest.raises(AttributeError, match="frozen_prefix"):
        split_attention(nn.Module(), query, query, query, None)


def test_a_cache_apart_holds_what_it_held():
    cache = DynamicCache()
    keys, values = draw(1, 2, 5, 4), draw(1, 2, 5, 4, seed=1)
    cache.update(keys, values, 0)
    held = cache.layers[0].keys
    new = draw(1, 2, 2, 4, seed=2)
    for _ in range(2):
        key, value = apart(cache).update(new, new, 0)
        assert key is new
        assert value is new
        assert key.frozen_prefix[0] is held
        assert cache.get_seq_length() == 5


def test_splitting_leaves_the_model_as_it_was():
    model = model_of("llama")
    llm, before = model.llm, model.config._attn_implementation
    expected = llm(input_ids=tokens(1, 4)).logits
    with splitting(model):
        assert model.config._attn_implementation == NAME
        with pytest.raises(AttributeError, match="frozen_prefix"):
            llm(input_ids=tokens(1, 4))
    assert model.config._attn_implementation == before
    assert torch.equal(llm(input_ids=tokens(1, 4)).logits, expected)
