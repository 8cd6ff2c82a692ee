"""Run the tokens that many prompts begin with once: the demonstrations of a few-shot evaluation.

By causality the keys and values of a common beginning do not depend on what follows it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from laai.positions import prompts_of
from laai.prompts import Prompt

WORTHWHILE = 8
"""Common tokens from which on a common beginning is run apart."""


@dataclass(frozen=True)
class SharedPrefix:
    """Token ids (tokens,) that prompts begin with, and their keys and values for one row."""

    ids: Tensor
    cache: DynamicCache

    def __len__(self) -> int:
        return len(self.ids)

    def for_rows(self, rows: int) -> DynamicCache:
        """The cache for a batch; a copy, because a forward appends to it."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        return cache

    def without(self, prompt: Prompt) -> Prompt:
        """The prompt less the common beginning."""
        return Prompt(prompt.prefix[len(self) :], prompt.suffix)


@torch.no_grad()
def share_prefix(llm: nn.Module, prompts: Sequence[Prompt]) -> SharedPrefix | None:
    """Run the prompts' common beginning once.

    Returns None where there is none worth it, or the model keeps no cache that can be continued row by row. The last
    prompt token is never part of it, so vectors at `last_prompt` and `generated` do not touch it; at `all` they do, as
    they should.
    """
    length = common_length([prompt.prefix for prompt in prompts]) if len(prompts) > 1 else 0
    if length < WORTHWHILE or "past_key_values" not in inspect.signature(llm.forward).parameters:
        return None
    ids = torch.tensor(prompts[0].prefix[:length], device=llm.get_input_embeddings().weight.device)  # type: ignore
    with prompts_of(torch.tensor([length + 1], device=ids.device)):
        cache = llm(input_ids=ids[None], use_cache=True).past_key_values
    if type(cache) is not DynamicCache or cache.get_seq_length() != length:
        return None
    return SharedPrefix(ids, cache)


def common_length(rows: Sequence[tuple[int, ...]]) -> int:
    """Length of the longest common beginning."""
    first, last = min(rows), max(rows)  # all others lie between these in lexicographic order
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
