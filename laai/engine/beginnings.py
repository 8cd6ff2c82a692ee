"""Run the tokens that many prompts begin with once: the demonstrations of a few-shot evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from laai.engine.prefix import Prefix, run_prefix
from laai.prompts import Prompt

WORTHWHILE = 8
"""Common tokens from which on a common beginning is run apart."""


SHARE = 0.5
"""The least share of all tokens in it: behind a common beginning a batch holds prompts of one length, few at a time."""


@dataclass(frozen=True)
class SharedPrefix:
    """Token ids (tokens,) that prompts begin with, run for one row."""

    ids: Tensor
    prefix: Prefix

    def __len__(self) -> int:
        return len(self.ids)

    def without(self, prompt: Prompt) -> Prompt:
        """The prompt less the common beginning."""
        return Prompt(prompt.prefix[len(self) :], prompt.suffix)


def share_prefix(llm: nn.Module, prompts: Sequence[Prompt]) -> SharedPrefix | None:
    """Run the prompts' common beginning once; the last prompt token is never part of it.

    Returns None where there is none worth it, or the model keeps no cache that can be continued.
    """
    length = common_length([prompt.prefix for prompt in prompts]) if len(prompts) > 1 else 0
    if length < max(WORTHWHILE, SHARE * sum(len(prompt.prompt) for prompt in prompts) / max(len(prompts), 1)):
        return None
    untyped: Any = llm
    ids = torch.tensor(prompts[0].prefix[:length], device=untyped.get_input_embeddings().weight.device)
    prefix = run_prefix(llm, ids[None], torch.ones_like(ids[None]))
    return None if prefix is None else SharedPrefix(ids, prefix)


def common_length(rows: Sequence[tuple[int, ...]]) -> int:
    """Length of the longest common beginning."""
    first, last = min(rows), max(rows)  # all others lie between these in lexicographic order
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
