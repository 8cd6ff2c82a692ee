"""The graph of neighbours against all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from cast.selection import neighbours
from cast.selection.neighbours import nearest_neighbours, unit_rows
from laai.errors import UserError


def clustered(count, width=16, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(count // 50, 2), width))
    return unit_rows(centres[rng.integers(len(centres), size=count)] + 0.5 * rng.normal(size=(count, width)))


def all_pairs(rows, k):
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1)[:, :k]
    return order, np.take_along_axis(cosines, order, axis=1)


@pytest.mark.parametrize(("count", "k"), [(2, 1), (5, 10), (300, 7)])
def test_exact(count, k):
    rows = clustered(count)
    graph = nearest_neighbours(rows, k)
    indices, cosines = all_pairs(rows, min(k, count - 1))
    np.testing.assert_array_equal(graph.indices, indices)
    np.testing.assert_allclose(graph.similarity, cosines, atol=1e-5)


def test_inverted_file_finds_nearly_all_in_any_run_the_same(monkeypatch):
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 100)
    rows = clustered(4000)
    graph, again = (nearest_neighbours(rows, 10, seed=3) for _ in range(2))
    np.testing.assert_array_equal(graph.indices, again.indices)
    indices, _ = all_pairs(rows, 10)
    found = [len(set(a) & set(b)) / 10 for a, b in zip(graph.indices, indices, strict=True)]
    assert np.mean(found) > 0.9
    assert (graph.indices >= 0).all()
    assert (graph.indices != np.arange(4000)[:, None]).all()


def test_equal_samples_do_not_become_their_own_neighbours():
    rows = unit_rows(np.ones((6, 4)))
    graph = nearest_neighbours(rows, 3)
    assert graph.indices.shape == (6, 3)
    assert (graph.indices != np.arange(6)[:, None]).all()
    np.testing.assert_allclose(graph.similarity, 1.0, atol=1e-6)


def test_transitions_share_out_one():
    graph = nearest_neighbours(clustered(80), 6)
    matrix = graph.transitions().toarray()
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-5)
    expected = graph.similarity.clip(min=0)
    row = expected[5] / expected[5].sum()
    np.testing.assert_allclose(matrix[5, graph.indices[5]], row, atol=1e-6)
    opposite = nearest_neighbours(unit_rows(np.array([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.001]])), 2)
    np.testing.assert_allclose(opposite.transitions().toarray()[0], [0, 0.5, 0.5], atol=1e-6)


@pytest.mark.parametrize("bad", [np.ones(3), np.ones((0, 4)), np.array([[1.0, 2.0], [np.nan, 1.0]])])
def test_bad_embeddings(bad):
    with pytest.raises(UserError, match=r"shape|sample 1"):
        unit_rows(bad)
