"""One batch with all of it that vectors cannot change, and the forward over the rest."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import product
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from laai.forward import answer_logits, token_nll
from laai.prefix import Prefix, prefix_of
from laai.prompts import Batch
from laai.skipping import LayerOutput, recording, skipping

Way = Literal["split", "append"]
"""How new tokens attend to a prefix: where it lies, or appended to a copy of it by transformers' own cache."""
CLOSE = {torch.float32: 1e-4, torch.float16: 1e-1, torch.bfloat16: 3e-1}
"""By the dtype of the computation: how far the NLL of a token may be from that of the whole forward, nats."""


@dataclass
class FrozenBatch:
    """A batch, its prefix, and what layers returned for the suffix's tokens before any vector was added.

    Attributes:
        llm: the causal LM, with whatever hooks are attached.
        batch: prompts with their answers.
        prefix: of the batch.
        way: how to attend to it.
        outputs: by layer; filled by `run`.
        skips: whether layers can be skipped.
    """

    llm: nn.Module
    batch: Batch
    prefix: Prefix
    way: Way
    outputs: dict[nn.Module, LayerOutput] = field(default_factory=dict)
    skips: bool = True

    def run(self, below: Sequence[nn.Module] = (), record: Sequence[nn.Module] = ()) -> Tensor:
        """Logits (batch, suffix tokens, vocabulary) by a forward over the suffix.

        Args:
            below: the first layers of the model, whose outputs no attached vector changes; they are skipped if the
                output of the last of them is known, else it is noted.
            record: layers whose outputs are to be noted.
        """
        below = below if self.skips else ()
        output = self.outputs.get(below[-1]) if below else None
        with (
            nullcontext() if output is None else skipping(below, output),
            recording([*record, *below[-1:]] if output is None else record) as seen,
        ):
            logits = answer_logits(self.llm, self.batch.without_prefix(), self.prefix, self.way == "split")
        self.outputs |= seen
        return logits

    def repeated(self, times: int, below: Sequence[nn.Module] = ()) -> FrozenBatch:
        """Each row `times` times in a row, sharing one prefix where the way allows; to be run with `below`."""
        prefix = self.prefix.repeated(times, copy=self.way == "append")
        outputs = {layer: self.outputs[layer].repeated(times) for layer in below[-1:] if layer in self.outputs}
        return FrozenBatch(self.llm, self.batch.repeated(times), prefix, self.way, outputs, self.skips)


@torch.no_grad()
def find_way(llm: nn.Module, batch: Batch, below: Sequence[nn.Module]) -> tuple[Way, Sequence[nn.Module]] | None:
    """The fastest way that agrees with the whole forward on two short examples, with the vectors attached now.

    Args:
        llm: a causal LM with vectors attached that are not zero, as zero vectors would agree with anything.
        batch: prompts with their answers.
        below: layers to skip if that agrees.

    Returns:
        How to attend, and the layers to skip: all of `below`, or none. None if every way differs.
    """
    lengths = batch.prefix_mask.sum(-1).tolist()
    probe = batch.rows_at(sorted(range(len(lengths)), key=lambda i: (lengths[i] == 0, lengths[i]))[:2])
    whole = token_nll(answer_logits(llm, probe), probe.labels)
    tolerance = CLOSE.get(computing_dtype(llm), CLOSE[torch.bfloat16])
    for way, skipped in product(get_args(Way), (below, ())):
        try:
            frozen = FrozenBatch(llm, probe, prefix_of(llm, probe.prefix_ids, probe.prefix_mask), way)
            found = [
                token_nll(frozen.run(skipped), probe.labels) for _ in range(2)
            ]  # the second time, layers are skipped
        except Exception as error:  # foreign modelling code may fail in any way on what it was not made for
            logging.getLogger("laai").debug("frozen prefix, %s: %r", way, error)
            continue
        if all(torch.allclose(nll, whole, rtol=tolerance, atol=tolerance) for nll in found):
            return way, skipped
    return None


def computing_dtype(llm: nn.Module) -> torch.dtype:
    """What the model computes in: autocast's dtype, else its own."""
    parameter = next(llm.parameters())
    device = parameter.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else parameter.dtype
