"""How strongly to add a CAST vector: its λ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from laai.engine import Engine
from laai.models import LanguageModel
from laai.prompts import Prompt
from laai.steering import Intervention

SCALES = (0.25, 0.5, 1.0, 1.5, 2.0)


def best_scale(
    model: LanguageModel,
    vector: Intervention,
    prompts: Sequence[Prompt],
    scales: Sequence[float] = SCALES,
    engine: Engine | None = None,
) -> float:
    """The scale at which the steered model gives labelled answers the highest likelihood.

    Args:
        model: the language model.
        vector: a CAST vector.
        prompts: labelled prompts with their answers, as for training.
        scales: what to try.
        engine: the model's, if there is one.
    """
    nll = (engine or Engine(model)).sweep([vector], scales, prompts).nll[0]  # (scales, prompts), mean per token
    tokens = torch.tensor([len(prompt.answer) for prompt in prompts])
    totals = (nll * tokens).sum(-1).nan_to_num(nan=math.inf)  # a scale at which the model overflows
    return list(scales)[int(totals.argmin())]
