"""One batch with all of it that vectors cannot change, and the forward over the rest."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor, nn

from laai.engine.forward import answer_logits
from laai.engine.prefix import Prefix
from laai.engine.skipping import LayerOutput, recording, skipping
from laai.models import LanguageModel
from laai.prompts import Batch

Way = Literal["split", "append"]
"""How new tokens attend to a prefix: where it lies, or appended to a copy of it by transformers' own cache."""


class Agreed(NamedTuple):
    """How to attend to a prefix, and whether layers can be skipped."""

    way: Way
    skips: bool


@dataclass
class FrozenBatch:
    """A batch, its prefix, and what layers returned for the suffix's tokens before any vector was added.

    Attributes:
        model: the language model, with whatever hooks are attached.
        batch: prompts with their answers.
        prefix: of the batch; None where whole prompts have to be run.
        way: how to attend to it.
        outputs: by layer; filled by `run`.
        skips: whether layers can be skipped.
    """

    model: LanguageModel
    batch: Batch
    prefix: Prefix | None = None
    way: Way = "append"
    outputs: dict[nn.Module, LayerOutput] = field(default_factory=dict)
    skips: bool = True

    def run(self, below: Sequence[nn.Module] = (), record: Sequence[nn.Module] = ()) -> Tensor:
        """Logits (batch, suffix tokens, vocabulary) by a forward over the suffix, or over whole prompts.

        Args:
            below: the first layers of the model, whose outputs no attached vector changes; they are skipped if the
                output of the last of them is known, else it is noted.
            record: layers whose outputs are to be noted.
        """
        if self.prefix is None:
            return answer_logits(self.model, self.batch)
        below = below if self.skips else ()
        output = self.outputs.get(below[-1]) if below else None
        with (
            nullcontext() if output is None else skipping(below, output),
            recording([*record, *below[-1:]] if output is None else record) as seen,
        ):
            logits = answer_logits(self.model, self.batch.without_prefix(), self.prefix, self.way == "split")
        self.outputs |= seen
        return logits

    def repeated(self, times: int, below: Sequence[nn.Module] = ()) -> FrozenBatch:
        """Each row `times` times in a row, sharing one prefix where the way allows; to be run with `below`."""
        batch = self.batch.repeated(times)
        if self.prefix is None:
            return FrozenBatch(self.model, batch)
        prefix = self.prefix.repeated(times, copy=self.way == "append")
        outputs = {layer: self.outputs[layer].repeated(times) for layer in below[-1:] if layer in self.outputs}
        return FrozenBatch(self.model, batch, prefix, self.way, outputs, self.skips)
