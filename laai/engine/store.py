"""What is kept of prompts that come again, under a byte budget: on the model's device, else in host memory."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from laai.engine.prefix import Prefix, PrefixRow, rows_of, stack_rows
from laai.models import free_memory
from laai.prompts import Batch
from laai.vocabulary import PrefixBudget

AUTO_SHARE = 0.5
"""Share of the memory that is free when the first prefix is kept, that `auto` takes."""

Taken = list[tuple[int, torch.device]]
"""Bytes that a store holds, and where."""


class Memory:
    """The bytes that stores may fill together, by place.

    Args:
        budget: bytes on the model's device, or `auto` for half of what is free there. What does not fit on another
            device than the CPU goes to host memory, up to half of what is free of it.
    """

    def __init__(self, budget: PrefixBudget = "auto") -> None:
        self._budget = budget
        self._left: dict[torch.device, int] = {}
        self.taken = 0

    def left(self, device: torch.device) -> dict[torch.device, int]:
        """What is left, the device first; what is free is looked at when the first is to be kept."""
        if device not in self._left:
            self._left = free_bytes(device, self._budget)
        return self._left

    def take(self, size: int, device: torch.device, taken: Taken) -> torch.device | None:
        """The place for so many bytes, which are noted in `taken`; None where no place has so many left."""
        left = self.left(device)
        home = next((place for place, bytes_left in left.items() if size <= bytes_left), None)
        if home is not None:
            left[home] -= size
            self.taken += size
            taken.append((size, home))
        return home

    def give_back(self, taken: Taken) -> None:
        """All that is noted there is free again."""
        for size, place in taken:
            self.taken -= size
            self._left[place] = self._left.get(place, 0) + size
        taken.clear()
        if not self.taken:
            self._left = {}


class PrefixStore:
    """Prefixes by their tokens, and states of what comes after them. What memory does not hold is run again."""

    def __init__(self, memory: Memory | None = None) -> None:
        self._memory = memory or Memory()
        self._rows: dict[bytes, PrefixRow] = {}
        self._states: dict[tuple[bytes, bytes], Tensor] = {}
        self._taken: Taken = []
        self.quiet = False
        weakref.finalize(self, self._memory.give_back, self._taken)

    def __len__(self) -> int:
        """Prefixes that are kept."""
        return len(self._rows)

    @property
    def size(self) -> int:
        """Bytes of all kept keys, values and states."""
        states = sum(t.numel() * t.element_size() for t in self._states.values())
        return sum(row.bytes for row in self._rows.values()) + states

    def clear(self) -> None:
        """Forget everything."""
        self._rows, self._states = {}, {}
        self._memory.give_back(self._taken)

    def fetch(self, batch: Batch, run: Callable[[Tensor, Tensor], Prefix]) -> Prefix:
        """The prefix of a batch: kept rows, and the others by `run`, which gets their ids and mask (rows, tokens)."""
        keys, device = prefix_keys(batch), batch.prefix_ids.device
        missing = {key: keys.index(key) for key in keys if key not in self._rows}
        if not missing:
            return stack_rows([self._rows[key] for key in keys], device)
        chosen = list(missing.values())
        width = max(int(batch.prefix_mask[chosen].sum(-1).max()), 1)  # a forward needs a token, if a masked one
        columns = slice(batch.prefix_ids.shape[1] - width, None)
        prefix = run(batch.prefix_ids[chosen, columns], batch.prefix_mask[chosen, columns])
        if len(chosen) < len(keys):
            new = dict(zip((keys[i] for i in chosen), rows_of(prefix), strict=True))
            prefix = stack_rows([new[key] if key in new else self._rows[key] for key in keys], device)
        rows = rows_of(prefix)  # views of the batch's own tensors, so that a batch that comes again costs nothing more
        self._keep({key: rows[i] for key, i in missing.items()})
        return prefix

    def state(self, batch: Batch) -> Tensor | None:
        """What `keep_state` was given for these examples: (batch, tokens, width), or None if any is missing."""
        found = [self._states.get(key) for key in row_keys(batch)]
        states = [state.to(batch.suffix_ids.device) for state in found if state is not None]
        if len(states) < len(found):
            return None
        padded = nn.utils.rnn.pad_sequence(states, batch_first=True)
        return functional.pad(padded, (0, 0, 0, batch.suffix_ids.shape[1] - padded.shape[1]))

    def keep_state(self, batch: Batch, hidden: Tensor) -> None:
        """Keep a state (batch, tokens, width) of the suffix's tokens, for examples whose prefix is kept."""
        lengths, token = batch.suffix_mask.sum(-1).tolist(), hidden.shape[-1] * hidden.element_size()
        for key, tokens, state in zip(row_keys(batch), lengths, hidden, strict=True):
            if key[0] in self._rows and key not in self._states:
                home = self._memory.take(tokens * token, hidden.device, self._taken)
                if home is not None:
                    kept = state[:tokens]
                    self._states[key] = kept.to(home) if home.type != kept.device.type else kept

    def _keep(self, rows: Mapping[bytes, PrefixRow]) -> None:
        """Keep what fits: as views where these hold little more than is counted, else as copies."""
        device = next(iter(rows.values())).layers[0][0].device
        # Views hold their batch's whole tensors: padding, what slid out of a window, and rows that are kept already.
        storages = [t.untyped_storage() for row in rows.values() for pair in row.layers for t in pair]
        held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
        views = held <= min(self._memory.left(device)[device], 1.25 * sum(row.bytes for row in rows.values()))
        for key, row in rows.items():
            home = self._memory.take(row.bytes, device, self._taken)
            if home is not None:
                self._rows[key] = row if views else row.copied(None if home == device else home)
            elif not self.quiet:
                self.quiet = True
                logging.getLogger("laai").warning(
                    "%d prefixes fill the prefix cache (%.3g GB); others are run whenever they are needed: "
                    "raise --model.prefix_cache if there is memory",
                    len(self), self.size / 1e9,
                )  # fmt: skip


def free_bytes(device: torch.device, budget: PrefixBudget) -> dict[torch.device, int]:
    """Bytes to fill by place, in this order: the device, then host memory, which the processes of a run share."""
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    host = int(AUTO_SHARE * free_memory() / processes)
    if device.type == "cpu":
        return {device: host if budget == "auto" else int(budget)}
    if budget != "auto":
        return {device: int(budget), torch.device("cpu"): host}
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    return {device: int(AUTO_SHARE * free), torch.device("cpu"): host}


def prefix_keys(batch: Batch) -> list[bytes]:
    """The prefixes of a batch by their tokens, which a row number does not tell apart across data sets."""
    return _keys(batch.prefix_ids, batch.prefix_mask)


def row_keys(batch: Batch) -> list[tuple[bytes, bytes]]:
    """The prefix and the suffix of each row by their tokens."""
    return list(zip(prefix_keys(batch), _keys(batch.suffix_ids, batch.suffix_mask), strict=True))


def _keys(ids: Tensor, mask: Tensor) -> list[bytes]:
    rows = zip(ids.cpu(), mask.cpu().bool(), strict=True)
    return [row[real].numpy().tobytes() for row, real in rows]
