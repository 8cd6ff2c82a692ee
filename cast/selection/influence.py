"""How many samples of a pool a chosen few speak for: influence by diffusion over the graph of neighbours.

Both influences are monotone and submodular, so that a greedy choice is within 1 - 1/e of the best, and both share one
shape: `bounds`, (n,), never lie below the marginal gains, `gain` is exact, `add` takes a sample and brings the bounds
up to date.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cast.selection.neighbours import Neighbours

Gains = NDArray[np.float64]


class WalkInfluence:
    """Deterministic diffusion: Σ over samples v of the probability that a walk from v meets a chosen sample.

    A walk follows `Neighbours.transitions` and goes on with probability `alpha` before each of at most `steps` steps: a
    sample is spoken for by those that it resembles, directly or through others.
    """

    def __init__(self, graph: Neighbours, steps: int = 4, alpha: float = 0.8) -> None:
        self._steps, self._alpha = steps, alpha
        self._transitions = graph.transitions()
        self._forward = self._transitions.T.tocsr()  # moves where walks are one step on
        self._chosen = np.zeros(len(graph.indices), dtype=bool)
        self._unmet = np.ones((steps + 1, len(graph.indices)))  # of walks from v with that many steps left
        self.bounds = self._weighed_visits(self._chosen)

    def _weighed_visits(self, absorbing: NDArray[np.bool_]) -> Gains:
        """Expected visits by walks that end where `absorbing`, each weighed: would it else meet no chosen sample?"""
        walks = np.ones(len(absorbing))
        total = walks * self._unmet[self._steps]
        for left in range(self._steps - 1, -1, -1):
            walks = self._alpha * np.asarray(self._forward @ np.where(absorbing, 0.0, walks))
            total += walks * self._unmet[left]
        return np.asarray(total)

    def gain(self, sample: int) -> float:
        """First visits to the sample, by walks that meet no chosen one before or after."""
        absorbing = self._chosen.copy()
        absorbing[sample] = True
        return float(self._weighed_visits(absorbing)[sample])

    def add(self, sample: int) -> None:
        """Walks end at the sample from now on."""
        self._chosen[sample] = True
        self._unmet[0] = ~self._chosen
        for left in range(self._steps):
            on = 1.0 - self._alpha * (1.0 - self._transitions @ self._unmet[left])
            self._unmet[left + 1] = np.where(self._chosen, 0.0, on)
        self.bounds = self._weighed_visits(self._chosen)  # visits are first visits and returns


class CascadeInfluence:
    """Independent cascades: the expected number of samples that the chosen ones reach (IDEAL, 2310.10873).

    A reached sample tries each of its edges once. IDEAL runs ten cascades for each candidate. Here the same expectation
    comes from reversed cascades: the share of `cascades` random samples that a candidate would reach, one set of
    reachers for each, so that no candidate costs a cascade.

    Args:
        backward: row v holds the samples that can reach v in one step, with their probabilities.
        steps: length of a cascade at most.
    """

    def __init__(
        self, backward: sp.csr_array, rng: np.random.Generator, cascades: int = 20_000, steps: int = 10
    ) -> None:
        count = backward.shape[0]
        self._unit = count / cascades
        roots = rng.integers(count, size=cascades)
        sets, members = reversed_cascades(backward, roots, rng, steps)
        self._members = sp.csr_array((np.ones(len(sets), np.int8), (sets, members)), shape=(cascades, count))
        self._sets = self._members.tocsc()
        self._met = np.zeros(cascades, dtype=bool)
        self.bounds = self._unit * np.bincount(members, minlength=count).astype(np.float64)

    def _of(self, sample: int) -> NDArray[np.int32]:
        """Cascades that the sample would start or join, and no chosen one does."""
        sets = self._sets.indices[self._sets.indptr[sample] : self._sets.indptr[sample + 1]]
        return np.asarray(sets[~self._met[sets]])

    def gain(self, sample: int) -> float:
        """Samples that it reaches and no chosen one does."""
        return self._unit * len(self._of(sample))

    def add(self, sample: int) -> None:
        """Its cascades count no more for others."""
        new = self._of(sample)
        self._met[new] = True
        self.bounds -= self._unit * np.asarray(self._members[new].sum(axis=0, dtype=np.int64)).ravel()


class FacilityInfluence:
    """Σ over samples of the cosine with the nearest chosen one among their neighbours (facility location)."""

    def __init__(self, graph: Neighbours) -> None:
        self._served = graph.matrix(graph.similarity.clip(min=0.0)).T.tocsr()  # row u: those that u would serve
        self._nearest = np.zeros(len(graph.indices))
        self.bounds = 1.0 + np.asarray(self._served.sum(axis=1, dtype=np.float64)).ravel()

    def _of(self, sample: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        part = slice(self._served.indptr[sample], self._served.indptr[sample + 1])
        return self._served.indices[part], self._served.data[part]

    def gain(self, sample: int) -> float:
        """How much nearer samples get to a chosen one, the sample itself included."""
        others, cosines = self._of(sample)
        return float((cosines - self._nearest[others]).clip(min=0).sum() + 1.0 - self._nearest[sample])

    def add(self, sample: int) -> None:
        """It serves its neighbours from now on. The bounds stay: they are no lower than the gains."""
        others, cosines = self._of(sample)
        self._nearest[others] = np.maximum(self._nearest[others], cosines)
        self._nearest[sample] = 1.0


Influence = WalkInfluence | CascadeInfluence | FacilityInfluence


def reversed_cascades(
    backward: sp.csr_array, roots: NDArray[np.int64], rng: np.random.Generator, steps: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each of `roots`, (cascades,), the samples whose cascade reaches it in so many steps at most.

    Returns:
        Pairs (cascade, member), each once, roots included; an edge is drawn once in each cascade.
    """
    count = backward.shape[0]
    frontier = np.arange(len(roots)) * count + roots  # (cascade, sample) in one number
    seen = frontier.copy()
    for _ in range(steps):
        sets, samples = np.divmod(frontier, count)
        starts, sizes = backward.indptr[samples], np.diff(backward.indptr)[samples]
        edges = np.repeat(starts - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes) + np.arange(sizes.sum())
        live = rng.random(len(edges)) < backward.data[edges]
        reached = np.unique(np.repeat(sets, sizes)[live] * count + backward.indices[edges[live]])
        frontier = reached[~np.isin(reached, seen, assume_unique=True)]
        if not len(frontier):
            break
        seen = np.concatenate([seen, frontier])
    return np.divmod(seen, count)
