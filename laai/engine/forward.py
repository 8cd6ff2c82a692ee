"""Forwards of a causal LM over prompts with answers: logits at the suffix, and losses of the answer tokens."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional

from laai.engine.prefix import Prefix, position_options
from laai.engine.split_attention import apart, splitting
from laai.models import LanguageModel
from laai.prompts import IGNORE, Batch
from laai.steering import prompts_of


def answer_nll(model: LanguageModel, batch: Batch, before: Prefix | None = None) -> Tensor:
    """Negative log-likelihood of each answer token by one forward over prefix and suffix.

    Args:
        model: the language model, as it is.
        batch: prompts with their answers.
        before: what comes before each row, run already.

    Returns:
        (batch, suffix tokens), fp32: −log p(labels[:, j] | tokens up to suffix position j), 0 at `IGNORE`.
    """
    return token_nll(answer_logits(model, batch, before), batch.labels)


def answer_logits(model: LanguageModel, batch: Batch, before: Prefix | None = None, split: bool = False) -> Tensor:
    """Logits (batch, suffix tokens, vocabulary) at the suffix, by one forward over prefix and suffix.

    `before`: tokens that come before each row, run already. `split`: attend to those where they lie, instead of
    appending to a copy of them.
    """
    ids = torch.cat([batch.prefix_ids, batch.suffix_ids], dim=1)
    mask = torch.cat([batch.prefix_mask, batch.suffix_mask], dim=1)
    with prompts_of(batch.prompt_lengths + (0 if before is None else before.mask.sum(-1))):
        return last_logits(model, ids, mask, batch.suffix_ids.shape[1], before, split)


def last_logits(
    model: LanguageModel, ids: Tensor, mask: Tensor, keep: int, before: Prefix | None = None, split: bool = False
) -> Tensor:
    """Logits (batch, keep, vocabulary) of the last `keep` columns; the output head runs on those alone where it can.

    Args:
        model: the language model, as it is.
        ids, mask: (batch, tokens) to run.
        keep: columns wanted.
        before: tokens that come before these, run already.
        split: attend to those where they lie, instead of appending to a copy of them.
    """
    whole = mask if before is None else torch.cat([before.mask, mask], dim=1)
    options = position_options(model, whole, keep)
    if "position_ids" in options:
        options["position_ids"] = options["position_ids"][:, -ids.shape[1] :]
    cache = {} if before is None else {"past_key_values": apart(before.continued()) if split else before.continued()}
    with splitting(model) if split else nullcontext():
        logits: Tensor = model.llm(
            input_ids=ids, attention_mask=whole, use_cache=bool(cache), **options, **cache
        ).logits
    return logits[:, -keep:]


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (batch, tokens), fp32, of logits (batch, tokens, vocabulary); 0 at `IGNORE`."""
    flat = logits.float().flatten(0, 1), labels.flatten()  # with classes last, which is three times faster on a CPU
    return functional.cross_entropy(*flat, ignore_index=IGNORE, reduction="none").view_as(labels)


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
        nll: (batch, suffix tokens), as `token_nll` gives it.
        labels: (batch, suffix tokens).
    """
    return nll.sum() / (labels != IGNORE).sum().clamp_min(1)
