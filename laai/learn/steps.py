"""The optimiser's steps: in units of the activations, and finite or not taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from laai.errors import UserError
from laai.learn.recipe import Recipe
from laai.steering import Intervention

CURE = "lower the learning rate or init_scale, or take dtype float32"


def scheduled_optimizer(
    recipe: Recipe, intervention: Intervention, rms: Mapping[int, float], steps: float
) -> tuple[Optimizer, Any]:
    """The recipe's optimiser over the vectors, one group each, and the schedule of its rate.

    The rate is in units of the activations' root mean square, `rms` by layer; `steps` is infinite without a bound.
    """
    from transformers import get_scheduler  # brings peft along: `--help` does not wait for it

    optimizer = recipe.optimizer([{"params": [v], "name": f"{s}.{i}"} for (s, i), v in intervention.items()])
    for group, (key, _) in zip(optimizer.param_groups, intervention.items(), strict=True):
        group["lr"] *= rms[key[1]]
    bound = int(min(steps, 10**9))
    return optimizer, get_scheduler(recipe.schedule, optimizer, num_warmup_steps=0, num_training_steps=bound)


def optimizer_facts(optimizer: Optimizer) -> dict[str, Any]:
    """Name, rate and weight decay, as the recipe has them."""
    stated = {name: optimizer.defaults.get(name) for name in ("lr", "weight_decay")}
    return {"optimizer": type(optimizer).__name__} | {k: float(v) for k, v in stated.items() if v}


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


@contextmanager
def undone_unless_finite(vectors: Sequence[Tensor], step: int) -> Iterator[None]:
    """Around a step: if it leaves any of the vectors (width,) infinite or no number, all are put back.

    Raises:
        UserError: then, too.
    """
    before = [vector.detach().clone() for vector in vectors]
    yield
    if not bool(torch.stack([vector.isfinite().all() for vector in vectors]).all()):  # the device is asked once
        with torch.no_grad():
            for vector, old in zip(vectors, before, strict=True):
                vector.copy_(old)
        raise UserError(f"expected finite vectors, found some that are not after step {step}: {CURE}; it is undone")
