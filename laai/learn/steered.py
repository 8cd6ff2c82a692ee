"""`SteeredLM`: the frozen language model and its vectors in one module, whose forward gives the loss of each answer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from laai.engine import Engine, token_divergence, token_nll
from laai.prompts import Batch, without_unlabelled_end
from laai.steering import Attachment, Intervention


class TokenLosses(NamedTuple):
    """Losses of the answer tokens, each (batch, suffix tokens), fp32, 0 where there is no label.

    Attributes:
        nll: negative log-likelihood of the labels.
        divergence: KL divergence from the teacher, 0 without one.
    """

    nll: Tensor
    divergence: Tensor


class SteeredLM(nn.Module):
    """Owns the LLM and the vectors, so that one wrapper (DDP, FSDP2) sees both.

    The vectors are hooked in for the life of this module: learning, `generate` and evaluation share the same hooks.
    Where no vector can change the prefix, each example's is run once, and each forward runs the suffix (`laai.engine`).

    Args:
        engine: of the frozen language model.
        intervention: the vectors; the only parameters that require a gradient.
        alone: keep of each example what it gives by itself, so that the same batches give the same bits in any order.
        recompute: activation checkpointing.
    """

    def __init__(
        self, engine: Engine, intervention: Intervention, alone: bool = False, recompute: bool = False
    ) -> None:
        super().__init__()
        self.llm: nn.Module
        engine.model.held_by(self)
        self.intervention = intervention
        self._attachment: Attachment | None = intervention.attach(engine.model)
        self._forward = engine.steered(intervention, alone, recompute)

    def train(self, mode: bool = True) -> SteeredLM:
        """The LLM stays in eval mode: dropout would make the loss of a frozen model random."""
        super().train(mode)
        self.llm.eval()
        return self

    def detach(self) -> None:
        """Unhook the vectors and drop the kept prefixes; the LLM is bitwise as it was."""
        self._forward.clear()
        if self._attachment is not None:
            self._attachment.detach()
            self._attachment = None

    def forward(self, batch: Batch, teacher: Tensor | None = None) -> TokenLosses:
        """The losses of each answer token; `teacher`: log-probabilities (answer tokens of the batch, vocabulary)."""
        short = without_unlabelled_end(batch)
        logits = self._forward.logits(short)
        nll = token_nll(logits, short.labels)
        divergence = torch.zeros_like(nll) if teacher is None else token_divergence(logits, teacher, short.labels)
        missing = (0, batch.labels.shape[1] - short.labels.shape[1])
        return TokenLosses(functional.pad(nll, missing), functional.pad(divergence, missing))
