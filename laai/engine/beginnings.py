"""Prompts in batches, less the tokens that were run before: a common beginning, or each prompt's own prefix.

A common beginning, such as the demonstrations of a few-shot evaluation, is run once for all of its prompts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from laai.engine.agreement import find_way
from laai.engine.prefix import NoPrefixError, Prefix, PrefixRow, rows_of, run_prefix, stack_rows
from laai.engine.store import Memory, PrefixStore, Taken, prefix_keys
from laai.models import LanguageModel
from laai.prompts import Batch, Prompt, by_length, collate

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


@dataclass(frozen=True)
class Started:
    """A batch of prompts of which some tokens are run already.

    Attributes:
        rows: which prompts these are.
        batch: what is left of each, with its answer if it has one.
        ids: (rows, tokens) those that were run; padded on the left.
        before: their keys and values; None if nothing was run.
        seconds: that running them took, a row; for each row on its own, however often it is used.
    """

    rows: list[int]
    batch: Batch
    ids: Tensor
    before: Prefix | None
    seconds: list[float]


def whole(rows: list[int], batch: Batch) -> Started:
    """A batch of which nothing was run."""
    return Started(rows, batch, batch.prefix_ids[:, :0], None, [0.0] * len(rows))


def batches_of(model: LanguageModel, prompts: Sequence[Prompt], batch_size: int) -> Iterator[tuple[list[int], Batch]]:
    """Prompts in batches of similar length, on the model's device, and which prompts each batch holds."""
    for rows in by_length(prompts, batch_size):
        yield rows, collate([prompts[i] for i in rows], model.pad).to(model.device)


def behind_beginning(
    model: LanguageModel, prompts: Sequence[Prompt], batch_size: int, beginning: Beginning | None
) -> Iterator[Started]:
    """Prompts in batches behind what all of them begin with; whole prompts where that is nothing."""
    if beginning is None:
        for rows, batch in batches_of(model, prompts, batch_size):
            yield whole(rows, batch)
        return
    once, rests = beginning.seconds / len(prompts), [beginning.without(prompt) for prompt in prompts]
    for rows in by_length(rests, batch_size, equal=True):
        batch = collate([rests[i] for i in rows], model.pad).to(model.device)
        ids = beginning.ids.expand(len(rows), -1)
        yield Started(rows, batch, ids, beginning.prefix.repeated(len(rows)), [once] * len(rows))


class Passes:
    """What passes over the same prompts have in common.

    Args:
        store: for the prefixes.
        beginnings: common beginnings that are known; prefixes are run behind them.
        continues: whether the model continues a prefix; None to ask it, of the first batch that has one.
        behind: what all of these prompts begin with.
        count: how many prompts share the seconds that `behind` took.
    """

    def __init__(
        self,
        model: LanguageModel,
        store: PrefixStore,
        beginnings: Beginnings,
        continues: bool | None,
        behind: Beginning | None = None,
        count: int = 1,
    ) -> None:
        self.store, self.continues = store, continues
        self._model, self._beginnings, self._behind = model, beginnings, behind
        self._once = behind.seconds / count if behind is not None else 0.0
        self._seconds: dict[bytes, float] = {}

    def clear(self) -> None:
        """Forget the prefixes."""
        self.store.clear()
        self._seconds.clear()

    def batches(self, prompts: Sequence[Prompt], batch_size: int) -> Iterator[Started]:
        """Prompts in batches, each behind its own prefix; whole where the model keeps none that can be continued."""
        for rows, batch in batches_of(self._model, prompts, batch_size):
            if self.continues is None and batch.prefix_ids.shape[1]:
                self.continues = find_way(self._model, batch, ways=("append",)) is not None
            yield self._started(rows, batch)

    def _started(self, rows: list[int], batch: Batch) -> Started:
        if not self.continues or not batch.prefix_ids.shape[1]:
            return whole(rows, batch)
        began, keys = time.perf_counter(), prefix_keys(batch)
        missing = [key for key in keys if key not in self._seconds]
        try:
            prefix = self.store.fetch(batch, self._run)
        except NoPrefixError:
            return whole(rows, batch)
        if missing:
            self._seconds |= dict.fromkeys(missing, (time.perf_counter() - began) / len(missing))
        seconds = [self._seconds[key] + self._once for key in keys]
        return Started(rows, batch.without_prefix(), batch.prefix_ids, prefix, seconds)

    def _run(self, ids: Tensor, mask: Tensor) -> Prefix:
        """The prefixes of rows, padded on the left: behind the beginning that they have in common, if it is known."""
        lengths = mask.sum(-1).tolist()
        rows = [tuple(row[len(row) - length :]) for row, length in zip(ids.tolist(), lengths, strict=True)]
        known = [*self._beginnings.kept.values(), *([self._behind] if self._behind is not None else [])]
        for beginning in known:
            begun = tuple(beginning.ids.tolist())
            if len(begun) < min(lengths) and all(row[: len(begun)] == begun for row in rows):
                found: dict[int, PrefixRow] = {}
                # Of one length each: padding would stand between the beginning and the rest.
                for length in sorted(set(lengths)):
                    chosen = [i for i, own in enumerate(lengths) if own == length]
                    rest = ids[chosen, ids.shape[1] - length + len(begun) :]
                    before = beginning.prefix.repeated(len(chosen))
                    prefix = run_prefix(self._model, rest, torch.ones_like(rest), before)
                    found |= dict(zip(chosen, rows_of(prefix), strict=True))
                return stack_rows([found[i] for i in range(len(rows))], ids.device)
        return run_prefix(self._model, ids, mask)
