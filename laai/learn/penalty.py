"""Sparse group lasso: its value and its proximal step.

LAAI (arXiv 2502.06115) regularises its vectors "sparse across and within attention heads": an ℓ1 term within heads and
an ℓ2 term over each head. A gradient step on either never gives exact zeros, the proximal step does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from laai.learn.recipe import Recipe
from laai.steering import Intervention, Key


def value(vector: Tensor, groups: int, l1: float, group_l2: float) -> Tensor:
    """l1 * ‖Δ‖₁ + group_l2 * Σ_g ‖δ_g‖₂ of a vector (width,) split into `groups` equal parts; a scalar."""
    penalty: Tensor = (
        l1 * vector.abs().sum() + group_l2 * torch.linalg.vector_norm(vector.view(groups, -1), dim=-1).sum()
    )
    return penalty


def proximal_step(vector: Tensor, groups: int, l1: float, group_l2: float, step: float) -> Tensor:
    """The point that minimises ½‖u − Δ‖² + step * value(u): soft threshold, then shrink each group.

    Args:
        vector: (width,), after the optimiser's step.
        groups: number of equal parts; the heads at site `heads`, 1 at `residual`.
        l1, group_l2: strengths, as in `value`.
        step: the optimiser's learning rate.

    Returns:
        (width,), with exact zeros (Simon et al. 2013, eq. 12: the prox of the sparse group lasso).
    """
    soft = vector.sign() * (vector.abs() - step * l1).clamp_min(0)
    parts = soft.view(groups, -1)
    norm = torch.linalg.vector_norm(parts, dim=-1, keepdim=True)
    shrink = (1 - step * group_l2 / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_min(0)
    shrunk: Tensor = parts * shrink
    return shrunk.view_as(vector)


@torch.no_grad()
def shrink(intervention: Intervention, centre: Mapping[Key, Tensor], optimizer: Any, recipe: Recipe) -> Tensor:
    """Apply `proximal_step` to every vector, around its `centre` (or zero where it has none), in place.

    Groups are the heads at site `heads`, and the whole vector at `residual`. The step is the rate that the optimiser,
    torch's or Lightning's, has for the vector. Returns the value of the penalty afterwards.
    """
    values, strengths = [], (recipe.l1, recipe.group_l2)
    for (key, vector), group in zip(intervention.items(), optimizer.param_groups, strict=True):
        parts = intervention.num_heads[key[1]] if key[0] == "heads" else 1
        middle = centre[key].to(vector.device) if key in centre else torch.zeros_like(vector)
        moved = proximal_step(vector.detach() - middle, parts, *strengths, float(group["lr"]))
        vector.copy_(middle + moved)
        values.append(value(moved, parts, *strengths))
    return torch.stack(values).sum()
