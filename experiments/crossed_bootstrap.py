"""Bootstrap weights for pairs of tasks: sources and targets are resampled, not pairs, since pairs share both.

Owen, The pigeonhole bootstrap (Annals of Applied Statistics 1(2), 2007): rows and columns of a table are drawn
independently, and a cell counts as often as its row was drawn times as often as its column was. Pairs taken as
independent of each other would give intervals that are too narrow; these are rather too wide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000


def crossed_weights(
    pairs: Sequence[tuple[str, str]], rng: np.random.Generator, resamples: int = RESAMPLES
) -> NDArray[np.int64]:
    """How often each (source, target) counts in each resample: (resamples, pairs); all may be 0 in a sparse table."""
    weights = np.ones((resamples, len(pairs)), dtype=np.int64)
    for names in zip(*pairs, strict=True):
        known, place = np.unique(names, return_inverse=True)
        drawn = rng.multinomial(len(known), np.full(len(known), 1 / len(known)), size=resamples)
        weights *= drawn[:, place]
    return weights
