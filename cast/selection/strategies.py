"""Which samples of a source task to extract from: strategies by name.

A strategy takes embeddings, (n, width) rows of length one, and returns the numbers of fewer than n chosen samples, in
the order they were chosen: the first ten of a hundred are the ten it would have chosen alone, but for `random`, whose
order is its draw's. Its seed draws cascades and the clusters behind the graph of neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cast.selection.influence import CascadeInfluence, FacilityInfluence, Influence, WalkInfluence
from cast.selection.neighbours import Floats, nearest_neighbours, unit_rows
from laai.errors import UserError
from laai.vocabulary import STRATEGIES, Strategy

Diffusion = Literal["walk", "cascade"]


def select(
    strategy: Strategy, count: int, samples: int, embed: Callable[[], NDArray[np.floating]], seed: int = 0
) -> list[int]:
    """Choose `samples` of `count` by a strategy's name; all of them where there are no more.

    Args:
        strategy: one of `STRATEGIES`.
        count: samples in the pool.
        samples: at least 1.
        embed: gives their embeddings (count, width); not called for `random`.

    Raises:
        UserError: an unknown strategy, fewer than one sample, or embeddings of another number of samples.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
    if samples < 1:
        raise UserError(f"at least 1 sample must be selected, not {samples}")
    if samples >= count:
        return list(range(count))
    if strategy == "random":
        return random(count, samples, seed)
    embeddings = embed()
    if len(embeddings) != count:
        raise UserError(f"expected embeddings of {count} samples, found {len(embeddings)}")
    return _BY_EMBEDDING[strategy](unit_rows(embeddings), samples, seed)


def random(count: int, samples: int, seed: int) -> list[int]:
    """Without replacement."""
    return [int(i) for i in np.random.default_rng(seed).permutation(count)[:samples]]


def cast(
    rows: Floats, samples: int, seed: int = 0, *, neighbours: int = 10, diffusion: Diffusion = "walk"
) -> list[int]:
    """Influential and diverse (CAST, 2507.13236): greedy by influence gained × distance to what is chosen.

    score(u | S) = [I(S ∪ u) − I(S)] · (1 − max over s in S of cos(u, s)), with I a diffusion over the graph of
    neighbours. Both factors only fall as S grows, so lazy evaluation finds what greedy evaluation of all would.

    Args:
        diffusion: `walk`, deterministic, or `cascade`, independent cascades.
    """
    graph = nearest_neighbours(rows, neighbours, seed)
    influence: Influence = WalkInfluence(graph)
    if diffusion == "cascade":  # along the same edges: from a sample to those that have it among their neighbours
        influence = CascadeInfluence(graph.transitions(), np.random.default_rng(seed))
    return lazy_greedy(influence, samples, rows)


def ideal(rows: Floats, samples: int, seed: int = 0, *, neighbours: int = 10) -> list[int]:
    """Greedy by what independent cascades reach, from each sample to its own neighbours (IDEAL, 2310.10873)."""
    backward = nearest_neighbours(rows, neighbours, seed).transitions().T.tocsr()
    return lazy_greedy(CascadeInfluence(backward, np.random.default_rng(seed)), samples)


def vote_k(rows: Floats, samples: int, seed: int = 0, *, neighbours: int = 150, base: float = 10.0) -> list[int]:
    """Samples that many others are near to, with a discount for voters that are served (vote-k, 2209.01975).

    score(u) = Σ over unselected v with u among their neighbours of base^−(selected neighbours of v).

    A voter has a tenth of all samples as neighbours, but 3 at least, and 150 at most, as in the paper on 3,000: where
    all are neighbours of all, nothing tells samples apart. Of equal scores the one counts that is nearer to its voters.
    """
    voters = nearest_neighbours(rows, min(neighbours, max(len(rows) // 10, 3)), seed)
    by_candidate = voters.matrix(np.ones_like(voters.similarity)).T.tocsr()
    nearness = np.asarray(voters.matrix(voters.similarity).sum(axis=0)).ravel()
    weights = np.ones(len(rows), dtype=np.float32)
    chosen: list[int] = []
    for _ in range(samples):
        scores = by_candidate @ weights
        scores[chosen] = -np.inf
        equal = np.flatnonzero(scores == scores.max())
        best = int(equal[nearness[equal].argmax()])
        chosen.append(best)
        near = by_candidate.indices[by_candidate.indptr[best] : by_candidate.indptr[best + 1]]
        weights[near] /= base
        weights[best] = 0.0
    return chosen


def facility_location(rows: Floats, samples: int, seed: int = 0, *, neighbours: int = 50) -> list[int]:
    """Greedy by Σ over samples v of the cosine of v with the nearest chosen one, over the graph of neighbours."""
    return lazy_greedy(FacilityInfluence(nearest_neighbours(rows, neighbours, seed)), samples)


def k_center(rows: Floats, samples: int, seed: int = 0) -> list[int]:
    """From the sample nearest the mean on, always the one farthest from all chosen (Gonzalez 1985)."""
    chosen = [int((rows @ rows.mean(axis=0)).argmax())]
    nearest = rows @ rows[chosen[0]]
    while len(chosen) < samples:
        nearest[chosen[-1]] = np.inf
        chosen.append(int(nearest.argmin()))
        np.maximum(nearest, rows @ rows[chosen[-1]], out=nearest)
    return chosen


_BY_EMBEDDING: dict[str, Callable[[Floats, int, int], list[int]]] = {
    "cast": cast, "ideal": ideal, "vote_k": vote_k, "facility_location": facility_location, "k_center": k_center,
}  # fmt: skip


def lazy_greedy(influence: Influence, samples: int, apart: Floats | None = None) -> list[int]:
    """The greedy choice, with exact gains only for samples whose bound is the highest left (Minoux 1978).

    Args:
        influence: monotone and submodular.
        apart: (n, width) unit rows; each gain is multiplied by the distance 1 − cos to the nearest chosen sample.
    """
    chosen: list[int] = []
    distance = np.ones(len(influence.bounds))
    bounds = influence.bounds.copy()
    for _ in range(samples):
        exact: set[int] = set()
        while (best := int(bounds.argmax())) not in exact:
            bounds[best] = influence.gain(best) * distance[best]
            exact.add(best)
        chosen.append(best)
        influence.add(best)
        if apart is not None:
            np.minimum(distance, 1.0 - (apart @ apart[best]).clip(min=0.0), out=distance)
        bounds = np.minimum(bounds, influence.bounds * distance)
        bounds[chosen] = -np.inf
    return chosen
