"""Scores of many vectors at many strengths, on one batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from laai.engine.forward import token_nll
from laai.engine.frozen import FrozenBatch
from laai.prompts import IGNORE
from laai.steering import Attachment, Edit, Intervention, Where, steer


class SweepScores(NamedTuple):
    """Scores by candidate, scale and example, each (candidates, scales, examples).

    Attributes:
        nll: mean negative log-likelihood per token of the answer, fp32, nats.
        greedy: bool, every token of the answer is the likeliest after those before it: what greedy generation would
            write, if it ends where the answer does.
    """

    nll: Tensor
    greedy: Tensor

    @classmethod
    def of(cls, candidates: int, scales: int, examples: int) -> SweepScores:
        """Room for so many."""
        shape = (candidates, scales, examples)
        return cls(torch.zeros(shape), torch.zeros(shape, dtype=torch.bool))

    def note(self, candidate: int, scales: Sequence[int], rows: list[int], logits: Tensor, labels: Tensor) -> None:
        """Enter what a batch of `rows`, each repeated for the scales, gave."""
        counts = (labels != IGNORE).sum(-1).clamp_min(1)
        nll = token_nll(logits, labels).sum(-1) / counts
        greedy = ((logits.argmax(-1) == labels) | (labels == IGNORE)).all(-1)
        for table, found in zip(self, (nll, greedy), strict=True):
            for place, column in zip(scales, found.view(len(rows), -1).T.to(table.device), strict=True):
                table[candidate, place, rows] = column


def logits_at(
    frozen: FrozenBatch, below: Sequence[nn.Module], candidate: Intervention, scales: Sequence[float]
) -> Tensor:
    """Logits (batch * scales, suffix tokens, vocabulary): each row at each scale in turn."""
    edits = {key: _edit(candidate, vector, scales) for key, vector in candidate.items()}
    with Attachment(frozen.model, edits, candidate.positions):
        return frozen.repeated(len(scales), below).run(below)


def _edit(candidate: Intervention, vector: Tensor, scales: Sequence[float]) -> Edit:
    """Adds the vector at another scale in each row of a batch whose rows are repeated for the scales."""

    def edit(hidden: Tensor, where: Where) -> Tensor:
        strengths = candidate.scale * torch.tensor(scales, device=vector.device).repeat(len(hidden) // len(scales))
        return steer(hidden, strengths[:, None, None] * vector, where, candidate.preserve_norm)

    return edit
