"""Which source samples to extract from, and which demonstrations each of them is shown with."""

from __future__ import annotations

import random
from collections.abc import Sequence

from laai.errors import UserError
from laai.tasks import Example


def random_samples(
    pool: Sequence[Example], samples: int, shots: int, seed: int, shared: bool = False
) -> tuple[list[Example], list[list[Example]]]:
    """Draw samples from a pool and, for each, `shots` demonstrations among all other examples.

    With `shared`, all samples have the same demonstrations, none of which is a sample.

    Returns:
        The samples, at most as many as there are, and for each its demonstrations.

    Raises:
        UserError: samples or shots below 1, or a pool too small for one sample with its demonstrations.
    """
    if samples < 1 or shots < 1:
        raise UserError(f"extraction needs at least 1 sample and 1 shot, not {samples} and {shots}")
    if len(pool) <= shots:
        raise UserError(f"{shots} shots need at least {shots + 1} source examples, there are {len(pool)}")
    draw = random.Random(seed)
    if shared:
        chosen = draw.sample(range(len(pool)), min(samples + shots, len(pool)))
        first = [pool[i] for i in chosen[:shots]]
        return [pool[i] for i in chosen[shots:]], [first] * (len(chosen) - shots)
    chosen = draw.sample(range(len(pool)), min(samples, len(pool)))
    # One more than wanted: the sample itself, if drawn, is dropped.
    shown = [[j for j in draw.sample(range(len(pool)), shots + 1) if j != i][:shots] for i in chosen]
    return [pool[i] for i in chosen], [[pool[j] for j in others] for others in shown]
