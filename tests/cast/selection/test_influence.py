"""Influences against their definitions, by hand and by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse as sp

from cast.selection.influence import CascadeInfluence, FacilityInfluence, WalkInfluence, reversed_cascades
from cast.selection.neighbours import nearest_neighbours, unit_rows


@pytest.fixture(scope="module")
def rows():
    return unit_rows(np.random.default_rng(1).normal(size=(40, 6)))


@pytest.fixture(scope="module")
def graph(rows):
    return nearest_neighbours(rows, 4)


def walk_by_hand(graph, chosen, steps, alpha):
    """Backwards over the steps: the probability of meeting a chosen sample, from each sample."""
    transitions = graph.transitions().toarray()
    met = np.zeros(len(transitions))
    met[chosen] = 1.0
    for _ in range(steps):
        on = alpha * transitions @ met
        met = np.where(np.isin(np.arange(len(met)), chosen), 1.0, on)
    return met.sum()


def facilities_by_hand(graph, chosen):
    nearest = np.zeros(len(graph.indices))
    for v, (others, cosines) in enumerate(zip(graph.indices, graph.similarity, strict=True)):
        served = [max(c, 0) for u, c in zip(others, cosines, strict=True) if u in chosen]
        nearest[v] = 1.0 if v in chosen else max(served, default=0.0)
    return nearest.sum()


def test_walks_by_hand(graph):
    influence, chosen = WalkInfluence(graph, steps=4, alpha=0.8), []
    for sample in (3, 17, 25):
        before = walk_by_hand(graph, chosen, 4, 0.8)
        gains = [walk_by_hand(graph, [*chosen, u], 4, 0.8) - before for u in range(40)]
        np.testing.assert_allclose([influence.gain(u) for u in range(40) if u not in chosen],
                                   [g for u, g in enumerate(gains) if u not in chosen], rtol=1e-4)  # fmt: skip
        assert (influence.bounds + 1e-6 >= np.array(gains)).all()
        influence.add(sample)
        chosen.append(sample)


def test_facilities_by_hand(graph):
    influence, chosen = FacilityInfluence(graph), []
    for sample in (0, 8, 31):
        before = facilities_by_hand(graph, chosen)
        gains = [facilities_by_hand(graph, [*chosen, u]) - before for u in range(40)]
        np.testing.assert_allclose([influence.gain(u) for u in range(40)], gains, atol=1e-5)
        assert (influence.bounds + 1e-6 >= np.array(gains)).all()
        influence.add(sample)
        chosen.append(sample)


def test_cascades_reach_what_enumeration_says():
    """A path of three with known probabilities: every outcome of every edge, weighed."""
    edges = {(0, 1): 0.5, (1, 2): 0.3, (0, 2): 0.2}
    reach = np.zeros(3)
    for live in itertools.product([0, 1], repeat=3):
        weight = np.prod([p if on else 1 - p for p, on in zip(edges.values(), live, strict=True)])
        open_edges = [edge for edge, on in zip(edges, live, strict=True) if on]
        for start in range(3):
            reached = {start}
            for _ in range(2):
                reached |= {v for u, v in open_edges if u in reached}
            reach[start] += weight * len(reached)
    forward = sp.csr_array((list(edges.values()), tuple(zip(*edges, strict=True))), shape=(3, 3))
    roots = np.random.default_rng(0).integers(3, size=60_000)
    sets, members = reversed_cascades(forward.T.tocsr(), roots, np.random.default_rng(1), 10)
    assert len(set(zip(sets.tolist(), members.tolist(), strict=True))) == len(sets)
    np.testing.assert_allclose(3 * np.bincount(members, minlength=3) / 60_000, reach, atol=0.03)


def test_cascade_gains_are_what_no_chosen_sample_reaches(graph):
    influence = CascadeInfluence(graph.transitions(), np.random.default_rng(0), cascades=500)
    again = CascadeInfluence(graph.transitions(), np.random.default_rng(0), cascades=500)
    sets = [set(influence._of(u).tolist()) for u in range(40)]
    covered: set[int] = set()
    for sample in (5, 30, 12):
        expected = [40 / 500 * len(s - covered) for s in sets]
        np.testing.assert_allclose([influence.gain(u) for u in range(40)], expected)
        np.testing.assert_allclose(influence.bounds, expected, atol=1e-9)
        np.testing.assert_allclose(again.bounds, expected, atol=1e-9)
        for one in (influence, again):
            one.add(sample)
        covered |= sets[sample]
