"""The frozen-prefix engine: logits at the answers of a batch, by a forward over what vectors can change and no more.

A vector at `last_prompt` or `generated` changes neither the tokens before the last prompt token nor the layers below
the first steered one. So a step leaves out those tokens (`laai.prefix`), copies of their keys and values
(`laai.split_attention`), and those layers (`laai.skipping`). On the first batch the result is compared with that of the
whole forward (`laai.agreement`), and what does not agree is not used.

While other vectors are attached to the same model, it leaves everything to the whole forward. It cannot see adapters:
those must stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from laai.engine.agreement import find_way
from laai.engine.frozen import FrozenBatch, Way
from laai.engine.prefix import NoPrefixError, prefix_of
from laai.engine.skipping import LayerOutput, unchanged_layers
from laai.engine.store import PrefixStore, prefix_keys, suffix_keys
from laai.models import find_decoder, is_sharded, unwrap
from laai.prompts import Batch
from laai.steering import Intervention, is_compiled
from laai.vocabulary import PrefixBudget


class PrefixEngine:
    """Suffix-only forwards of one model with one set of vectors.

    Args:
        llm: the causal LM, frozen, with the vectors attached.
        intervention: the vectors.
        budget: bytes for the prefixes, `auto`, or `off` for whole forwards.
        alone: run what is kept of each example apart from others, the first time that it comes. In a batch the last
            bits depend on the others in it, and a run that is resumed meets them in another order.
    """

    def __init__(
        self, llm: nn.Module, intervention: Intervention, budget: PrefixBudget = "auto", alone: bool = False
    ) -> None:
        self._llm, self._intervention, self._alone = llm, intervention, alone
        self._seen: set[tuple[bytes, bytes]] = set()
        self._below = unchanged_layers(find_decoder(llm), [key for key, _ in intervention.items()])
        self._wrap: Callable[[Tensor], Any] | None = None
        self._settled = False
        self._last: FrozenBatch | None = None
        self.store = PrefixStore("auto" if budget == "off" else budget)
        self.way: Way | None = None
        """How this engine runs, once it has seen a batch; None leaves everything to the whole forward."""
        if budget == "off" or intervention.positions == "all":
            self._settled = True
        self._attached = vars(unwrap(llm)).get("generate")

    def logits(self, batch: Batch) -> Tensor | None:
        """Logits (batch, suffix tokens, vocabulary); None where the whole forward has to give them."""
        if not batch.prefix_ids.shape[1] or torch.is_inference_mode_enabled():  # whose tensors no gradient may meet
            return None
        if vars(unwrap(self._llm)).get("generate") is not self._attached:  # other vectors came, or these went
            return None
        if not self._settled:
            self._settle(batch)
        if self.way is None:
            return None
        if self._alone and len(batch.prefix_ids) > 1:
            self._visit(batch)
        if self._last is None or not _same(self._last.batch, batch):
            self._last = None  # before the next one needs its memory
            try:
                self._last = self._freeze(batch, self.way)
            except NoPrefixError:  # a prefix too long to be kept
                return None
        known = not self._below or self._below[-1] in self._last.outputs
        logits = self._last.run(self._below)
        if not known and (output := self._last.outputs.get(self._below[-1])) is not None:
            self._wrap = output.wrap
            self.store.keep_state(batch, output.hidden)
        return logits

    @torch.no_grad()
    def _visit(self, batch: Batch) -> None:
        """Run each example that has not been seen by itself, so that what is kept of it is always the same."""
        for row, key in enumerate(zip(prefix_keys(batch), suffix_keys(batch), strict=True)):
            if key not in self._seen:
                self._seen.add(key)
                self.logits(batch.row(row))

    def clear(self) -> None:
        """Forget all prefixes."""
        self.store.clear()
        self._seen.clear()
        self._last = None

    def _freeze(self, batch: Batch, way: Way) -> FrozenBatch:
        """The batch with its prefix, kept or newly run, and what enters the first steered layer where that is known."""
        frozen = FrozenBatch(self._llm, batch, self.store.fetch(batch, partial(prefix_of, self._llm)), way)
        hidden = self.store.state(batch) if self._wrap is not None else None
        if hidden is not None and self._wrap is not None:
            frozen.outputs[self._below[-1]] = LayerOutput(hidden, self._wrap)
        return frozen

    def _settle(self, batch: Batch) -> None:
        self._settled = True
        if any(map(is_compiled, self._llm.modules())):
            self._give_up("it is compiled")
            return
        if is_sharded(self._llm):
            self._give_up("its parameters are sharded")  # all processes would have to agree on every forward
            return
        found = find_way(self._llm, batch, self._below, self._intervention)
        if found is None:
            self._give_up("its forward after a kept prefix is not that over the whole prompt")
        else:
            self.way, below = found
            self._below = list(below)

    def _give_up(self, reason: str) -> None:
        self._settled, self.way = True, None
        logging.getLogger("laai").warning(
            "this model cannot continue a frozen prefix (%s): every step runs whole prompts", reason
        )


def _same(one: Batch, other: Batch) -> bool:
    """Whether two batches hold the same tokens on the same device."""
    return one.prefix_ids.device == other.prefix_ids.device and all(map(torch.equal, one[:4], other[:4]))
