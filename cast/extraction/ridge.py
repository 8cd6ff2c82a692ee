"""Input-dependent CAST: what demonstrations would do to this very query, predicted from its own zero-shot state.

The mean of differences moves every query alike. Here the effect of demonstrations is a ridge regression on the
zero-shot activation h (Linear Task Vector, arXiv 2605.20730):

    effect(h) = mean difference + (h − mean h) · A,    A = argmin Σ |difference − mean − (h − mean h) A|² + penalty |A|²
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter

import torch
from torch import Tensor, nn

from cast.extraction.contrast import Contrast
from laai.errors import UserError
from laai.models import LanguageModel, model_identity
from laai.steering import AffineMap, RidgeMap
from laai.vocabulary import Positions

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
"""To choose from, in units of the activations' mean squared distance from their mean."""


def fit_ridge(
    contrast: Contrast, model: nn.Module | LanguageModel, *, penalties: Sequence[float] = PENALTIES,
    positions: Positions = "last_prompt",
) -> RidgeMap:  # fmt: skip
    """Fit a map for each site and layer of a contrast that kept its samples' activations.

    The penalty of each map is the one with the least leave-one-out error, which ridge regression gives in closed form.

    Args:
        contrast: from `cast.extraction.vectors.contrast_of` with `keep=True`.
        model: what it was read from.
        penalties: to choose from, in the units of `PENALTIES`.
        positions: which tokens will be steered.

    Raises:
        UserError: fewer than 3 samples.
    """
    if len(contrast) < 3:
        raise UserError(f"a ridge map needs at least 3 samples, not {len(contrast)}")
    maps = {key: ridge(zero, difference, penalties) for key, zero, difference in contrast.states()}
    facts = {**(contrast.provenance.cast or {}), "kind": "ridge", "samples": len(contrast)}
    made = replace(contrast.provenance, cast=facts, **model_identity(model))
    return RidgeMap(maps, positions=positions, provenance=made)


def ridge(states: Tensor, effects: Tensor, penalties: Sequence[float] = PENALTIES) -> AffineMap:
    """The affine map from states to effects, by ridge regression in its kernel form (Linear Task Vector, 2605.20730).

    Args:
        states: (samples, width), zero-shot activations.
        effects: (samples, width), what demonstrations add to them.
        penalties: to choose from by leave-one-out error, in units of the states' mean squared distance from their mean.

    Returns:
        fp32, of rank below the number of samples; computed in fp64.
    """
    centre, mean = states.double().mean(0), effects.double().mean(0)
    x, y = states.double() - centre, effects.double() - mean
    kernel, unit = x @ x.T, x.square().sum(dim=1).mean()
    total = _left_out(torch.zeros_like(kernel), y, 1.0)
    strengths = [float(penalty * unit) or 1.0 for penalty in penalties]
    error, strength = min(((_left_out(kernel, y, one), one) for one in strengths), key=itemgetter(0))
    right = torch.linalg.solve(kernel + strength * torch.eye(len(x), dtype=x.dtype), y)
    explained = 1 - error / total if total else 0.0
    return AffineMap(mean.float(), centre.float(), x.T.float().contiguous(), right.float().contiguous(), explained)


def _left_out(kernel: Tensor, y: Tensor, strength: float) -> float:
    """Sum of squared leave-one-out errors of kernel ridge regression with an intercept, in closed form."""
    count = len(y)
    hat = kernel @ torch.linalg.inv(kernel + strength * torch.eye(count, dtype=y.dtype)) + 1 / count
    return float(((y - hat @ y) / (1 - hat.diagonal())[:, None]).square().sum())
