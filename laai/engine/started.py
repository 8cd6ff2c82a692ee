"""Prompts in batches, less the tokens that were run before: a common beginning, or each prompt's own prefix."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from laai.engine.agreement import find_way
from laai.engine.beginnings import Beginning, Beginnings
from laai.engine.prefix import NoPrefixError, Prefix, PrefixRow, rows_of, run_prefix, stack_rows
from laai.engine.store import PrefixStore, prefix_keys
from laai.models import LanguageModel
from laai.prompts import Batch, Prompt, by_length, collate


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
        model: the language model.
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
