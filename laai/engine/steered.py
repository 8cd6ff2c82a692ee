"""Forwards under vectors that stay attached, over batches that come again: the steps of learning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from laai.engine.forward import answer_logits
from laai.engine.frozen import Agreed, FrozenBatch
from laai.engine.prefix import NoPrefixError, run_prefix
from laai.engine.skipping import LayerOutput, unchanged_layers
from laai.engine.store import PrefixStore, row_keys
from laai.errors import UserError
from laai.models import LanguageModel, unwrap
from laai.prompts import Batch
from laai.steering import Intervention, attachments


class Steered:
    """Logits of batches that come again, under vectors that stay attached while they change.

    Each example's prefix and what enters the first steered layer are kept. While other vectors are attached to the same
    model, or any at positions `all`, whole prompts are run.

    Args:
        vectors: what is attached to it already.
        store: for what is kept; of its own, as states depend on the vectors, and bits on what an example was run with.
        settle: says of a batch how it is continued; None for whole prompts always.
        alone: run what is kept of each example apart from others, the first time that it comes. In a batch the last
            bits depend on the others in it, and a run that is resumed meets them in another order.
        recompute: activation checkpointing, with which caches do not go.
    """

    def __init__(
        self,
        model: LanguageModel,
        vectors: Intervention,
        store: PrefixStore,
        settle: Callable[[Batch], Agreed | None] | None,
        alone: bool = False,
        recompute: bool = False,
    ) -> None:
        self._model, self.store, self._settle = model, store, None if recompute else settle
        self._alone, self._recompute = alone, recompute
        self._below = unchanged_layers(model.decoder, [key for key, _ in vectors.items()])
        self._attached = attachments(model)
        self._seen: set[tuple[bytes, bytes]] = set()
        self._wrap: Callable[[Tensor], Any] | None = None
        self._last: FrozenBatch | None = None

    def clear(self) -> None:
        """Forget what was kept."""
        self.store.clear()
        self._seen.clear()
        self._last = None

    def logits(self, batch: Batch) -> Tensor:
        """(batch, suffix tokens, vocabulary)."""
        if (frozen := self._frozen(batch)) is None:
            with recomputing(self._model) if self._recompute else nullcontext():
                return answer_logits(self._model, batch)
        self._last = frozen
        known = not self._below or self._below[-1] in frozen.outputs
        logits = frozen.run(self._below)
        if not known and (output := frozen.outputs.get(self._below[-1])) is not None:
            self._wrap = output.wrap
            self.store.keep_state(batch, output.hidden)
        return logits

    def _frozen(self, batch: Batch) -> FrozenBatch | None:
        """The batch less what is kept of it; None where the whole has to be run."""
        if self._settle is None or not batch.prefix_ids.shape[1]:
            return None
        if torch.is_inference_mode_enabled():  # whose tensors no gradient may meet
            return None
        attached = attachments(self._model)
        if attached != self._attached or any(one.positions == "all" for one in attached):
            return None
        if (agreed := self._settle(batch)) is None:
            return None
        if self._alone and len(batch.prefix_ids) > 1:
            self._visit(batch)
        if self._last is not None and _same(self._last.batch, batch):
            return self._last
        self._last = None  # before the next one needs its memory
        try:
            return self._freeze(batch, agreed)
        except NoPrefixError:  # a prefix too long to be kept
            return None

    @torch.no_grad()
    def _visit(self, batch: Batch) -> None:
        """Run each example that has not been seen by itself, so that what is kept of it is always the same."""
        for row, key in enumerate(row_keys(batch)):
            if key not in self._seen:
                self._seen.add(key)
                self.logits(batch.row(row))

    def _freeze(self, batch: Batch, agreed: Agreed) -> FrozenBatch:
        """The batch with its prefix, kept or newly run, and what enters the first steered layer where that is known."""
        prefix = self.store.fetch(batch, partial(run_prefix, self._model))
        frozen = FrozenBatch(self._model, batch, prefix, agreed.way, skips=agreed.skips)
        hidden = self.store.state(batch) if self._wrap is not None else None
        if hidden is not None and self._wrap is not None:
            frozen.outputs[self._below[-1]] = LayerOutput(hidden, self._wrap)
        return frozen


def _same(one: Batch, other: Batch) -> bool:
    """Whether two batches hold the same tokens on the same device."""
    return one.prefix_ids.device == other.prefix_ids.device and all(map(torch.equal, one[:4], other[:4]))


@contextmanager
def recomputing(model: LanguageModel) -> Iterator[None]:
    """Activation checkpointing: inside, forwards that need a gradient keep the input of each layer alone.

    They are run again in the backward pass. The model stays in eval mode otherwise.
    transformers recomputes only layers in training mode, so the layers themselves, and nothing in them, are put into
    it: no dropout comes alive. Caches do not work inside.

    Raises:
        UserError: transformers cannot do this for the architecture.
    """
    whole: Any = unwrap(model.llm)
    if not getattr(whole, "supports_gradient_checkpointing", False):
        raise UserError(f"{type(whole).__name__} has no activation checkpointing in transformers: leave it off")
    layers = [module for module in whole.modules() if isinstance(module, GradientCheckpointingLayer)]
    hooked = bool(getattr(whole, "_require_grads_hooks", []))
    whole.activation_checkpointing_enable({"use_reentrant": False})
    if not hooked:  # a frozen model's embeddings need no gradient, but transformers may hook them to have one
        whole.disable_input_require_grads()
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        whole.activation_checkpointing_disable()
