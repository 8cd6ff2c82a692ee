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

from laai.errors import UserError
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

    Raises:
        UserError: see `check_length`.
    """
    check_length(llm, mask)
    accepted = inspect.signature(unwrap(llm).forward).parameters  # PEFT's own forward names few of them
    options: dict[str, Any] = {}
    if "position_ids" in accepted:
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = keep
    return options


def check_length(llm: nn.Module, mask: Tensor, more: int = 0) -> None:
    """Raise UserError if rows of a 0/1 mask (rows, tokens), and `more` tokens, outgrow a table of learned positions.

    Models that compute their positions run on, at their own risk.
    """
    config = unwrap(llm).config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    limit = getattr(config, "max_position_embeddings", None)
    if not limit or mask.shape[1] + more <= limit or (longest := int(mask.sum(-1).max()) + more) <= limit:
        return
    if any(isinstance(m, nn.Embedding) and 0 <= m.num_embeddings - limit <= 2 for m in llm.modules()):  # OPT has 2 more
        raise UserError(
            f"a prompt with its answer has {longest} tokens, and the model no more than {limit} positions: "
            "take fewer or shorter examples"
        )
