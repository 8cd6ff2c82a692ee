"""The gradient of the vectors: how long it is, and what to do where it is no number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from laai.errors import UserError
from laai.steering import Intervention

CURE = "lower the learning rate or init_scale, or take dtype float32"


def gradient_norm(intervention: Intervention, rms: Mapping[int, float]) -> Tensor:
    """Norm of the gradient of all vectors, in nats for a change by the activations' root mean square; a scalar."""
    parts = [v.grad.norm() * rms[layer] for (_, layer), v in intervention.items() if v.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(parts))
    return norm


def check_finite(norm: Tensor, step: int, inputs: Sequence[str], nll: Tensor) -> None:
    """Refuse a step whose gradient is infinite or no number, before it reaches the vectors.

    Args:
        norm: of the gradient; the same on all devices, so that all of them stop.
        step: number of the step.
        inputs: of the examples of the last batch on this device.
        nll: (examples, tokens), their losses; looked at only then.

    Raises:
        UserError: names step and example.
    """
    if not bool(norm.isfinite()):
        sound = nll.sum(dim=-1).isfinite().tolist()
        found = [text for text, good in zip(inputs, sound, strict=True) if not good]
        where = f"on {found[0][:80]!r}" if found else "in its gradient"
        raise UserError(
            f"expected a finite loss, found one that is not at step {step}, {where}: {CURE}; the vectors stay as they "
            "were before that step"
        )


@torch.no_grad()
def restore_if_unsound(vectors: Sequence[Tensor], before: Sequence[Tensor], step: int) -> None:
    """Put back the vectors (width,) from `before` a step that left any of them infinite or no number.

    Raises:
        UserError: then, too.
    """
    if not bool(torch.stack([vector.isfinite().all() for vector in vectors]).all()):  # the device is asked once
        for vector, old in zip(vectors, before, strict=True):
            vector.copy_(old)
        raise UserError(f"expected finite vectors, found some that are not after step {step}: {CURE}; it is undone")
