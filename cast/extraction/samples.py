"""Source samples, and the demonstrations that each of them is shown with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cast.selection import select
from laai.errors import UserError
from laai.tasks import Example
from laai.vocabulary import Strategy


@dataclass(frozen=True)
class CastStart:
    """How the CAST start of a learning run is extracted from other tasks than its own.

    Raises:
        UserError: sizes below one.
    """

    samples: int = 50
    """Source samples, of other tasks in all."""
    shots: int = 5
    """Demonstrations in each few-shot prompt, for other tasks."""
    shared_shots: bool = False
    """The same demonstrations for all samples, run once."""

    def __post_init__(self) -> None:
        """Refuse a start from nothing, before anything is loaded."""
        _check_sizes(self.samples, self.shots)


class Samples(NamedTuple):
    """Samples and, for each, its demonstrations; no sample is among its own."""

    samples: list[Example]
    demonstrations: list[list[Example]]


def draw(
    pool: Sequence[Example], samples: int, shots: int, seed: int, *, strategy: Strategy = "random",
    embed: Callable[[Sequence[Example]], NDArray[np.floating]] | None = None,
    shared: bool = False, from_selected: bool = False,
) -> Samples:  # fmt: skip
    """Select samples from a pool and, for each, draw `shots` demonstrations among all other examples.

    Args:
        pool: labelled examples of the source task.
        samples: at most as many as there are.
        seed: draws samples and demonstrations.
        strategy: how samples are selected, see `cast.selection`.
        embed: gives embeddings (examples, width), for strategies other than `random`.
        shared: all samples have the same demonstrations, none of which is a sample.
        from_selected: demonstrations come from the samples alone, so that no other label of the pool is needed.

    Raises:
        UserError: samples or shots below 1, or too few examples for one sample with its demonstrations.
    """
    _check_sizes(samples, shots)
    if shared and from_selected:
        raise UserError("demonstrations that all samples share are no samples: choose shared or from_selected")
    least, what = (min(samples, len(pool)), "samples") if from_selected else (len(pool), "source examples")
    if least <= shots:
        raise UserError(f"{shots} shots need at least {shots + 1} {what}, there are {least}")
    rng = random.Random(seed)
    common = rng.sample(range(len(pool)), shots) if shared else []
    left = [i for i in range(len(pool)) if i not in set(common)]

    def embeddings() -> NDArray[np.floating]:
        if embed is None:
            raise UserError(f"the strategy {strategy!r} needs embeddings of the samples")
        return embed([pool[i] for i in left])

    chosen = [left[i] for i in select(strategy, len(left), samples, embeddings, seed)]
    if shared:
        return Samples([pool[i] for i in chosen], [[pool[i] for i in common]] * len(chosen))
    others = chosen if from_selected else range(len(pool))
    # One more than wanted: the sample itself, if drawn, is dropped.
    shown = [[j for j in rng.sample(others, shots + 1) if j != i][:shots] for i in chosen]
    return Samples([pool[i] for i in chosen], [[pool[j] for j in numbers] for numbers in shown])


def _check_sizes(samples: int, shots: int) -> None:
    if samples < 1 or shots < 1:
        raise UserError(f"extraction needs at least 1 sample and 1 shot, not {samples} and {shots}")
