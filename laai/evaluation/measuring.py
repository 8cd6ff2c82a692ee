"""Measure a model, steered or not, on a task: real greedy generation, option likelihoods, answer likelihood."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from laai.engine import Reuse, Started, answer_nll, check_length, started_batches
from laai.evaluation.metrics import exact_match, first_lines, forced_choice
from laai.models import is_sharded
from laai.prompts import Prompt, Template, answer_limit, pad_token
from laai.tasks import Example

Sharing = tuple[Reuse | None, bool]
"""What `started_batches` takes: prefixes run before, and whether each prompt's own is worth keeping."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one example gave.

    Attributes:
        row: number of the example.
        answer: first line of the generated text; more where the expected answer has more.
        exact: exact match of that with the expected answer.
        nll: mean negative log-likelihood per token of the expected answer and its terminator, nats.
        choice_sum, choice_mean: forced choice is right, by option likelihood summed or averaged over tokens; None
            without choices.
        options: summed negative log-likelihood of each option, nats; empty without choices.
        prompt_tokens: tokens in the prompt.
        seconds: generation time of its batch, divided by the batch's size.
    """

    row: int
    answer: str
    exact: bool
    nll: float
    choice_sum: bool | None
    choice_mean: bool | None
    options: tuple[float, ...]
    prompt_tokens: int
    seconds: float


class Chosen(NamedTuple):
    """The likeliest option by sum and by mean per token, each option's summed NLL, and that of its first token."""

    by_sum: int
    by_mean: int
    nlls: tuple[float, ...]
    firsts: tuple[float, ...]


@torch.no_grad()
def measure(
    llm: nn.Module,
    template: Template,
    examples: Sequence[tuple[int, Example]],
    demonstrations: Sequence[Example] = (),
    *,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    reuse: Reuse | None = None,
) -> list[Measured]:
    """Measure `llm` as it is, with whatever vectors are attached to it.

    Args:
        llm: a causal LM.
        template: writes the prompts.
        examples: numbered examples; results keep the numbers and come in this order.
        demonstrations: shown before every query (few-shot).
        max_new_tokens: bound on generation; default: `answer_limit` of these examples.
        batch_size: prompts run at a time; prompts of similar length go together.
        reuse: prefixes that earlier calls ran, and a place for those that this one runs; see `Reuse` for when it may be
            used. Generation times count a prefix as if it had been run for this call.
    """
    if not examples:
        return []
    prompts = [template.encode(e.input, demonstrations, e.output) for _, e in examples]
    limit = max_new_tokens or answer_limit(template, [e for _, e in examples])
    sharing = _sharing(llm, prompts, bool(demonstrations or template.before), reuse)
    texts, seconds, sums = _answer(llm, template, prompts, limit, batch_size, sharing)
    nlls = [total / len(prompt.answer) for total, prompt in zip(sums, prompts, strict=True)]
    chosen = _choose(llm, template, [e for _, e in examples], demonstrations, batch_size, sharing)
    return [
        Measured(
            row=row,
            answer=first_lines(texts[i], example.output),
            exact=exact_match(texts[i], example.output),
            nll=nlls[i],
            choice_sum=_right(example, chosen[i].by_sum),
            choice_mean=_right(example, chosen[i].by_mean),
            options=chosen[i].nlls,
            prompt_tokens=len(prompts[i].prompt),
            seconds=seconds[i],
        )
        for i, (row, example) in enumerate(examples)
    ]


def _right(example: Example, option: int) -> bool | None:
    """Whether an option says the answer, which may stand among the choices twice; None without choices."""
    return None if not example.choices else option >= 0 and example.choices[option] == example.output


def _sharing(llm: nn.Module, prompts: Sequence[Prompt], shown: bool, reuse: Reuse | None) -> Sharing:
    """What is run before prompts with or without demonstrations that are `shown` first."""
    if reuse is None or not shown:
        return reuse, reuse is not None
    behind = reuse.behind(llm, prompts)
    return (reuse, False) if behind is None else (behind, True)


def continuations(
    llm: nn.Module, template: Template, prompts: Sequence[Prompt], max_new_tokens: int, batch_size: int = 32
) -> list[str]:
    """What the model writes after each prompt, by transformers' own `generate`, greedily. Answers are left out."""
    texts = [""] * len(prompts)
    for started in started_batches(llm, prompts, pad_token(template.tokenizer), batch_size):
        for i, text in zip(started.rows, _continue(llm, template, started, max_new_tokens), strict=True):
            texts[i] = text
    return texts


def _continue(llm: nn.Module, template: Template, started: Started, max_new_tokens: int) -> list[str]:
    tokenizer, batch, before = template.tokenizer, started.batch, started.before
    ids = torch.cat([started.ids, batch.prefix_ids, batch.suffix_ids[:, :1]], dim=1)
    mask = torch.cat([batch.prefix_mask, batch.suffix_mask[:, :1]], dim=1)
    mask = mask if before is None else torch.cat([before.mask, mask], dim=1)
    options = {} if before is None else {"past_key_values": before.continued()}
    check_length(llm, mask, max_new_tokens - 1)
    untyped: Any = llm
    with _greedy(llm):
        out: Tensor = untyped.generate(
            input_ids=ids,
            attention_mask=mask,
            **options,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad_token(tokenizer),
            synced_gpus=is_sharded(llm),
        )
    new = out[:, ids.shape[1] :]
    return list(tokenizer.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@contextmanager
def _greedy(llm: nn.Module) -> Iterator[None]:
    """Without the generation defaults that came with the model: a repetition penalty would punish right answers."""
    model: Any = llm
    untyped: Any = GenerationConfig
    own = model.generation_config
    model.generation_config = untyped(eos_token_id=own.eos_token_id, do_sample=False, num_beams=1)
    try:
        yield
    finally:
        model.generation_config = own


def _answer(
    llm: nn.Module, template: Template, prompts: Sequence[Prompt], limit: int, batch_size: int, sharing: Sharing
) -> tuple[list[str], list[float], list[float]]:
    """For each prompt: what the model writes, the seconds it took, and its answer's summed NLL."""
    written, seconds, sums = [""] * len(prompts), [0.0] * len(prompts), [0.0] * len(prompts)
    for started in started_batches(llm, prompts, pad_token(template.tokenizer), batch_size, *sharing):
        began = time.perf_counter()
        texts = _continue(llm, template, started, limit)
        elapsed = (time.perf_counter() - began) / len(texts)
        nlls = answer_nll(llm, started.batch, started.before).sum(-1).tolist()
        for i, text, nll, once in zip(started.rows, texts, nlls, started.seconds, strict=True):
            written[i], seconds[i], sums[i] = text, elapsed + once, nll
    return written, seconds, sums


def _nlls(
    llm: nn.Module, template: Template, prompts: Sequence[Prompt], batch_size: int, sharing: Sharing
) -> list[tuple[float, float]]:
    """Negative log-likelihood of each prompt's answer, summed over its tokens, and of its first token."""
    found = [(0.0, 0.0)] * len(prompts)
    for started in started_batches(llm, prompts, pad_token(template.tokenizer), batch_size, *sharing):
        nlls = answer_nll(llm, started.batch, started.before)
        for i, total, first in zip(started.rows, nlls.sum(-1).tolist(), nlls[:, 0].tolist(), strict=True):
            found[i] = total, first
    return found


@torch.no_grad()
def choose_options(
    llm: nn.Module,
    template: Template,
    examples: Sequence[Example],
    demonstrations: Sequence[Example] = (),
    *,
    batch_size: int = 32,
    reuse: Reuse | None = None,
) -> list[Chosen]:
    """The likeliest option of each example; -1 where it has no choices. Arguments as of `measure`."""
    prompts = [template.encode(e.input, demonstrations) for e in examples]
    sharing = _sharing(llm, prompts, bool(demonstrations or template.before), reuse)
    return _choose(llm, template, examples, demonstrations, batch_size, sharing)


def _options(template: Template, example: Example, demonstrations: Sequence[Example]) -> list[Prompt]:
    """The prompt with each option; with its terminator too where one option begins another, and would always win."""
    found: list[Prompt] = []
    for terminate in (False, True):
        found = [
            template.encode(example.input, demonstrations, option, terminate=terminate)
            for option in example.choices or ()
        ]
        answers = sorted({prompt.answer for prompt in found})  # what begins another stands right before one it begins
        if not any(long[: len(short)] == short for short, long in itertools.pairwise(answers)):
            break
    return found


def _choose(
    llm: nn.Module,
    template: Template,
    examples: Sequence[Example],
    demonstrations: Sequence[Example],
    batch_size: int,
    sharing: Sharing,
) -> list[Chosen]:
    options = [prompt for e in examples for prompt in _options(template, e, demonstrations)]
    found = iter(zip(_nlls(llm, template, options, batch_size, sharing), options, strict=True))
    chosen: list[Chosen] = []
    for example in examples:
        if not example.choices:
            chosen.append(Chosen(-1, -1, (), ()))
            continue
        own = [next(found) for _ in example.choices]
        nlls, firsts = zip(*(nll for nll, _ in own), strict=True)
        lengths = [len(prompt.answer) for _, prompt in own]
        chosen.append(Chosen(forced_choice(nlls), forced_choice(nlls, lengths), nlls, firsts))
    return chosen
