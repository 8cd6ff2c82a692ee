"""Demonstrations before a query: which, and as many as the model has room for."""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace

from laai.models import LanguageModel
from laai.prompts.templates import Shown, Template
from laai.tasks import Example, Task

LONGEST_PROMPT = 2048
"""Tokens of a cross-task few-shot prompt at most, where the model could read more: longer ones take too long."""


def demonstrations_of(task: Task, shots: int, seed: int) -> Shown:
    """Some examples of a task, drawn by the seed, to be shown before another task's queries."""
    return Shown(task, task.split(shots, test=0, seed=seed).train)


def fitting(model: LanguageModel, template: Template, shown: Shown, queries: Sequence[Example]) -> Shown | None:
    """The first of some demonstrations, as many as the longest query leaves room for; None where not one fits.

    Args:
        model: whose context holds prompt and answer.
        template: writes the queries.
        shown: of another task, to stand before the queries; a prompt takes `LONGEST_PROMPT` tokens at most.
        queries: at least one.

    Raises:
        UserError: an answer has a line break, which ends it in a plain prompt.
    """
    longest, room = longest_query(template, queries), min(LONGEST_PROMPT, context_left(model, template, queries))

    def tokens(count: int) -> int:
        before = Shown(shown.task, shown.examples[:count])
        return len(replace(template, before=before).encode(longest).prompt)

    if count := most_within(room, len(shown.examples), tokens):
        return Shown(shown.task, shown.examples[:count])
    warnings.warn(
        f"cross-task few-shot is left out: a query behind one example of {shown.task.name} is over {room:g} tokens",
        stacklevel=3,
    )
    return None


def fitting_own(
    model: LanguageModel, template: Template, demonstrations: tuple[Example, ...], queries: Sequence[Example]
) -> tuple[Example, ...]:
    """The first of a task's own demonstrations, as many as its longest query leaves room for in the model's context.

    Args:
        model: whose context holds prompt and answer.
        template: writes queries and demonstrations.
        demonstrations: of the same task.
        queries: at least one.
    """
    longest, room = longest_query(template, queries), context_left(model, template, queries)
    count = most_within(
        room, len(demonstrations), lambda count: len(template.encode(longest, demonstrations[:count]).prompt)
    )
    if count < len(demonstrations):
        what = f"shows {count} of {len(demonstrations)} examples" if count else "is left out"
        warnings.warn(f"few-shot {what}: more with a query are over {room:g} tokens", stacklevel=3)
    return demonstrations[:count]


def longest_query(template: Template, queries: Sequence[Example]) -> str:
    """The input with the most tokens."""
    return max(queries, key=lambda e: len(template.encode(e.input).prompt)).input


def context_left(model: LanguageModel, template: Template, queries: Sequence[Example]) -> float:
    """Tokens that a prompt may have, so that the model's context holds the longest answer or option too."""
    context = model.context or math.inf
    options = [replace(e, output=option) for e in queries for option in e.choices or ()]
    return float(context - answer_limit(template, [*queries, *options]))


def most_within(room: float, most: int, tokens: Callable[[int], int]) -> int:
    """The largest count from 0 to `most` whose `tokens`, which grow with it, are not more than `room`."""
    return bisect_right(range(1, most + 1), room, key=tokens)


MAX_SHOTS = 16
"""Demonstrations shown at most before a training example's query, whatever the number of examples."""


def other_examples(examples: Sequence[Example]) -> list[list[Example]]:
    """For each example the others, in order; from `MAX_SHOTS` others on, those that follow it, around the end."""
    n = len(examples)
    if n - 1 <= MAX_SHOTS:
        return [[other for j, other in enumerate(examples) if j != i] for i in range(n)]
    return [[examples[(i + k) % n] for k in range(1, MAX_SHOTS + 1)] for i in range(n)]


def answer_limit(template: Template, examples: Sequence[Example]) -> int:
    """Tokens to generate: the longest expected answer and its terminator.

    So an answer that goes on where it should end is seen to go on, and is no exact match.
    """
    return max(len(template.encode(e.input, answer=e.output).answer) for e in examples)
