"""`SteeredLM`: the frozen language model and its vectors in one module, whose forward gives the loss of each answer."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from laai.hooks import Attachment
from laai.intervention import Intervention
from laai.layers import unwrap
from laai.positions import prompts_of
from laai.prompts import IGNORE, Batch
from laai.shared_prefix import SharedPrefix


class SteeredLM(nn.Module):
    """Owns the LLM and the vectors, so that one wrapper (DDP, FSDP2) sees both.

    The vectors are hooked in for the life of this module: learning, `generate` and evaluation share the same hooks.

    Args:
        llm: a causal LM; it is frozen here.
        intervention: the vectors; the only parameters that require a gradient.
    """

    def __init__(self, llm: nn.Module, intervention: Intervention) -> None:
        super().__init__()
        self.llm = llm.requires_grad_(False).eval()
        self.intervention = intervention
        self._attachment: Attachment | None = intervention.attach(llm)

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

    def forward(self, batch: Batch) -> Tensor:
        """Negative log-likelihood of each answer token: (batch, suffix tokens), fp32, 0 where there is no label."""
        return answer_nll(self.llm, batch)


def answer_nll(llm: nn.Module, batch: Batch, shared: SharedPrefix | None = None) -> Tensor:
    """Negative log-likelihood of each answer token by one forward over prefix and suffix.

    Args:
        llm: a causal LM, as it is.
        batch: prompts with their answers.
        shared: what all prompts begin with, run already; the batch holds the rest of each.

    Returns:
        (batch, suffix tokens), fp32: −log p(labels[:, j] | tokens up to suffix position j), 0 at `IGNORE`.
    """
    ids = torch.cat([batch.prefix_ids, batch.suffix_ids], dim=1)
    mask = torch.cat([batch.prefix_mask, batch.suffix_mask], dim=1)
    with prompts_of(batch.prompt_lengths + (len(shared) if shared else 0)):
        logits = last_logits(llm, ids, mask, keep=batch.suffix_ids.shape[1], shared=shared)
    return functional.cross_entropy(logits.float().transpose(1, 2), batch.labels, ignore_index=IGNORE, reduction="none")


def last_logits(llm: nn.Module, ids: Tensor, mask: Tensor, keep: int, shared: SharedPrefix | None = None) -> Tensor:
    """Logits (batch, keep, vocabulary) of the last `keep` columns; the output head runs on those alone where it can.

    Position ids follow the mask: without them left padding shifts learned positions.
    """
    accepted = inspect.signature(unwrap(llm).forward).parameters  # PEFT's own forward names few of them
    options: dict[str, Any] = {"use_cache": False}
    if shared is not None:
        options = {"use_cache": True, "past_key_values": shared.for_rows(len(ids))}
        mask = torch.cat([mask.new_ones(len(ids), len(shared)), mask], dim=1)
    if "position_ids" in accepted:
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = keep
    logits: Tensor = llm(input_ids=ids, attention_mask=mask, **options).logits
    return logits[:, -keep:]


def mean_nll(nll: Tensor, labels: Tensor) -> Tensor:
    """Mean over the answer tokens of a batch: the loss that is minimised.

    Args:
        nll: (batch, suffix tokens), as `SteeredLM` returns it.
        labels: (batch, suffix tokens).
    """
    return nll.sum() / (labels != IGNORE).sum().clamp_min(1)
