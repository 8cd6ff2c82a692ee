"""Intervals on values whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from laai.compare import crossed_interval, crossed_weights, over_tasks, rank_correlation, ratio_interval, spearman


def test_differences_are_paired_by_task():
    a = {("x", 0): 0.6, ("x", 1): 0.8, ("y", 0): 0.5}
    b = {("x", 0): 0.5, ("x", 1): 0.5, ("y", 0): 0.6, ("z", 0): 0.9}
    mean, low, high, n = over_tasks(a, b)
    assert mean == pytest.approx(np.mean([0.2, -0.1]))
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 1, loc=0.05, scale=stats.sem([0.2, -0.1])))
    assert n == 3
    one = over_tasks({("x", 0): 0.6}, b)
    assert one.mean == pytest.approx(0.1)
    assert np.isnan(one[1:3]).all(), "one task"
    assert over_tasks(a, {}).n == 0


def test_a_ratio_and_its_interval():
    assert ratio_interval([(0.5, 1.0)] * 3) == pytest.approx((0.5, 0.5))
    low, high = ratio_interval([(1.0, 1.0), (2.0, 1.0), (3.0, 1.0)])
    assert 1.0 <= low < 2.0 < high <= 3.0


def test_pairs_that_share_a_source_or_target_are_drawn_together():
    pairs = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("b", "z")]
    weights = crossed_weights(pairs, np.random.default_rng(0), 4000)
    assert (weights[:, 0] * weights[:, 3] == weights[:, 1] * weights[:, 2]).all(), "products of a row and a column"
    assert weights.mean(axis=0) == pytest.approx([1.0] * 5, abs=0.06)
    assert (crossed_weights([("a", "x")], np.random.default_rng(0), 5) == 1).all()


def test_queries_of_one_name_are_drawn_together():
    """Two pairs whose differences on shared queries are opposite cancel in every resample; of other queries not."""
    values = [np.array([1.0, 0.0, 0.0]), np.array([-1.0, 0.0, 0.0])]
    pairs = [("a", "x"), ("a", "x")]
    shared = crossed_interval(values, pairs, [[("x", 3)], [("x", 3)]])
    apart = crossed_interval(values, pairs, [[("x", 3)], [("y", 3)]])
    assert tuple(shared) == (0.0, 0.0, 0.0, 1)
    assert apart.low < 0 < apart.high
    assert crossed_interval([], [], []).n == 0


def test_correlation_by_rank():
    pairs = [("s", str(i)) for i in range(6)]
    value, low, high, n = rank_correlation([1, 2, 3, 4, 5, 6], [1, 10, 100, 50, 1000, 2000], pairs)
    assert (value, n) == (pytest.approx(0.942857, abs=1e-5), 6)
    assert low < value <= high <= 1.0
    assert np.isnan(rank_correlation([1, 1], [1, 2], pairs[:2]).mean), "all alike: there is no order"


def test_correlation_of_points_that_stand_several_times():
    rng = np.random.default_rng(0)
    x, y, times = rng.integers(5, size=12), rng.normal(size=12), rng.integers(3, size=(20, 12))
    times[0], times[1], times[2] = 0, np.eye(12)[0], x == 1
    found = spearman(x, y, times)
    assert np.isnan(found[:3]).all(), "nothing, one point, points of one value"
    expected = [stats.spearmanr(np.repeat(x, n), np.repeat(y, n)).statistic for n in times[3:]]
    assert found[3:] == pytest.approx(expected, abs=1e-12)
