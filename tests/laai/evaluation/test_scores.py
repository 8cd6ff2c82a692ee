"""From measured examples to a row of the table."""

from __future__ import annotations

import json
import math
import warnings

import pytest

from laai.evaluation.measuring import Measured
from laai.evaluation.scores import TaskMetrics


def example(row, exact=False, nll=1.0, choice=None, mean=None, tokens=10, seconds=0.5):
    return Measured(row, "x", exact, nll, choice, mean, (), tokens, seconds)


def test_means_over_examples():
    metrics = TaskMetrics()
    metrics.update([example(0, True, 2.0, True, False, 4, 0.1), example(1, False, 1.0, True, True, 8, 0.3)])
    metrics.update([example(2, False, 0.0, False, False, 6, 0.2)])
    scores = metrics.compute("name")
    assert (scores.method, scores.n) == ("name", 3)
    assert scores.exact_match == pytest.approx(1 / 3)
    assert scores.exact_match_low <= scores.exact_match <= scores.exact_match_high
    assert scores.nll == pytest.approx(1.0)
    assert scores.choice_accuracy == pytest.approx(2 / 3)
    assert scores.choice_accuracy_mean == pytest.approx(1 / 3)
    assert scores.prompt_tokens == pytest.approx(6)
    assert scores.ms_per_query == pytest.approx(200)


def test_repeated_rows_count_once():
    metrics = TaskMetrics()
    metrics.update([example(0, True, choice=True), example(1, False, choice=False)])
    metrics.update([example(1, False, choice=False)])
    scores = metrics.compute("padded")
    assert (scores.n, scores.exact_match, scores.choice_accuracy) == (2, 0.5, 0.5)


def test_only_examples_with_choices_count_for_the_choice():
    metrics = TaskMetrics()
    metrics.update([example(0, choice=True, mean=False), example(1), example(2, choice=False, mean=False), example(3)])
    scores = metrics.compute("some")
    assert (scores.n, scores.choice_accuracy, scores.choice_accuracy_mean) == (4, 0.5, 0.0)
    assert all(metric.update_called for metric in metrics.children()), "else devices would wait for each other"


def test_no_choices_and_one_example():
    metrics = TaskMetrics()
    metrics.update([example(0, True)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = metrics.compute("one")
    assert (scores.n, scores.exact_match, scores.exact_match_low, scores.exact_match_high) == (
        1,
        1.0,
        pytest.approx(0.2065, abs=1e-4),
        1.0,
    )
    assert scores.choice_accuracy is scores.choice_accuracy_mean is None


def test_reset():
    metrics = TaskMetrics()
    metrics.update([example(0, True)])
    metrics.reset()
    metrics.update([example(1, False), example(2, False)])
    scores = metrics.compute("again")
    assert (scores.n, scores.exact_match) == (2, 0.0)


def test_json_has_no_infinity():
    metrics = TaskMetrics()
    metrics.update([example(0, nll=math.inf)])
    row = metrics.compute("infinite").as_json()
    assert row["nll"] is None
    json.dumps(row, allow_nan=False)
