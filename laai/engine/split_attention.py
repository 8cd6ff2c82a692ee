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

from laai.models import LanguageModel

NAME = "laai_split"


def apart(cache: DynamicCache) -> DynamicCache:
    """Make each layer of a cache answer new keys and values with them alone, marked with those it holds.

    The layers hold what they held, however often they are asked. Only for forwards inside `splitting`.
    """
    layers: Any = cache.layers
    for layer in layers:
        layer.update = partial(_mark, (layer.keys, layer.values))
    return cache


def _mark(kept: Any, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    marked: Any = key
    marked.frozen_prefix = kept
    return key, value


@contextmanager
def splitting(model: LanguageModel) -> Iterator[None]:
    """Let the attention of a model be `split_attention`, where its code takes attention functions."""
    config = model.config
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
    marked: Any = key
    keys, values = marked.frozen_prefix
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    query, key, value, keys, values = (x.to(dtype) for x in (query, key, value, keys, values))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast(device, enabled=False):
        untyped: Any = _Split
        out: Tensor = untyped.apply(query, key, value, keys, values, attention_mask, scaling, softcap, s_aux)
    return out, None


class _Split(torch.autograd.Function):
    """`split_attention` with a backward that keeps the softmax alone, and computes nothing for the prefix.

    Of all that autograd would keep, that is one table of (heads, tokens, prefix tokens) a layer instead of six.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        scaling: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        (batch, heads, tokens, width), kinds, split = query.shape, key.shape[1], keys.shape[2]
        grouped = query.reshape(batch, kinds, -1, width) * scaling
        scores = torch.cat([_over(grouped, keys.mT), grouped @ key.mT], dim=-1).view(batch, heads, tokens, -1)
        slope = None
        if softcap is not None:
            tanh = scores.div_(softcap).tanh_()
            slope, scores = 1 - tanh.square(), tanh * softcap
        if mask is not None:
            scores = scores.add_(mask)
        if sinks is not None:
            column = sinks.view(1, -1, 1, 1).expand(batch, -1, tokens, 1).to(scores.dtype)
            weights = torch.cat([scores, column], dim=-1).softmax(dim=-1, dtype=torch.float32)[..., :-1]
        else:
            weights = scores.softmax(dim=-1, dtype=torch.float32)
        weights = weights.to(value.dtype).reshape(batch, kinds, -1, scores.shape[-1])
        ctx.save_for_backward(grouped, key, value, keys, values, weights, slope)
        ctx.scaling = scaling
        out = _over(weights[..., :split], values) + weights[..., split:] @ value
        return out.reshape(batch, heads, tokens, -1).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grouped, key, value, keys, values, weights, slope = ctx.saved_tensors
        batch, tokens, heads, _ = upstream[0].shape
        kinds, split = key.shape[1], keys.shape[2]
        out = upstream[0].transpose(1, 2).reshape(batch, kinds, -1, value.shape[-1])
        scores = torch.cat([_over(out, values.mT), out @ value.mT], dim=-1)
        scores = scores.sub_((scores * weights).sum(dim=-1, keepdim=True)).mul_(weights)
        if slope is not None:
            scores = scores.mul_(slope.view_as(scores))
        query = (_over(scores[..., :split], keys) + scores[..., split:] @ key) * ctx.scaling
        near = scores[..., split:].mT @ grouped, weights[..., split:].mT @ out
        return query.reshape(batch, heads, tokens, -1), *near, None, None, None, None, None, None


def _over(x: Tensor, table: Tensor) -> Tensor:
    """x (batch, kinds, n, a) @ table (rows, kinds, a, b), where batch / rows in a row share one table."""
    batch, kinds, n, a = x.shape
    rows = len(table)
    if batch == rows:
        return x @ table
    together = x.reshape(rows, batch // rows, kinds, n, a).transpose(1, 2).reshape(rows, kinds, -1, a) @ table
    apart = together.view(rows, kinds, batch // rows, n, -1).transpose(1, 2)
    return apart.reshape(batch, kinds, n, -1)


AttentionInterface.register(NAME, split_attention)


AttentionMaskInterface.register(NAME, eager_mask)
