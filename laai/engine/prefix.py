"""The frozen prefix: tokens that no vector can change, run once and continued any number of times.

By causality a vector added at the last prompt token, or from there on, changes no key or value of the tokens before it.
So their keys and values are computed once, without a gradient, and each later forward runs the tokens after them alone.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from laai.errors import UserError
from laai.models import LanguageModel, unwrap
from laai.steering import prompts_of

ROOM = 256
"""Tokens that may come after a prefix: the last prompt token and the answer."""


class NoPrefixError(RuntimeError):
    """This model, or a prompt of this length, has no prefix that can be kept: whole prompts have to be run."""


@dataclass(frozen=True)
class Prefix:
    """Tokens that are run already. `mask`: (rows, tokens), 0 at padding. `cache`: their keys and values."""

    mask: Tensor
    cache: DynamicCache

    def repeated(self, times: int, copy: bool = True) -> Prefix:
        """Each row `times` times in a row. `copy` False: in the mask alone, as attention that splits needs no more."""
        cache = self.continued()
        if copy and times > 1:
            cache.batch_repeat_interleave(times)
        return Prefix(self.mask.repeat_interleave(times, dim=0), cache)

    def continued(self) -> DynamicCache:
        """A cache to go on with. It shares the tensors: a forward puts new ones into it and leaves these alone."""
        return _shallow(self.cache)


@torch.no_grad()
def run_prefix(model: LanguageModel, ids: Tensor, mask: Tensor, before: Prefix | None = None) -> Prefix:
    """Run tokens (rows, tokens) that come before any last prompt token, with their 0/1 mask of the same shape.

    `before`: what comes before each row, run already; the result holds it too. It is as its rows were: no padding may
    stand between it and the rest.

    Vectors at `last_prompt` and `generated` do not touch them; vectors at `all` do, as they should.

    Raises:
        NoPrefixError: the model keeps no keys and values that can be continued row by row.
    """
    tokens = mask.shape[1] + (0 if before is None else before.mask.shape[1])
    if "past_key_values" not in _accepted(model) or _outgrows(model, tokens):
        raise NoPrefixError
    arguments = forward_arguments(model, ids, mask, before, 1)
    whole: Tensor = arguments["attention_mask"]
    with prompts_of(whole.sum(-1) + 1):
        cache = model.llm(**arguments, use_cache=True).past_key_values
    if type(cache) is not DynamicCache or not cache.layers:
        raise NoPrefixError
    for layer in _layers(cache):  # state space and linear attention fold all tokens into one state
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) or layer.get_seq_length() != tokens:
            raise NoPrefixError
    return Prefix(whole, cache)


def _outgrows(model: LanguageModel, tokens: int) -> bool:
    """Whether a prompt may come to the length from which on the rotation of all its keys is another one.

    Long and dynamic rotary embeddings choose by the longest prompt in a forward, so that keys that were kept from a
    short one would not fit.
    """
    config = model.config
    stated = getattr(config, "rope_parameters", None) or {}
    for rope in stated.values() if all(isinstance(value, dict) for value in stated.values()) else [stated]:
        if rope.get("rope_type") in ("longrope", "dynamic"):
            limit = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", config.max_position_embeddings
            )
            return bool(tokens + ROOM > limit)
    return False


def _accepted(model: LanguageModel) -> Mapping[str, Any]:
    """What the model's own forward takes; PEFT's names little of it."""
    return inspect.signature(unwrap(model.llm).forward).parameters


@dataclass(frozen=True)
class PrefixRow:
    """One example's prefix, without padding.

    Attributes:
        length: tokens.
        layers: (keys, values) of each layer, each (key heads, tokens that are kept, width): all tokens, or those that a
            sliding window can still see.
        made_by: the cache that it was cut from, for the kinds of its layers.
    """

    length: int
    layers: tuple[tuple[Tensor, Tensor], ...]
    made_by: DynamicCache

    @property
    def bytes(self) -> int:
        """Bytes of its keys and values."""
        return sum(t.numel() * t.element_size() for pair in self.layers for t in pair)

    def copied(self, device: torch.device | None = None) -> PrefixRow:
        """A copy that holds no other row's memory, on a device or where it is."""
        layers = [[t.to(device or t.device, copy=True) for t in pair] for pair in self.layers]
        return PrefixRow(self.length, tuple((keys, values) for keys, values in layers), self.made_by)


def rows_of(prefix: Prefix) -> list[PrefixRow]:
    """The rows of a prefix that is padded on the left: views of its tensors."""
    bare, layers = _without_tensors(prefix.cache), _layers(prefix.cache)
    return [
        PrefixRow(length, tuple((_last(at.keys, i, length), _last(at.values, i, length)) for at in layers), bare)
        for i, length in enumerate(prefix.mask.sum(-1).tolist())
    ]


def stack_rows(rows: Sequence[PrefixRow], device: torch.device) -> Prefix:
    """Rows as one prefix, padded on the left, each layer on its own device and the mask on `device`. Copies."""
    tokens = max(row.length for row in rows)
    cache = _without_tensors(rows[0].made_by)
    for index, layer in enumerate(_layers(cache)):
        layer.keys, layer.values = (
            _pad_left([row.layers[index][part].to(layer.device) for row in rows]) for part in (0, 1)
        )
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = tokens
    lengths = torch.tensor([row.length for row in rows], device=device)
    mask = torch.arange(tokens, device=device) >= tokens - lengths[:, None]
    return Prefix(mask.long(), cache)


def _shallow(cache: DynamicCache) -> DynamicCache:
    """A cache with layers of its own and the same tensors."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    return new


def _without_tensors(cache: DynamicCache) -> DynamicCache:
    bare = _shallow(cache)
    for layer in _layers(bare):
        layer.keys = layer.values = None
    return bare


def _layers(cache: DynamicCache) -> list[Any]:
    """The layers of a cache; transformers types them as kinds without keys too."""
    return list(cache.layers)


def _last(table: Any, row: int, length: int) -> Tensor:
    kept: Tensor = table[row]
    return kept[:, max(kept.shape[1] - length, 0) :]


def _pad_left(parts: Sequence[Tensor]) -> Tensor:
    width = max(part.shape[1] for part in parts)
    return torch.stack([functional.pad(part, (0, 0, width - part.shape[1], 0)) for part in parts])


def forward_arguments(
    model: LanguageModel, ids: Tensor, mask: Tensor, before: Prefix | None, keep: int
) -> dict[str, Any]:
    """What a forward takes to run ids (rows, tokens) after `before`; logits of the last `keep` columns are wanted."""
    whole = mask if before is None else torch.cat([before.mask, mask], dim=1)
    options = position_options(model, whole, keep)
    if "position_ids" in options:
        options["position_ids"] = options["position_ids"][:, -ids.shape[1] :]
    cache = {} if before is None else {"past_key_values": before.continued()}
    return {"input_ids": ids, "attention_mask": whole} | options | cache


def position_options(model: LanguageModel, mask: Tensor, keep: int) -> dict[str, Any]:
    """Forward arguments that this model takes: position ids that follow the mask, and the logits to keep.

    Without position ids that follow the mask, left padding shifts learned positions.

    Raises:
        UserError: see `check_length`.
    """
    check_length(model, mask)
    accepted = _accepted(model)
    options: dict[str, Any] = {}
    if "position_ids" in accepted:
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = keep
    return options


def check_length(model: LanguageModel, mask: Tensor, more: int = 0) -> None:
    """Raise UserError if rows of a 0/1 mask (rows, tokens), and `more` tokens, outgrow a table of learned positions.

    Models that compute their positions run on, with a warning.
    """
    limit = model.context
    if not limit or mask.shape[1] + more <= limit or (longest := int(mask.sum(-1).max()) + more) <= limit:
        return
    tables = [m.num_embeddings for m in model.llm.modules() if isinstance(m, nn.Embedding)]
    if any(0 <= rows - limit <= 2 for rows in tables):  # OPT has 2 more
        raise UserError(
            f"a prompt with its answer has {longest} tokens, and the model no more than {limit} positions: "
            "take fewer or shorter examples"
        )
    warnings.warn(
        f"a prompt with its answer is longer than the {limit} tokens that this model was made for: "
        "what it says there may be worth little",
        stacklevel=2,
    )
