"""The frozen-prefix engine: logits at the answers of a batch, by a forward over what vectors can change and no more.

A vector at `last_prompt` or `generated` changes neither the tokens before the last prompt token nor the layers below
the first steered one. So a step leaves out those tokens (`laai.prefix`), copies of their keys and values
(`laai.split_attention`), and those layers (`laai.skipping`). On the first batch the result is compared with that of the
whole forward, and what does not agree is not used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from laai.forward import answer_logits, suffix_logits, token_nll
from laai.intervention import Intervention
from laai.layers import find_decoder
from laai.prefix import Prefix, run_prefix
from laai.prefix_store import PrefixStore, take_rows
from laai.prompts import Batch
from laai.skipping import LayerOutput, recording, skipping, unchanged_layers
from laai.words import PrefixBudget

Way = Literal["split", "append"]
"""How new tokens attend to a prefix: where it lies, or appended to a copy of it by transformers' own cache."""
WAYS: tuple[Way, ...] = get_args(Way)

CLOSE = {torch.float32: 1e-4, torch.float16: 1e-1, torch.bfloat16: 3e-1}
"""By the dtype of the computation: how far the NLL of a token may be from that of the whole forward, nats."""
NOISE = 0.05
"""Standard deviation of what is added to the vectors for the comparison, as zero vectors would agree with anything."""


@dataclass
class Frozen:
    """A batch with all of it that does not change from step to step."""

    batch: Batch
    prefix: Prefix
    start: LayerOutput | None = None

    def holds(self, batch: Batch) -> bool:
        """Whether this is the batch."""
        return self.batch.prefix_ids.device == batch.prefix_ids.device and all(
            torch.equal(mine, theirs) for mine, theirs in zip(self.batch[:4], batch[:4], strict=True)
        )


class PrefixEngine:
    """Suffix-only forwards of one model with one set of vectors.

    Args:
        llm: the causal LM, frozen, with the vectors attached.
        intervention: the vectors.
        budget: bytes for the prefixes, `auto`, or `off` for whole forwards.
    """

    def __init__(self, llm: nn.Module, intervention: Intervention, budget: PrefixBudget = "auto") -> None:
        self._llm, self._intervention = llm, intervention
        self._below = unchanged_layers(find_decoder(llm), [key for key, _ in intervention.items()])
        self._wrap: Callable[[Tensor], Any] | None = None
        self._settled = False
        self.store = PrefixStore("auto" if budget == "off" else budget)
        self._last: Frozen | None = None
        self.way: Way | None = None
        """How this engine runs, once it has seen a batch; None leaves everything to the whole forward."""
        if budget == "off" or intervention.positions == "all":
            self._settled = True
        elif any(isinstance(parameter, DTensor) for parameter in llm.parameters()):
            self._give_up("its parameters are sharded")  # all processes would have to agree on every forward

    def logits(self, batch: Batch) -> Tensor | None:
        """Logits (batch, suffix tokens, vocabulary); None where the whole forward has to give them."""
        if not batch.prefix_ids.shape[1]:
            return None
        if not self._settled:
            self._settle(batch)
        if self.way is None:
            return None
        if self._last is None or not self._last.holds(batch):
            self._last = None  # before the next one needs its memory
            self._last = self._freeze(batch)
        return self._run(self._last)

    def clear(self) -> None:
        """Forget all prefixes."""
        self.store.clear()
        self._last = None

    def _freeze(self, batch: Batch) -> Frozen:
        """The batch with its prefix, kept or newly run, and what enters the first steered layer where that is known."""
        frozen = Frozen(batch, self.store.fetch(batch, self._run_prefix))
        hidden = self.store.start(batch) if self._below else None
        if hidden is not None and self._wrap is not None:
            frozen.start = LayerOutput(hidden, self._wrap)
        return frozen

    def _run_prefix(self, ids: Tensor, mask: Tensor) -> Prefix:
        prefix = run_prefix(self._llm, ids, mask)
        if prefix is None:
            raise RuntimeError("this model keeps no keys and values that can be continued row by row")
        return prefix

    def _run(self, frozen: Frozen) -> Tensor:
        split = self.way == "split"
        if frozen.start is not None:
            with skipping(self._below, frozen.start):
                return suffix_logits(self._llm, frozen.batch, frozen.prefix, split)
        with recording(self._below) as seen:
            logits = suffix_logits(self._llm, frozen.batch, frozen.prefix, split)
        if seen:
            frozen.start, self._wrap = seen[0], seen[0].wrap
            self.store.keep_start(frozen.batch, seen[0].hidden)
        return logits

    @torch.no_grad()
    def _settle(self, batch: Batch) -> None:
        """Find the fastest way that agrees with the whole forward, on two short examples of the batch."""
        self._settled = True
        lengths = batch.prefix_mask.sum(-1).tolist()
        probe = take_rows(batch, sorted(range(len(lengths)), key=lambda i: (lengths[i] == 0, lengths[i]))[:2])
        below = self._below
        with disturbed(self._intervention):
            whole = token_nll(answer_logits(self._llm, probe), probe.labels)
            for self.way, self._below in product(WAYS, (below, [])):
                if self._agrees(probe, whole):
                    return
        self._give_up("its forward after a kept prefix is not that over the whole prompt")

    def _agrees(self, probe: Batch, whole: Tensor) -> bool:
        tolerance = CLOSE.get(computing_dtype(self._llm), CLOSE[torch.bfloat16])
        try:
            frozen = Frozen(probe, self._run_prefix(probe.prefix_ids, probe.prefix_mask))
            found = [token_nll(self._run(frozen), probe.labels) for _ in range(2)]  # layers are skipped the second time
        except Exception as error:  # foreign modelling code may fail in any way on what it was not made for
            logging.getLogger("laai").debug("frozen prefix, %s: %r", self.way, error)
            return False
        return all(torch.allclose(nll, whole, rtol=tolerance, atol=tolerance) for nll in found)

    def _give_up(self, reason: str) -> None:
        self._settled, self.way = True, None
        logging.getLogger("laai").warning(
            "this model cannot continue a frozen prefix (%s): every step runs whole prompts", reason
        )


@contextmanager
def disturbed(intervention: Intervention) -> Iterator[None]:
    """Add noise to the vectors; afterwards they are bitwise as they were."""
    generator = torch.Generator().manual_seed(0)
    before = [vector.detach().clone() for vector in intervention.parameters()]
    try:
        for vector in intervention.parameters():
            vector.data += NOISE * torch.randn(vector.shape, generator=generator).to(vector.device)
        yield
    finally:
        for vector, kept in zip(intervention.parameters(), before, strict=True):
            vector.data.copy_(kept)


def computing_dtype(llm: nn.Module) -> torch.dtype:
    """What the model computes in: autocast's dtype, else its own."""
    parameter = next(llm.parameters())
    device = parameter.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else parameter.dtype
