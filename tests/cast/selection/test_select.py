"""Selection strategies against their definitions, without laziness."""

from __future__ import annotations

import numpy as np
import pytest

from cast.selection import strategies
from cast.selection.influence import FacilityInfluence, WalkInfluence
from cast.selection.neighbours import nearest_neighbours, unit_rows
from cast.selection.strategies import lazy_greedy, select
from laai.errors import UserError
from laai.vocabulary import STRATEGIES


@pytest.fixture(scope="module")
def embeddings():
    rng = np.random.default_rng(2)
    return rng.normal(size=(5, 8))[rng.integers(5, size=120)] + 0.4 * rng.normal(size=(120, 8))


@pytest.fixture(scope="module")
def rows(embeddings):
    return unit_rows(embeddings)


def eager(influence, count, samples, rows=None):
    chosen = []
    for _ in range(samples):
        apart = np.ones(count)
        if rows is not None and chosen:
            apart = 1 - (rows @ rows[chosen].T).clip(min=0).max(axis=1)
        scores = [-np.inf if u in chosen else influence.gain(u) * apart[u] for u in range(count)]
        chosen.append(int(np.argmax(scores)))
        influence.add(chosen[-1])
    return chosen


@pytest.mark.parametrize("make", [WalkInfluence, FacilityInfluence])
@pytest.mark.parametrize("diverse", [False, True])
def test_lazy_is_eager(rows, make, diverse):
    graph = nearest_neighbours(rows, 8)
    apart = rows if diverse else None
    asked = []

    class Counted(make):
        def gain(self, sample):
            asked.append(sample)
            return super().gain(sample)

    assert lazy_greedy(Counted(graph), 15, apart) == eager(make(graph), 120, 15, apart)
    assert len(asked) < 15 * 120 / 4, "most gains need no look"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_chosen_once_each_and_the_same_again(embeddings, strategy):
    chosen = select(strategy, 120, 12, lambda: embeddings, seed=4)
    assert len(chosen) == len(set(chosen)) == 12
    assert all(0 <= i < 120 for i in chosen)
    assert chosen == select(strategy, 120, 12, lambda: embeddings, seed=4)
    assert chosen[:5] == select(strategy, 120, 5, lambda: embeddings, seed=4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sizes(strategy):
    def unused():
        raise AssertionError("no need to embed")

    assert select(strategy, 4, 9, unused) == [0, 1, 2, 3]
    assert len(select(strategy, 3, 2, lambda: np.eye(3))) == 2
    with pytest.raises(UserError, match="at least 1"):
        select(strategy, 4, 0, unused)


def test_bad_names_and_embeddings():
    with pytest.raises(UserError, match="strategy must be one of random, cast"):
        select("best", 4, 2, lambda: np.eye(4))
    with pytest.raises(UserError, match="embeddings of 4 samples, found 3"):
        select("cast", 4, 2, lambda: np.eye(3))


def test_random_needs_no_embeddings_and_depends_on_the_seed():
    def unused():
        raise AssertionError("embedded")

    assert select("random", 50, 5, unused, seed=1) != select("random", 50, 5, unused, seed=2)


def test_vote_k_by_hand(rows):
    graph = nearest_neighbours(rows, 10)
    voters, nearness, chosen = graph.indices, np.zeros(120), []
    np.add.at(nearness, voters, graph.similarity)
    for _ in range(6):
        scores = np.zeros(120)
        for v in range(120):
            if v not in chosen:
                scores[voters[v]] += 10.0 ** -len(set(voters[v]) & set(chosen))
        scores[chosen] = -np.inf
        chosen.append(max(range(120), key=lambda u: (scores[u].round(6), nearness[u])))
    assert strategies.vote_k(rows, 6, neighbours=10) == chosen


def test_vote_k_looks_at_the_samples_of_a_small_pool():
    points = np.random.default_rng(0).normal(size=(50, 8))
    chosen = select("vote_k", 50, 5, lambda: points)
    again = select("vote_k", 50, 5, lambda: points[::-1])
    assert sorted(chosen) == sorted(49 - i for i in again), "whatever the order of the file"
    assert chosen != [0, 1, 2, 3, 4]


def test_k_center_by_hand(rows):
    chosen = strategies.k_center(rows, 6)
    assert chosen[0] == np.argmax(rows @ rows.mean(axis=0))
    for count in range(1, 6):
        nearest = (rows @ rows[chosen[:count]].T).max(axis=1)
        assert nearest[chosen[count]] == pytest.approx(nearest.min())


@pytest.mark.parametrize("strategy", ["cast", "k_center"])
def test_diverse_strategies_visit_every_cluster(strategy):
    """Four tight clusters, one of them ten times as large: a random draw would see little but that one."""
    rng = np.random.default_rng(0)
    sizes = (200, 20, 20, 20)
    labels = np.repeat(range(4), sizes)
    points = 5 * np.eye(4, 12)[labels] + 0.3 * rng.normal(size=(260, 12))
    chosen = select(strategy, 260, 4, lambda: points)
    assert sorted(labels[chosen]) == [0, 1, 2, 3]


@pytest.mark.parametrize("diffusion", ["walk", "cascade"])
def test_cast_prefers_the_middle_of_things(diffusion):
    """Outliers influence nobody."""
    rng = np.random.default_rng(0)
    crowd = np.array([1.0, 0, 0, 0, 0, 0]) + 0.2 * rng.normal(size=(100, 6))
    outliers = rng.normal(size=(5, 6)) * [0, 1, 1, 1, 1, 1]
    points = unit_rows(np.concatenate([crowd, outliers]))
    assert strategies.cast(points, 1, diffusion=diffusion)[0] < 100
