"""Runs of a causal LM over prompts: logits at the suffix, losses of the answer tokens, and what it writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig

from laai.engine.prefix import Prefix, check_length, forward_arguments
from laai.engine.split_attention import apart, splitting
from laai.models import LanguageModel
from laai.prompts import IGNORE, Batch
from laai.steering import prompts_of


def answer_nll(model: LanguageModel, batch: Batch, before: Prefix | None = None) -> Tensor:
    """Negative log-likelihood of each answer token by one forward over prefix and suffix.

    Args:
        model: as it is.
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
        model: as it is.
        ids, mask: (batch, tokens) to run.
        keep: columns wanted.
        before: tokens that come before these, run already.
        split: attend to those where they lie, instead of appending to a copy of them.
    """
    arguments = forward_arguments(model, ids, mask, before, keep)
    if split and before is not None:
        apart(arguments["past_key_values"])
    with splitting(model) if split else nullcontext():
        logits: Tensor = model.llm(**arguments, use_cache=before is not None).logits
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


def write(model: LanguageModel, batch: Batch, run: Tensor, before: Prefix | None, max_new_tokens: int) -> list[str]:
    """The text that follows each prompt of a batch, by `generate`, greedily; answers in the batch are left out.

    Args:
        model: as it is.
        batch: what is left of each prompt.
        run: (rows, tokens) those that come before, padded on the left; their keys and values are `before`.
        before: None where nothing was run.
        max_new_tokens: of each text.
    """
    ids = torch.cat([run, batch.prefix_ids, batch.suffix_ids[:, :1]], dim=1)
    mask = torch.cat([batch.prefix_mask, batch.suffix_mask[:, :1]], dim=1)
    mask = mask if before is None else torch.cat([before.mask, mask], dim=1)
    options: dict[str, Any] = {} if before is None else {"past_key_values": before.continued()}
    check_length(model, mask, max_new_tokens - 1)
    llm: Any = model.llm
    options |= {"max_new_tokens": max_new_tokens, "pad_token_id": model.pad, "synced_gpus": model.sharded}
    with _greedy(llm):
        out: Tensor = llm.generate(input_ids=ids, attention_mask=mask, **options)
    new = out[:, ids.shape[1] :]
    return list(model.tokenizer.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@contextmanager
def _greedy(llm: Any) -> Iterator[None]:
    """Without the generation defaults that came with the model: a repetition penalty would punish right answers."""
    untyped: Any = GenerationConfig
    own = llm.generation_config
    llm.generation_config = untyped(eos_token_id=own.eos_token_id, do_sample=False, num_beams=1)
    try:
        yield
    finally:
        llm.generation_config = own
