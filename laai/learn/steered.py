"""`SteeredLM`: the frozen language model and its vectors in one module, whose forward gives the loss of each answer."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from laai.engine import PrefixEngine, answer_logits, recomputing, token_divergence, token_nll
from laai.models import LanguageModel
from laai.prompts import Batch, without_unlabelled_end
from laai.steering import Attachment, Intervention
from laai.vocabulary import PrefixBudget


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
        model: the language model, frozen.
        intervention: the vectors; the only parameters that require a gradient.
        prefix_cache: bytes for frozen prefixes, `auto` for half of the free memory, `off` for whole forwards.
        alone: keep of each example what it gives by itself, so that the same batches give the same bits in any order.
        recompute: activation checkpointing (`laai.recompute`).
    """

    def __init__(
        self,
        model: LanguageModel,
        intervention: Intervention,
        prefix_cache: PrefixBudget = "auto",
        alone: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.llm: nn.Module
        model.held_by(self)
        self.intervention = intervention
        self._attachment: Attachment | None = intervention.attach(model)
        self.engine = PrefixEngine(model.llm, intervention, "off" if recompute else prefix_cache, alone)
        self._recompute = recompute

    def train(self, mode: bool = True) -> SteeredLM:
        """The LLM stays in eval mode: dropout would make the loss of a frozen model random."""
        super().train(mode)
        self.llm.eval()
        return self

    def detach(self) -> None:
        """Unhook the vectors and drop the kept prefixes; the LLM is bitwise as it was."""
        self.engine.clear()
        if self._attachment is not None:
            self._attachment.detach()
            self._attachment = None

    def forward(self, batch: Batch, teacher: Tensor | None = None) -> TokenLosses:
        """The losses of each answer token; `teacher`: log-probabilities (answer tokens of the batch, vocabulary)."""
        short = without_unlabelled_end(batch)
        logits = self.engine.logits(short)
        if logits is None:
            with recomputing(self.llm) if self._recompute else nullcontext():
                logits = answer_logits(self.llm, short)
        nll = token_nll(logits, short.labels)
        divergence = torch.zeros_like(nll) if teacher is None else token_divergence(logits, teacher, short.labels)
        missing = (0, batch.labels.shape[1] - short.labels.shape[1])
        return TokenLosses(functional.pad(nll, missing), functional.pad(divergence, missing))
