"""How strongly to add a CAST vector, its λ, and the scores of labelled answers that it is chosen by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from laai.engine import Engine
from laai.models import LanguageModel
from laai.prompts import Prompt
from laai.steering import Intervention

CAST_SCALES = (0.25, 0.5, 1.0, 1.5, 2.0)
"""Strengths of a task's own CAST vector that are tried."""

LONGEST_ANSWER = 24
"""Tokens of an answer that its probability takes."""

Criterion = Literal["likelihood", "probability"]


def answer_scores(nll: Tensor, prompts: Sequence[Prompt], criterion: Criterion) -> Tensor:
    """How good a vector is for each answer, terminator included, (…, prompts) fp64: the more, the better.

    `likelihood`, its logarithm in nats, hears every answer: for the scale of a vector that may be weak at all scales,
    where the mean probability is that of the one answer which happens to be likely. `probability` is the exact match
    that sampling would expect: for a vector that is applied only if it helps on that scale. Of more than
    `LONGEST_ANSWER` tokens an answer has the probability of so many such tokens: the whole one's, from half a sentence
    on, is that of hardly any answer, and the mean over answers would be one short answer's.

    Args:
        nll: (…, prompts) mean per token, nats.
        prompts: with their answers.
        criterion: each picks other scales and places than the other does, on one run in three or so.
    """
    tokens = torch.tensor([len(prompt.answer) for prompt in prompts])
    if criterion == "likelihood":
        return -nll.double() * tokens
    return (-nll.double() * tokens.clamp(max=LONGEST_ANSWER)).exp()


def best_scale(
    model: LanguageModel, vector: Intervention, prompts: Sequence[Prompt], scales: Sequence[float] = CAST_SCALES,
    engine: Engine | None = None,
) -> float:  # fmt: skip
    """The scale, of `scales`, at which the steered `model` gives `prompts`' labelled answers the highest likelihood."""
    nll = (engine or Engine(model)).sweep([vector], scales, prompts).nll[0]
    scores = answer_scores(nll, prompts, "likelihood").sum(-1)
    return list(scales)[int(scores.nan_to_num(nan=-math.inf).argmax())]  # NaN: a scale at which the model overflows
