"""The tokens that many prompts begin with, run once: the demonstrations of a few-shot evaluation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from laai.engine.prefix import NoPrefixError, Prefix, rows_of, run_prefix
from laai.engine.store import Memory, Taken
from laai.models import LanguageModel
from laai.prompts import Prompt

WORTHWHILE = 8
"""Common tokens from which on a common beginning is run apart."""

SHARE = 0.5
"""The least share of all tokens in it: behind a common beginning a batch holds prompts of one length, few at a time."""


@dataclass(frozen=True)
class Beginning:
    """Token ids (tokens,) that prompts begin with, run for one row in so many seconds."""

    ids: Tensor
    prefix: Prefix
    seconds: float

    def __len__(self) -> int:
        return len(self.ids)

    def without(self, prompt: Prompt) -> Prompt:
        """The prompt less the common beginning."""
        return Prompt(prompt.prefix[len(self) :], prompt.suffix)


class Beginnings:
    """Common beginnings of prompts, kept as far as there is memory."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.kept: dict[tuple[int, ...], Beginning] = {}
        self._taken: Taken = []

    def clear(self) -> None:
        """Forget all."""
        self.kept = {}
        self._memory.give_back(self._taken)

    def of(self, model: LanguageModel, prompts: Sequence[Prompt]) -> Beginning | None:
        """The common beginning of these prompts, or an earlier one that they share; None where none is worth it."""
        for ids, known in self.kept.items() if prompts else ():
            if len(ids) == common_length([ids, *(prompt.prefix for prompt in prompts)]):
                return known
        found = begin(model, prompts)
        if found is not None:
            size, device = rows_of(found.prefix)[0].bytes, found.prefix.mask.device
            if size <= self._memory.left(device)[device]:  # not on the host: it would come from there for each batch
                self._memory.take(size, device, self._taken)
                self.kept[tuple(found.ids.tolist())] = found
        return found


def begin(model: LanguageModel, prompts: Sequence[Prompt]) -> Beginning | None:
    """Run the prompts' common beginning once; the last prompt token is never part of it.

    None where there is none worth it, or the model keeps no cache that can be continued.
    """
    began = time.perf_counter()
    length = common_length([prompt.prefix for prompt in prompts]) if len(prompts) > 1 else 0
    if length < max(WORTHWHILE, SHARE * sum(len(prompt.prompt) for prompt in prompts) / max(len(prompts), 1)):
        return None
    ids = torch.tensor(prompts[0].prefix[:length], device=model.device)
    try:
        prefix = run_prefix(model, ids[None], torch.ones_like(ids[None]))
    except NoPrefixError:
        return None
    return Beginning(ids, prefix, time.perf_counter() - began)


def common_length(rows: Sequence[tuple[int, ...]]) -> int:
    """Length of the longest common beginning."""
    first, last = min(rows), max(rows)  # all others lie between these in lexicographic order
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
