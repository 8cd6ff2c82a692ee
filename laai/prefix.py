"""The frozen prefix: tokens that no vector can change, run once and continued any number of times.

By causality a vector added at the last prompt token, or from there on, changes no key or value of the tokens before it.
So their keys and values are computed once, without a gradient, and each later forward runs the tokens after them alone.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from laai.layers import unwrap
from laai.positions import prompts_of


@dataclass(frozen=True)
class Prefix:
    """Tokens that are run already. `mask`: (rows, tokens), 0 at padding. `cache`: their keys and values."""

    mask: Tensor
    cache: DynamicCache

    def expand(self, rows: int) -> Prefix:
        """One row's prefix as that of many."""
        cache = self.continued()
        cache.batch_repeat_interleave(rows)
        return Prefix(self.mask.expand(rows, -1), cache)

    def continued(self) -> DynamicCache:
        """A cache to go on with. It shares the tensors: a forward puts new ones into it and leaves these alone."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return cache


@torch.no_grad()
def run_prefix(llm: nn.Module, ids: Tensor, mask: Tensor) -> Prefix | None:
    """Run tokens (rows, tokens) that come before any last prompt token, with their 0/1 mask of the same shape.

    Vectors at `last_prompt` and `generated` do not touch them; vectors at `all` do, as they should.

    Returns None where the model keeps no cache of keys and values that can be continued row by row.
    """
    if "past_key_values" not in inspect.signature(unwrap(llm).forward).parameters:
        return None
    with prompts_of(mask.sum(-1) + 1):
        cache = llm(
            input_ids=ids, attention_mask=mask, **position_options(llm, mask, 1), use_cache=True
        ).past_key_values
    if type(cache) is not DynamicCache or cache.get_seq_length() != ids.shape[1]:
        return None
    return Prefix(mask, cache)


def position_options(llm: nn.Module, mask: Tensor, keep: int) -> dict[str, Any]:
    """Forward arguments that this model takes: position ids that follow the mask, and the logits to keep.

    Without position ids that follow the mask, left padding shifts learned positions.
    """
    accepted = inspect.signature(unwrap(llm).forward).parameters  # PEFT's own forward names few of them
    options: dict[str, Any] = {}
    if "position_ids" in accepted:
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = keep
    return options
