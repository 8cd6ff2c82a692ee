"""What the baseline of cross-task prompting shows: examples of another task, before the query of this one."""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from laai.evaluate import answer_limit
from laai.layers import text_config
from laai.models import LanguageModel
from laai.prompts import Shown, Template
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
    longest = max(queries, key=lambda e: len(template.encode(e.input).prompt)).input
    context = getattr(text_config(model.llm), "max_position_embeddings", None) or math.inf
    options = [replace(e, output=option) for e in queries for option in e.choices or ()]
    room = min(LONGEST_PROMPT, context - answer_limit(template, [*queries, *options]))

    def tokens(count: int) -> int:
        before = Shown(shown.task, shown.examples[:count])
        return len(replace(template, before=before).encode(longest).prompt)

    most = len(shown.examples)
    if count := bisect_right(range(1, most + 1), room, key=tokens):
        return Shown(shown.task, shown.examples[:count])
    warnings.warn(
        f"cross-task few-shot is left out: a query behind one example of {shown.task.name} is over {room:g} tokens",
        stacklevel=3,
    )
    return None
