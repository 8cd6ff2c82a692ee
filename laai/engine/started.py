"""Prompts in batches, less the tokens that were run before: a common beginning, or each prompt's own prefix."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from laai.engine.agreement import find_way
from laai.engine.beginnings import SharedPrefix, common_length, share_prefix
from laai.engine.prefix import NoPrefixError, Prefix, PrefixRow, prefix_of, rows_of, stack_rows
from laai.engine.store import PrefixStore, prefix_keys
from laai.prompts import Batch, Prompt, by_length, collate, to_device
from laai.vocabulary import PrefixBudget


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


class Reuse:
    """What evaluations of the same prompts have in common: prefixes by prompt, and common beginnings.

    Good as long as no vector is attached that changes a prefix: at positions `last_prompt` and `generated`, or none.

    Args:
        budget: bytes for the prefixes, as in `PrefixStore`; `off` to keep common beginnings alone.
    """

    def __init__(self, budget: PrefixBudget = "auto") -> None:
        self.budget, self.store = budget, PrefixStore(budget)
        self._beginnings: dict[tuple[int, ...], tuple[SharedPrefix, float]] = {}
        self._seconds: dict[bytes, float] = {}
        self._once = 0.0  # a prompt's share of the seconds that the common beginning took
        self._continues: bool | None = None if budget != "off" else False

    def clear(self) -> None:
        """Forget everything that was run."""
        self.store.clear()
        self._beginnings.clear()
        self._seconds.clear()

    def beginning(self, llm: nn.Module, prompts: Sequence[Prompt]) -> tuple[SharedPrefix, float] | None:
        """The common beginning of these prompts, or an earlier one that they share, and the seconds it took."""
        for ids, known in self._beginnings.items():
            if len(ids) == common_length([ids, *(prompt.prefix for prompt in prompts)]):
                return known
        began = time.perf_counter()
        shared = share_prefix(llm, prompts)
        if shared is None:
            return None
        found = self._beginnings[tuple(shared.ids.tolist())] = (shared, time.perf_counter() - began)
        return found

    def behind(self, llm: nn.Module, prompts: Sequence[Prompt]) -> Reuse | None:
        """With an empty store for these prompts, too long to be kept for good, behind what they all begin with.

        None where they have no beginning in common that is worth it.
        """
        known = None if self.budget == "off" else self.beginning(llm, prompts)
        if known is None:
            return None
        other = Reuse(self.budget)
        other._once = known[1] / len(prompts)
        other.store.quiet, other._beginnings = True, self._beginnings
        other._continues = self._continues is not False
        return other

    def own(self, llm: nn.Module, batch: Batch) -> tuple[Prefix, list[float]] | None:
        """Each row's own prefix and the seconds it took; None where the model keeps nothing that can be continued."""
        if self._continues is False or not batch.prefix_ids.shape[1]:
            return None
        if self._continues is None:
            self._continues = find_way(llm, batch, ways=("append",)) is not None
            return self.own(llm, batch)
        began = time.perf_counter()
        keys = prefix_keys(batch)
        missing = [key for key in keys if key not in self._seconds]
        try:
            prefix = self.store.fetch(batch, lambda ids, mask: self._run(llm, ids, mask))
        except NoPrefixError:
            return None
        if missing:
            self._seconds |= dict.fromkeys(missing, (time.perf_counter() - began) / len(missing))
        return prefix, [self._seconds[key] + self._once for key in keys]

    def _run(self, llm: nn.Module, ids: Tensor, mask: Tensor) -> Prefix:
        """The prefixes of rows, padded on the left: behind the beginning that they have in common, if it is known."""
        lengths = mask.sum(-1).tolist()
        rows = [tuple(row[len(row) - length :]) for row, length in zip(ids.tolist(), lengths, strict=True)]
        for begun, (shared, _) in self._beginnings.items():
            if len(begun) < min(lengths) and all(row[: len(begun)] == begun for row in rows):
                found: dict[int, PrefixRow] = {}
                # Of one length each: padding would stand between the beginning and the rest.
                for length in sorted(set(lengths)):
                    chosen = [i for i, own in enumerate(lengths) if own == length]
                    rest = ids[chosen, ids.shape[1] - length + len(begun) :]
                    prefix = prefix_of(llm, rest, torch.ones_like(rest), shared.prefix.repeated(len(chosen)))
                    found |= dict(zip(chosen, rows_of(prefix), strict=True))
                return stack_rows([found[i] for i in range(len(rows))], ids.device)
        return prefix_of(llm, ids, mask)


def started_batches(
    llm: nn.Module, prompts: Sequence[Prompt], pad: int, batch_size: int, reuse: Reuse | None = None, own: bool = False
) -> Iterator[Started]:
    """Prompts in batches of similar length, with what was run before.

    Args:
        llm: a causal LM, as it is.
        prompts: with or without answers.
        pad: the id to pad with.
        batch_size: prompts at a time.
        reuse: what earlier calls ran; `own` prefixes need one.
        own: run each prompt's own prefix apart, for others to come with the same prompts; else the beginning that all
            of these prompts have in common, if there is one worth it.
    """
    if own and reuse is not None:
        for rows in by_length(prompts, batch_size):
            batch = to_device(collate([prompts[i] for i in rows], pad), llm)
            found = reuse.own(llm, batch)
            if found is None:
                yield Started(rows, batch, batch.prefix_ids[:, :0], None, [0.0] * len(rows))
            else:
                yield Started(rows, batch.without_prefix(), batch.prefix_ids, *found)
        return
    known = (reuse or Reuse()).beginning(llm, prompts) if prompts else None
    shared, seconds = known or (None, 0.0)
    once = seconds / max(len(prompts), 1)
    rests = [shared.without(prompt) for prompt in prompts] if shared else list(prompts)
    for rows in by_length(rests, batch_size, equal=shared is not None):
        batch = to_device(collate([rests[i] for i in rows], pad), llm)
        ids = batch.prefix_ids[:, :0] if shared is None else shared.ids.expand(len(rows), -1)
        yield Started(rows, batch, ids, shared.prefix.repeated(len(rows)) if shared else None, [once] * len(rows))
