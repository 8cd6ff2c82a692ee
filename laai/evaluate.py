"""Measure a model, steered or not, on a task: real greedy generation, option likelihoods, answer likelihood."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from laai.forward import answer_nll
from laai.metrics import exact_match, forced_choice
from laai.prefix import check_length
from laai.prompts import Batch, Prompt, Template, collate, pad_token
from laai.shared_prefix import SharedPrefix, share_prefix
from laai.tasks import Example


@dataclass(frozen=True, slots=True)
class Measured:
    """What one example gave.

    Attributes:
        row: number of the example.
        answer: first line of the generated text.
        exact: exact match of that line with the expected answer.
        nll: mean negative log-likelihood per token of the expected answer and its terminator, nats.
        choice_sum, choice_mean: forced choice is right, by option likelihood summed or averaged over tokens; None
            without choices.
        prompt_tokens: tokens in the prompt.
        seconds: generation time of its batch, divided by the batch's size.
    """

    row: int
    answer: str
    exact: bool
    nll: float
    choice_sum: bool | None
    choice_mean: bool | None
    prompt_tokens: int
    seconds: float


@torch.no_grad()
def measure(
    llm: nn.Module,
    template: Template,
    examples: Sequence[tuple[int, Example]],
    demonstrations: Sequence[Example] = (),
    *,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
) -> list[Measured]:
    """Measure `llm` as it is, with whatever vectors are attached to it.

    Args:
        llm: a causal LM.
        template: writes the prompts.
        examples: numbered examples; results keep the numbers and come in this order.
        demonstrations: shown before every query (few-shot).
        max_new_tokens: bound on generation; default: `answer_limit` of these examples.
        batch_size: prompts run at a time; prompts of similar length go together.
    """
    if not examples:
        return []
    prompts = [template.encode(e.input, demonstrations, e.output) for _, e in examples]
    limit = max_new_tokens or answer_limit(template, [e for _, e in examples])
    answers, seconds = _generate(llm, template, prompts, limit, batch_size)
    nlls = [
        total / len(p.answer) for total, p in zip(_nll_sums(llm, template, prompts, batch_size), prompts, strict=True)
    ]
    chosen = _choose(llm, template, [e for _, e in examples], demonstrations, batch_size)
    return [
        Measured(
            row=row,
            answer=answers[i],
            exact=exact_match(answers[i], example.output),
            nll=nlls[i],
            choice_sum=chosen[i][0] == example.label if example.choices else None,
            choice_mean=chosen[i][1] == example.label if example.choices else None,
            prompt_tokens=len(prompts[i].prompt),
            seconds=seconds[i],
        )
        for i, (row, example) in enumerate(examples)
    ]


def answer_limit(template: Template, examples: Sequence[Example]) -> int:
    """Tokens to generate: the longest expected answer and its terminator.

    So an answer that goes on where it should end is seen to go on, and is no exact match.
    """
    return max(len(template.encode(e.input, answer=e.output).answer) for e in examples)


def continuations(
    llm: nn.Module,
    template: Template,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    shared: SharedPrefix | None = None,
) -> list[str]:
    """What the model writes after each prompt, by transformers' own `generate`, greedily. Answers are left out.

    With `shared`, prompts are the rests after it, all of one length.
    """
    tokenizer = template.tokenizer
    batch = to_device(collate([Prompt(p.prefix, p.suffix[:1]) for p in prompts], pad_token(tokenizer)), llm)
    ids = torch.cat([batch.prefix_ids, batch.suffix_ids], dim=1)
    mask = torch.cat([batch.prefix_mask, batch.suffix_mask], dim=1)
    options = {}
    if shared is not None:
        ids = torch.cat([shared.ids.expand(len(ids), -1), ids], dim=1)
        mask, options = torch.ones_like(ids), {"past_key_values": shared.prefix.repeated(len(ids)).cache}
    check_length(llm, mask, max_new_tokens - 1)
    with _greedy(llm):
        out: Tensor = llm.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            **options,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad_token(tokenizer),
        )
    new = out[:, ids.shape[1] :]
    return list(tokenizer.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@contextmanager
def _greedy(llm: nn.Module) -> Iterator[None]:
    """Without the generation defaults that came with the model: a repetition penalty would punish right answers."""
    model: Any = llm
    own = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=own.eos_token_id, do_sample=False, num_beams=1)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own


def _generate(
    llm: nn.Module, template: Template, prompts: Sequence[Prompt], limit: int, batch_size: int
) -> tuple[list[str], list[float]]:
    """First line of what the model writes after each prompt, and the seconds it took."""
    answers, seconds = [""] * len(prompts), [0.0] * len(prompts)
    began = time.perf_counter()
    shared = share_prefix(llm, prompts)
    once = (time.perf_counter() - began) / len(prompts)
    rests = [shared.without(prompt) for prompt in prompts] if shared else prompts
    for rows in by_length(rests, batch_size, equal=shared is not None):
        began = time.perf_counter()
        texts = continuations(llm, template, [rests[i] for i in rows], limit, shared)
        elapsed = (time.perf_counter() - began) / len(rows) + once
        for i, text in zip(rows, texts, strict=True):
            answers[i], seconds[i] = next(iter(text.strip().splitlines()), "").strip(), elapsed
    return answers, seconds


def _nll_sums(llm: nn.Module, template: Template, prompts: Sequence[Prompt], batch_size: int) -> list[float]:
    """Negative log-likelihood of each prompt's answer, summed over its tokens."""
    sums = [0.0] * len(prompts)
    shared = share_prefix(llm, prompts)
    rests = [shared.without(prompt) for prompt in prompts] if shared else prompts
    for rows in by_length(rests, batch_size, equal=shared is not None):
        batch = to_device(collate([rests[i] for i in rows], pad_token(template.tokenizer)), llm)
        for i, total in zip(rows, answer_nll(llm, batch, shared).sum(-1).tolist(), strict=True):
            sums[i] = total
    return sums


def _choose(
    llm: nn.Module, template: Template, examples: Sequence[Example], demonstrations: Sequence[Example], batch_size: int
) -> list[tuple[int, int]]:
    """The likeliest option of each example by sum and by mean per token; (-1, -1) where it has no choices."""
    options = [
        template.encode(e.input, demonstrations, option, terminate=False)
        for e in examples
        for option in e.choices or ()
    ]
    sums = iter(zip(_nll_sums(llm, template, options, batch_size), options, strict=True))
    chosen: list[tuple[int, int]] = []
    for example in examples:
        if not example.choices:
            chosen.append((-1, -1))
            continue
        nlls, lengths = zip(*((s, len(p.answer)) for s, p in (next(sums) for _ in example.choices)), strict=True)
        chosen.append((forced_choice(nlls), forced_choice(nlls, lengths)))
    return chosen


def by_length(prompts: Sequence[Prompt], batch_size: int, equal: bool = False) -> Iterator[list[int]]:
    """Batches of row numbers, longest prompts first, so that little is padding and memory fails early if it does.

    With `equal`, the prompts of a batch have one length, answers aside: behind a shared beginning padding would stand
    between real tokens, where sliding windows and MPT's distances count it.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].prefix) - (not equal) * len(prompts[i].suffix))
    groups = [list(g) for _, g in groupby(order, key=lambda i: len(prompts[i].prefix))] if equal else [order]
    for group in groups:
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def to_device(batch: Batch, llm: nn.Module) -> Batch:
    """The batch on the device of the model's embedding."""
    device = llm.get_input_embeddings().weight.device  # type: ignore[operator]
    return Batch(*(tensor.to(device) for tensor in batch))
