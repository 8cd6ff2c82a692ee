"""Intervals for comparisons: over tasks, over pairs of tasks that share sources and targets, of ratios and of ranks.

Shares of one method's queries have theirs in `laai.evaluation`. NaN stands for an interval that there is no data for.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from laai.evaluation import Interval

RESAMPLES = 2000
NOTHING = Interval(float("nan"), float("nan"), float("nan"), 0)

Cell = tuple[str, int]
"""A task, or a pair of tasks, and a seed."""
Pairs = Sequence[tuple[str, str]]
"""Source and target of each value."""
Block = tuple[Hashable, int]
"""Queries of a target and seed, by which cells that share them know each other, and their number."""


def over_tasks(a: Mapping[Cell, float], b: Mapping[Cell, float]) -> Interval:
    """Mean of a − b over the tasks that both have, its 95% interval (Student's t), and the number of cells.

    Over the tasks' means, each over its seeds: seeds of one task are not independent tasks. Of eight tasks the
    percentile bootstrap would cover 88%, not 95%. No interval of one task.
    """
    from scipy import stats

    by_task: dict[str, list[float]] = {}
    for key in sorted(a.keys() & b.keys()):
        by_task.setdefault(key[0], []).append(a[key] - b[key])
    if not by_task:
        return NOTHING
    means = np.array([np.mean(values) for values in by_task.values()])
    middle, count = float(means.mean()), sum(map(len, by_task.values()))
    if len(means) < 2:
        return NOTHING._replace(mean=middle, n=count)
    half = float(stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / len(means) ** 0.5)
    return Interval(middle, middle - half, middle + half, count)


def ratio_interval(pairs: Sequence[tuple[float, float]], resamples: int = 10_000) -> tuple[float, float]:
    """95% bootstrap interval of the ratio of two means, over tasks, of which each gives a pair of values."""
    table = torch.tensor(pairs)
    draws = torch.randint(len(pairs), (resamples, len(pairs)), generator=torch.Generator().manual_seed(0))
    means = table[draws].mean(dim=1)
    low, high = (means[:, 0] / means[:, 1]).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def crossed_weights(pairs: Pairs, rng: np.random.Generator, resamples: int = RESAMPLES) -> NDArray[np.int64]:
    """How often each pair counts in each resample: (resamples, pairs); all may be 0 in a sparse table.

    Owen, The pigeonhole bootstrap (Annals of Applied Statistics 1(2), 2007): rows and columns of a table are drawn
    independently, and a cell counts as often as its row was drawn times as often as its column was. Pairs taken as
    independent of each other would give intervals that are too narrow; these are rather too wide.
    """
    weights = np.ones((resamples, len(pairs)), dtype=np.int64)
    for names in zip(*pairs, strict=True):
        known, place = np.unique(names, return_inverse=True)
        drawn = rng.multinomial(len(known), np.full(len(known), 1 / len(known)), size=resamples)
        weights *= drawn[:, place]
    return weights


def crossed_interval(
    values: Sequence[NDArray[np.float64]], pairs: Pairs, blocks: Sequence[Sequence[Block]]
) -> Interval:
    """Mean over pairs of the means over their queries; sources, targets and queries are resampled.

    Args:
        values: of each pair, one for each of its queries.
        pairs: source and target of each.
        blocks: the queries of each, whose numbers add up to its values: blocks of one name are drawn together.
    """
    if not values:
        return NOTHING
    rng = np.random.default_rng(0)
    drawn: dict[Hashable, NDArray[np.int64]] = {}
    means = np.stack([_resampled(own, some, drawn, rng) for own, some in zip(values, blocks, strict=True)], 1)
    weights = crossed_weights(pairs, rng)
    some = weights.sum(axis=1) > 0
    totals = (weights * means).sum(axis=1)[some] / weights.sum(axis=1)[some]
    low, high = np.quantile(totals, [0.025, 0.975])
    return Interval(float(np.mean([own.mean() for own in values])), float(low), float(high), len(set(pairs)))


def _resampled(
    values: NDArray[np.float64], blocks: Sequence[Block], drawn: dict[Hashable, NDArray[np.int64]],
    rng: np.random.Generator,
) -> NDArray[np.float64]:  # fmt: skip
    """Means of resamples of a pair's queries, (RESAMPLES,), each block's drawn anew among themselves."""
    total, start = np.zeros(RESAMPLES), 0
    for key, count in blocks:
        if key not in drawn:
            drawn[key] = rng.integers(count, size=(RESAMPLES, count))
        total += values[start : start + count][drawn[key]].sum(axis=1)
        start += count
    return total / len(values)


def rank_correlation(x: Sequence[float], y: Sequence[float], pairs: Pairs) -> Interval:
    """Spearman's rank correlation over pairs, its 95% bootstrap interval over sources and targets."""
    value = float(spearman(x, y, np.ones((1, len(x)), dtype=np.int64))[0])
    if np.isnan(value):
        return NOTHING._replace(n=len(x))
    low, high = np.nanquantile(spearman(x, y, crossed_weights(pairs, np.random.default_rng(0))), [0.025, 0.975])
    return Interval(value, float(low), float(high), len(x))


def spearman(x: Sequence[float], y: Sequence[float], times: NDArray[np.int64]) -> NDArray[np.float64]:
    """Spearman's rank correlation of data in which each point stands so many times, for each row of `times`.

    NaN where all that is left of x or of y is alike: there is no order to speak of.
    """
    total = times.sum(axis=1, keepdims=True).clip(1)
    centred = []
    for values in (x, y):
        known, place = np.unique(values, return_inverse=True)
        counts = times @ np.eye(len(known), dtype=np.int64)[place]  # of each value, in their order
        ranks = (counts.cumsum(axis=1) - (counts - 1) / 2)[:, place]  # equal values share their mean rank
        centred.append(ranks - (times * ranks).sum(axis=1, keepdims=True) / total)
    a, b = centred
    product = (times * a * a).sum(axis=1) * (times * b * b).sum(axis=1)
    found: NDArray[np.float64] = (times * a * b).sum(axis=1) / np.sqrt(np.where(product > 1e-12, product, np.nan))
    return found
