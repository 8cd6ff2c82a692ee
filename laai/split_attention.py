"""Attention of a few new tokens over a frozen prefix and themselves, without copying the prefix.

transformers appends new keys and values to the cached ones, which copies the whole cache at every forward, and repeats
them for each query of a group. Here the prefix's keys and values stay where they are: the scores over prefix and new
tokens are two products, put side by side for one softmax. As the prefix needs no gradient, autograd works out none.

The cache that `apart` makes hands a layer its new keys alone, marked with the prefix's. `split_attention` fails without
that mark, so that no attention can miss the prefix in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import eager_mask

from laai.layers import unwrap

NAME = "laai_split"


def apart(cache: DynamicCache) -> DynamicCache:
    """Make each layer of a cache answer new keys and values with them alone, marked with those it holds.

    The layers hold what they held, however often they are asked. Only for forwards inside `splitting`.
    """
    for layer in cache.layers:
        layer.update = partial(_mark, (layer.keys, layer.values))  # type: ignore[method-assign, union-attr]
    return cache


def _mark(kept: Any, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    key.frozen_prefix = kept  # type: ignore[attr-defined]
    return key, value


@contextmanager
def splitting(llm: nn.Module) -> Iterator[None]:
    """Let the attention of `llm` be `split_attention`, where its code takes attention functions."""
    config: Any = unwrap(llm).config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    before, config._attn_implementation = config._attn_implementation, NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def split_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: softmax(q [K_prefix, k]ᵀ) [V_prefix, v].

    Args:
        module: the attention module.
        query: (batch, heads, tokens, width).
        key, value: (batch, key heads, tokens, width) of the new tokens; `key` marked by a cache made by `apart`, with
            (rows, key heads, prefix tokens, width) of the prefix. Row i of the prefix is that of the batch rows from
            i * batch / rows on.
        attention_mask: (batch or 1, heads or 1, tokens, prefix tokens + tokens), added to the scores.
        scaling: of the scores.
        softcap: scores become softcap * tanh(scores / softcap).
        s_aux: (heads,) a score that takes its share of the softmax and has no value (attention sink).

    Returns:
        (batch, tokens, heads, width) in the dtype of `value`.
    """
    keys, values = key.frozen_prefix  # type: ignore[attr-defined]
    batch, heads, tokens, width = query.shape
    rows, kinds = keys.shape[:2]
    shared, group = batch // rows, heads // kinds
    grouped = query.reshape(batch, kinds, group * tokens, width) * (width**-0.5 if scaling is None else scaling)
    near = (grouped @ key.mT).reshape(batch, heads, tokens, -1)
    far = _unshare(_share(grouped, rows) @ keys.mT, shared).reshape(batch, heads, tokens, -1)
    scores = torch.cat([far, near], dim=-1)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask
    if s_aux is not None:
        scores = torch.cat([scores, s_aux.view(1, -1, 1, 1).expand(batch, -1, tokens, 1).to(scores.dtype)], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    weights = weights.reshape(batch, kinds, group * tokens, -1)
    split = keys.shape[2]
    out = _unshare(_share(weights[..., :split], rows) @ values, shared)
    out = out + weights[..., split : split + key.shape[2]] @ value
    return out.reshape(batch, heads, tokens, -1).transpose(1, 2).contiguous(), None


def _share(x: Tensor, rows: int) -> Tensor:
    """(batch, kinds, n, width) -> (rows, kinds, batch / rows * n, width): what looks at one prefix side by side."""
    batch, kinds, n, width = x.shape
    if batch == rows:
        return x
    return x.reshape(rows, batch // rows, kinds, n, width).transpose(1, 2).reshape(rows, kinds, -1, width)


def _unshare(x: Tensor, shared: int) -> Tensor:
    """The way back from `_share`."""
    if shared == 1:
        return x
    rows, kinds, n, width = x.shape
    return x.reshape(rows, kinds, shared, n // shared, width).transpose(1, 2).reshape(rows * shared, kinds, -1, width)


AttentionInterface.register(NAME, split_attention)
AttentionMaskInterface.register(NAME, eager_mask)
