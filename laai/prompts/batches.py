"""Prompts as token ids and tensors, split at the last prompt token into prefix and suffix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = -100
"""Label of a position whose next token is not part of the answer (the value that PyTorch's losses ignore)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of one prompt, with or without its answer.

    Attributes:
        prefix: all tokens before the last prompt token; may be empty.
        suffix: the last prompt token, then the answer's tokens if there is an answer.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @property
    def prompt(self) -> tuple[int, ...]:
        """The prompt's own tokens."""
        return (*self.prefix, self.suffix[0])

    @property
    def answer(self) -> tuple[int, ...]:
        """The answer's tokens, its terminator included."""
        return self.suffix[1:]


class Batch(NamedTuple):
    """Prompts as int64 tensors. Prefixes are padded on the left and suffixes on the right: rows meet in the middle.

    Attributes:
        prefix_ids, prefix_mask: (batch, prefix tokens).
        suffix_ids, suffix_mask: (batch, suffix tokens); column 0 is each row's last prompt token.
        labels: (batch, suffix tokens), the answer token that follows each suffix position, else `IGNORE`.
        rows: (batch,), which example each row is.
    """

    prefix_ids: Tensor
    prefix_mask: Tensor
    suffix_ids: Tensor
    suffix_mask: Tensor
    labels: Tensor
    rows: Tensor

    @property
    def prompt_lengths(self) -> Tensor:
        """(batch,) number of prompt tokens in each row."""
        return self.prefix_mask.sum(-1) + 1

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(*(table.to(device) for table in self))

    def row(self, index: int) -> Batch:
        """One row by itself, its suffix without padding."""
        only, tokens = slice(index, index + 1), slice(max(int(self.suffix_mask[index].sum()), 1))
        suffix = (self.suffix_ids[only, tokens], self.suffix_mask[only, tokens], self.labels[only, tokens])
        return Batch(self.prefix_ids[only], self.prefix_mask[only], *suffix, self.rows[only])

    def without_prefix(self) -> Batch:
        """What is left when the prefixes are run already."""
        return Batch(self.prefix_ids[:, :0], self.prefix_mask[:, :0], *self[2:5], self.rows)

    def repeated(self, times: int) -> Batch:
        """Each row `times` times in a row."""
        return Batch(*(table.repeat_interleave(times, dim=0) for table in self))

    def rows_at(self, rows: Sequence[int]) -> Batch:
        """Some rows, without the columns that are padding in all of them."""
        chosen = Batch(*(table[list(rows)] for table in self))
        before = self.prefix_ids.shape[1] - int(chosen.prefix_mask.sum(-1).max())
        after = int(chosen.suffix_mask.sum(-1).max())
        suffix = (chosen.suffix_ids[:, :after], chosen.suffix_mask[:, :after], chosen.labels[:, :after])
        return Batch(chosen.prefix_ids[:, before:], chosen.prefix_mask[:, before:], *suffix, chosen.rows)


def collate(prompts: Sequence[Prompt], pad: int, rows: Sequence[int] | None = None) -> Batch:
    """Stack prompts into a `Batch`; `rows` names the examples (default: 0, 1, …)."""
    before, after = max(len(p.prefix) for p in prompts), max(len(p.suffix) for p in prompts)

    def table(lines: list[list[int]]) -> Tensor:
        return torch.tensor(lines, dtype=torch.int64)

    left = [before - len(p.prefix) for p in prompts]
    right = [after - len(p.suffix) for p in prompts]
    return Batch(
        prefix_ids=table([[pad] * n + list(p.prefix) for p, n in zip(prompts, left, strict=True)]),
        prefix_mask=table([[0] * n + [1] * len(p.prefix) for p, n in zip(prompts, left, strict=True)]),
        suffix_ids=table([list(p.suffix) + [pad] * n for p, n in zip(prompts, right, strict=True)]),
        suffix_mask=table([[1] * len(p.suffix) + [0] * n for p, n in zip(prompts, right, strict=True)]),
        labels=table([list(p.answer) + [IGNORE] * (n + 1) for p, n in zip(prompts, right, strict=True)]),
        rows=torch.tensor(range(len(prompts)) if rows is None else rows, dtype=torch.int64),
    )


def by_length(prompts: Sequence[Prompt], batch_size: int, equal: bool = False) -> Iterator[list[int]]:
    """Batches of row numbers, longest prompts first, so that little is padding and memory fails early if it does.

    With `equal`, the prompts of a batch have one length, answers aside: behind a shared beginning padding would stand
    between real tokens, where sliding windows and MPT's distances count it.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].prefix) - (not equal) * len(prompts[i].suffix))
    groups = [list(g) for _, g in groupby(order, key=lambda i: len(prompts[i].prefix))] if equal else [order]
    for group in groups:
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def without_unlabelled_end(batch: Batch) -> Batch:
    """The batch without each row's last answer token, which is only predicted; nothing comes after it."""
    runs = batch.suffix_mask.bool() & (batch.labels != IGNORE)
    runs[:, 0] = True  # the last prompt token, even where there is no answer
    width = int(runs.any(dim=0).nonzero().max()) + 1
    suffix = (batch.suffix_ids[:, :width], runs[:, :width].long(), batch.labels[:, :width])
    return Batch(batch.prefix_ids, batch.prefix_mask, *suffix, batch.rows)
