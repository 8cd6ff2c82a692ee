"""How strongly to add a CAST vector: its λ."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from laai.evaluate import to_device
from laai.forward import answer_nll, mean_nll
from laai.intervention import Intervention
from laai.models import LanguageModel
from laai.prompts import Prompt, collate, pad_token

SCALES = (0.25, 0.5, 1.0, 1.5, 2.0)


def best_scale(
    model: LanguageModel, vector: Intervention, prompts: Sequence[Prompt], scales: Sequence[float] = SCALES
) -> float:
    """The scale at which the steered model gives labelled answers the highest likelihood.

    Args:
        model: the language model.
        vector: a CAST vector.
        prompts: labelled prompts with their answers, as for training.
        scales: what to try.
    """
    batch = to_device(collate(prompts, pad_token(model.tokenizer)), model.llm)
    losses: dict[float, float] = {}
    for scale in scales:
        with (scale * vector).on(model), torch.no_grad():
            losses[scale] = float(mean_nll(answer_nll(model.llm, batch), batch.labels))
    return min(losses, key=lambda scale: losses[scale])
