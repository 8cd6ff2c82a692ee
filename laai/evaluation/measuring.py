"""Measure a model, steered or not, on a task: real greedy generation, option likelihoods, answer likelihood."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from laai.engine import Batches, Engine, answer_nll, write
from laai.evaluation.metrics import exact_match, first_lines, forced_choice
from laai.models import LanguageModel
from laai.prompts import Prompt, Template, answer_limit
from laai.tasks import Example


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
    model: LanguageModel,
    template: Template,
    examples: Sequence[tuple[int, Example]],
    demonstrations: Sequence[Example] = (),
    *,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    engine: Engine | None = None,
) -> list[Measured]:
    """Measure a model as it is, with whatever vectors are attached to it.

    Args:
        template: writes the prompts.
        examples: numbered examples; results keep the numbers and come in this order.
        demonstrations: shown before every query (few-shot).
        max_new_tokens: bound on generation; default: `answer_limit` of these examples.
        batch_size: prompts run at a time; prompts of similar length go together.
        engine: the model's, with what earlier calls ran; this one's is kept in it. Generation times count a prefix as
            if it had been run for this call.
    """
    if not examples:
        return []
    prompts = [template.encode(e.input, demonstrations, e.output) for _, e in examples]
    limit = max_new_tokens or answer_limit(template, [e for _, e in examples])
    with (engine or Engine(model)).passes(prompts, bool(demonstrations or template.before)) as batches:
        texts, seconds, sums = _answer(model, prompts, limit, batch_size, batches)
        chosen = _choose(model, template, [e for _, e in examples], demonstrations, batch_size, batches)
    nlls = [total / len(prompt.answer) for total, prompt in zip(sums, prompts, strict=True)]
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


def _answer(
    model: LanguageModel, prompts: Sequence[Prompt], limit: int, batch_size: int, batches: Batches
) -> tuple[list[str], list[float], list[float]]:
    """For each prompt: what the model writes, the seconds it took, and its answer's summed NLL."""
    written, seconds, sums = [""] * len(prompts), [0.0] * len(prompts), [0.0] * len(prompts)
    for started in batches(prompts, batch_size):
        began = time.perf_counter()
        texts = write(model, started.batch, started.ids, started.before, limit)
        elapsed = (time.perf_counter() - began) / len(texts)
        nlls = answer_nll(model, started.batch, started.before).sum(-1).tolist()
        for i, text, nll, once in zip(started.rows, texts, nlls, started.seconds, strict=True):
            written[i], seconds[i], sums[i] = text, elapsed + once, nll
    return written, seconds, sums


def _nlls(
    model: LanguageModel, prompts: Sequence[Prompt], batch_size: int, batches: Batches
) -> list[tuple[float, float]]:
    """Negative log-likelihood of each prompt's answer, summed over its tokens, and of its first token."""
    found = [(0.0, 0.0)] * len(prompts)
    for started in batches(prompts, batch_size):
        nlls = answer_nll(model, started.batch, started.before)
        for i, total, first in zip(started.rows, nlls.sum(-1).tolist(), nlls[:, 0].tolist(), strict=True):
            found[i] = total, first
    return found


@torch.no_grad()
def choose_options(
    model: LanguageModel,
    template: Template,
    examples: Sequence[Example],
    demonstrations: Sequence[Example] = (),
    *,
    batch_size: int = 32,
    engine: Engine | None = None,
) -> list[Chosen]:
    """The likeliest option of each example; -1 where it has no choices. Arguments as of `measure`."""
    prompts = [template.encode(e.input, demonstrations) for e in examples]
    with (engine or Engine(model)).passes(prompts, bool(demonstrations or template.before)) as batches:
        return _choose(model, template, examples, demonstrations, batch_size, batches)


def _options(template: Template, example: Example, demonstrations: Sequence[Example]) -> list[Prompt]:
    """The prompt with each option; with its terminator too where one option begins another, and would always win."""
    found: list[Prompt] = []
    for terminate in (False, True):
        found = [template.encode(example.input, demonstrations, o, terminate) for o in example.choices or ()]
        answers = sorted({prompt.answer for prompt in found})  # what begins another stands right before one it begins
        if not any(long[: len(short)] == short for short, long in itertools.pairwise(answers)):
            break
    return found


def _choose(
    model: LanguageModel,
    template: Template,
    examples: Sequence[Example],
    demonstrations: Sequence[Example],
    batch_size: int,
    batches: Batches,
) -> list[Chosen]:
    options = [prompt for e in examples for prompt in _options(template, e, demonstrations)]
    found = iter(zip(_nlls(model, options, batch_size, batches), options, strict=True))
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
