"""Frozen prefixes of training examples, kept under a byte budget: on the model's device, else in host memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from laai.prefix import Prefix, PrefixRow, rows_of, stack_rows
from laai.prompts import Batch
from laai.words import PrefixBudget

Key = tuple[bytes, bytes]
"""An example: its prefix' and its suffix' tokens."""
AUTO_SHARE = 0.5
"""Share of the memory that is free when the first prefix is kept, that `auto` takes."""


@dataclass
class Kept:
    """One example's prefix, and the state of its suffix (tokens, width) where the first steered layer starts."""

    row: PrefixRow
    start: Tensor | None = None


class PrefixStore:
    """Prefixes by example. What the budget does not hold is run again whenever it is needed.

    Args:
        budget: bytes on the model's device, or `auto` for half of what is free there. On a device that is not the CPU,
            half of the free host memory comes on top.
    """

    def __init__(self, budget: PrefixBudget = "auto") -> None:
        self._budget = budget
        self._kept: dict[Key, Kept] = {}
        self._left: dict[torch.device, int] | None = None
        self._said = False

    def __len__(self) -> int:
        """Examples whose prefix is kept."""
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Bytes of all kept keys and values."""
        return sum(kept.row.bytes for kept in self._kept.values())

    def clear(self) -> None:
        """Forget all prefixes."""
        self._kept, self._left = {}, None

    def fetch(self, batch: Batch, run: Callable[[Tensor, Tensor], Prefix]) -> Prefix:
        """The prefix of a batch: kept rows, and the others by `run`, which gets their ids and mask (rows, tokens)."""
        keys = keys_of(batch)
        missing = [i for i, key in enumerate(keys) if key not in self._kept]
        if not missing:
            device = batch.prefix_ids.device
            return stack_rows([self._kept[key].row.to(device) for key in keys])
        width = int(batch.prefix_mask[missing].sum(-1).max())
        columns = slice(batch.prefix_ids.shape[1] - width, None)
        prefix = run(batch.prefix_ids[missing, columns], batch.prefix_mask[missing, columns])
        if len(missing) < len(keys):
            new = iter(rows_of(prefix))
            kept = [self._kept.get(key) for key in keys]
            prefix = stack_rows([next(new) if k is None else k.row.to(batch.prefix_ids.device) for k in kept])
        rows = rows_of(prefix)  # views of the batch's own tensors, so that a batch that comes again costs nothing more
        self._keep({keys[i]: rows[i] for i in missing})
        return prefix

    def start(self, batch: Batch) -> Tensor | None:
        """What `keep_start` was given for these examples: (batch, tokens, width), or None if any is missing."""
        kept = [self._kept.get(key) for key in keys_of(batch)]
        starts = [k.start for k in kept if k is not None and k.start is not None]
        if len(starts) < len(kept):
            return None
        padded = torch.nn.utils.rnn.pad_sequence(starts, batch_first=True)
        more = batch.suffix_ids.shape[1] - padded.shape[1]
        return torch.nn.functional.pad(padded, (0, 0, 0, more)).to(batch.suffix_ids.device)

    def keep_start(self, batch: Batch, hidden: Tensor) -> None:
        """Keep the state of each example's suffix tokens, (batch, tokens, width), at the first steered layer."""
        for key, tokens, state in zip(keys_of(batch), batch.suffix_mask.sum(-1).tolist(), hidden, strict=True):
            if key in self._kept:
                self._kept[key].start = state[:tokens]

    def _keep(self, rows: Mapping[Key, PrefixRow]) -> None:
        """Keep what fits: all rows as the views that they are, or copies of some, lest they hold the memory of all."""
        device = next(iter(rows.values())).layers[0][0].device
        if self._left is None:
            self._left = free_bytes(device, self._budget)
        all_fit = sum(row.bytes for row in rows.values()) <= self._left[device]
        for key, row in rows.items():
            home = next((place for place, left in self._left.items() if row.bytes <= left), None)
            if home is not None:
                self._left[home] -= row.bytes
                self._kept[key] = Kept(row if all_fit else row.to(home, copy=True))
            elif not self._said:
                self._said = True
                logging.getLogger("laai").warning(
                    "the prefixes of %d training examples fill the prefix cache (%.3g GB); those of the others are run "
                    "at every step: raise --model.prefix_cache if there is memory",
                    len(self), self.bytes / 1e9,
                )  # fmt: skip


def free_bytes(device: torch.device, budget: PrefixBudget) -> dict[torch.device, int]:
    """Bytes to fill by place, in this order: the device, then host memory, which the processes of a run share."""
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    host = int(AUTO_SHARE * psutil.virtual_memory().available / processes)
    if device.type == "cpu":
        return {device: host if budget == "auto" else int(budget)}
    if budget != "auto":
        return {device: int(budget), torch.device("cpu"): host}
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    return {device: int(AUTO_SHARE * free), torch.device("cpu"): host}


def keys_of(batch: Batch) -> list[Key]:
    """The examples of a batch by their tokens, which a row number does not tell apart across data sets."""
    tables = (batch.prefix_ids, batch.prefix_mask, batch.suffix_ids, batch.suffix_mask)
    prefix, before, suffix, after = (table.cpu() for table in tables)
    return [
        (_bytes(prefix[i], before[i]), _bytes(suffix[i], after[i]))
        for i in range(len(prefix))
    ]  # fmt: skip


def _bytes(ids: Tensor, mask: Tensor) -> bytes:
    return bytes(ids[mask.bool()].numpy().tobytes())


def take_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch, without the columns that are padding in all of them."""
    chosen = Batch(*(table[list(rows)] for table in batch))
    before = batch.prefix_ids.shape[1] - int(chosen.prefix_mask.sum(-1).max())
    after = int(chosen.suffix_mask.sum(-1).max())
    return Batch(
        chosen.prefix_ids[:, before:], chosen.prefix_mask[:, before:],
        chosen.suffix_ids[:, :after], chosen.suffix_mask[:, :after], chosen.labels[:, :after], chosen.rows,
    )  # fmt: skip
