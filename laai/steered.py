"""`SteeredLM`: the frozen language model and its vectors in one module, whose forward gives the loss of each answer."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from laai.hooks import Attachment
from laai.intervention import Intervention
from laai.positions import prompts_of
from laai.prefix import Prefix, position_options, run_prefix
from laai.prompts import IGNORE, Batch
from laai.shared_prefix import SharedPrefix


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
    Where no vector can change the prefix, a batch that comes again has it run once, and each forward runs the suffix.

    Args:
        llm: a causal LM; it is frozen here.
        intervention: the vectors; the only parameters that require a gradient.
        frozen_prefix: False to run prefix and suffix at every forward.
    """

    def __init__(self, llm: nn.Module, intervention: Intervention, frozen_prefix: bool = True) -> None:
        super().__init__()
        self.llm = llm.requires_grad_(False).eval()
        self.intervention = intervention
        self._attachment: Attachment | None = intervention.attach(llm)
        self._freezes = frozen_prefix and intervention.positions != "all"
        self._frozen: tuple[Tensor, Tensor, Prefix] | None = None
        self._checked = False

    def train(self, mode: bool = True) -> SteeredLM:
        """The LLM stays in eval mode: dropout would make the loss of a frozen model random."""
        super().train(mode)
        self.llm.eval()
        return self

    def detach(self) -> None:
        """Unhook the vectors; the LLM is bitwise as it was."""
        if self._attachment is not None:
            self._attachment.detach()
            self._attachment = None

    def forward(self, batch: Batch, teacher: Tensor | None = None) -> TokenLosses:
        """The losses of each answer token; `teacher`: log-probabilities (answer tokens of the batch, vocabulary)."""
        prefix = self._prefix_of(batch) if self._freezes and batch.prefix_ids.shape[1] else None
        logits = answer_logits(self.llm, batch) if prefix is None else suffix_logits(self.llm, batch, prefix)
        return TokenLosses(
            token_nll(logits, batch.labels),
            torch.zeros_like(batch.labels, dtype=torch.float32)
            if teacher is None
            else token_divergence(logits, teacher, batch.labels),
        )

    def _prefix_of(self, batch: Batch) -> Prefix | None:
        """The batch's prefix, kept from the last forward if that had the same; None where it cannot be continued."""
        ids, mask = batch.prefix_ids, batch.prefix_mask
        kept = self._frozen
        if kept and kept[0].device == ids.device and torch.equal(kept[0], ids) and torch.equal(kept[1], mask):
            return kept[2]
        prefix = run_prefix(self.llm, ids, mask)
        if prefix is not None and not self._checked:
            self._checked = True
            with torch.no_grad():
                apart = token_nll(suffix_logits(self.llm, batch, prefix), batch.labels)
                whole = answer_nll(self.llm, batch)
            tolerance = CLOSE[next(self.llm.parameters()).dtype]
            prefix = prefix if torch.allclose(apart, whole, rtol=tolerance, atol=tolerance) else None
        if prefix is None:
            self._freezes = False
            logging.getLogger("laai").warning(
                "this model cannot continue a frozen prefix: every step runs whole prompts"
            )
            return None
        self._frozen = (ids, mask, prefix)
        return prefix


CLOSE = {torch.float32: 1e-3, torch.float16: 1e-1, torch.bfloat16: 3e-1}
"""By the LLM's dtype: how far the NLL after a frozen prefix may be from that of the whole prompt."""


def answer_nll(llm: nn.Module, batch: Batch, shared: SharedPrefix | None = None) -> Tensor:
    """Negative log-likelihood of each answer token by one forward over prefix and suffix.

    Args:
        llm: a causal LM, as it is.
        batch: prompts with their answers.
        shared: what all prompts begin with, run already; the batch holds the rest of each.

    Returns:
        (batch, suffix tokens), fp32: −log p(labels[:, j] | tokens up to suffix position j), 0 at `IGNORE`.
    """
    return token_nll(answer_logits(llm, batch, shared), batch.labels)


def answer_logits(llm: nn.Module, batch: Batch, shared: SharedPrefix | None = None) -> Tensor:
    """Logits (batch, suffix tokens, vocabulary) at the suffix, by one forward over prefix and suffix."""
    ids = torch.cat([batch.prefix_ids, batch.suffix_ids], dim=1)
    mask = torch.cat([batch.prefix_mask, batch.suffix_mask], dim=1)
    before = shared.prefix.expand(len(ids)) if shared else None
    with prompts_of(batch.prompt_lengths + (len(shared) if shared else 0)):
        return last_logits(llm, ids, mask, batch.suffix_ids.shape[1], before)


def suffix_logits(llm: nn.Module, batch: Batch, prefix: Prefix) -> Tensor:
    """The same by a forward over the suffix alone, after the batch's own prefix, which is run already."""
    with prompts_of(batch.prompt_lengths):
        return last_logits(llm, batch.suffix_ids, batch.suffix_mask, batch.suffix_ids.shape[1], prefix)


def last_logits(llm: nn.Module, ids: Tensor, mask: Tensor, keep: int, before: Prefix | None = None) -> Tensor:
    """Logits (batch, keep, vocabulary) of the last `keep` columns; the output head runs on those alone where it can.

    Args:
        llm: a causal LM, as it is.
        ids, mask: (batch, tokens) to run.
        keep: columns wanted.
        before: tokens that come before these, run already.
    """
    whole = mask if before is None else torch.cat([before.mask, mask], dim=1)
    options = position_options(llm, whole, keep)
    if "position_ids" in options:
        options["position_ids"] = options["position_ids"][:, -ids.shape[1] :]
    cache = {} if before is None else {"past_key_values": before.continued()}
    logits: Tensor = llm(input_ids=ids, attention_mask=whole, use_cache=bool(cache), **options, **cache).logits
    return logits[:, -keep:]


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (batch, tokens), fp32, of logits (batch, tokens, vocabulary); 0 at `IGNORE`."""
    return functional.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORE, reduction="none")


def token_divergence(logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """KL(teacher ‖ model) at each answer token: (batch, tokens), fp32, 0 at `IGNORE`.

    Args:
        logits: (batch, tokens, vocabulary).
        teacher: log-probabilities (labelled tokens of the batch, row by row; vocabulary).
        labels: (batch, tokens).
    """
    labelled = labels != IGNORE
    model, teacher = logits[labelled].float().log_softmax(dim=-1), teacher.float()
    divergence = functional.kl_div(model, teacher, log_target=True, reduction="none").sum(dim=-1)
    return torch.zeros_like(labels, dtype=torch.float32).masked_scatter(labelled, divergence)


def mean_nll(nll: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of a batch's answer tokens: the task's loss.

    Args:
        nll: (batch, suffix tokens), as `SteeredLM` returns it.
        labels: (batch, suffix tokens).
    """
    return nll.sum() / (labels != IGNORE).sum().clamp_min(1)
