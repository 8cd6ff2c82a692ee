"""Metrics: answers, options, intervals, and each example once on however many devices."""

import math
import subprocess
import sys

import pytest
import torch

from laai.evaluation.metrics import (
    PerExample,
    bootstrap_interval,
    calibrated_choices,
    exact_match,
    forced_choice,
    paired_interval,
    share_interval,
)


@pytest.mark.parametrize(
    ("generated", "expected", "right"),
    [
        ("cold", "cold", True),
        (" cold \nQ: next", "cold", True),
        ("\n\n cold\n", " cold ", True),
        ("two words\r\nmore", "two words", True),
        ("été\n", "été", True),
        ("Cold", "cold", False),
        ("cold.", "cold", False),
        ("colder", "cold", False),
        ("not\ncold", "cold", False),
        ("", "cold", False),
        (" \n", "cold", False),
        ("one\ntwo\nthree", "one\ntwo", True),
        ("one\ntwo", "one\nthree", False),
        ("one", "one\ntwo", False),
        ("a\u2028b", "a\u2028b", True),
    ],
)
def test_exact_match(generated, expected, right):
    assert exact_match(generated, expected) is right


def test_forced_choice_takes_the_likeliest():
    assert forced_choice([3.0, 1.0, 2.0]) == 1
    assert forced_choice([4.0, 3.0], [4, 2]) == 0  # 1.0 against 1.5 nats a token
    assert forced_choice([4.0, 3.0], [1, 1]) == 1
    assert forced_choice([2.0, 2.0]) == 0
    with pytest.raises(ValueError, match="shorter"):
        forced_choice([1.0, 2.0], [1])
    assert forced_choice([math.nan, 1.0]) == forced_choice([0.5, math.nan]) == -1, "no option of a model that overflows"


def test_interval_of_proportions_is_near_the_binomial_one():
    for rate, n in ((0.5, 400), (0.2, 400), (0.9, 1000)):
        values = (torch.arange(n) < rate * n).float()
        found, half = bootstrap_interval(values), 1.96 * math.sqrt(rate * (1 - rate) / n)
        assert found.mean == pytest.approx(rate)
        assert found.n == n
        assert found.low == pytest.approx(rate - half, abs=0.15 * half)
        assert found.high == pytest.approx(rate + half, abs=0.15 * half)


def test_interval_covers_the_truth_in_about_95_of_100_samples():
    generator = torch.Generator().manual_seed(0)
    samples = (torch.rand(300, 80, generator=generator) < 0.3).float()
    intervals = [bootstrap_interval(sample, resamples=500) for sample in samples]
    covered = sum(i.low <= 0.3 <= i.high for i in intervals) / len(intervals)
    assert 0.90 <= covered <= 0.98


def test_interval_of_a_share():
    """Agresti and Coull (1998) and others give 0 to 0.161 for none of 20 by Wilson's."""
    for right, n, low, high in ((0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0), (5, 10, 0.2366, 0.7634)):
        found = share_interval((torch.arange(n) < right).float())
        assert found == (right / n, pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4), n)
    assert math.isnan(share_interval(torch.zeros(0)).low)
    generator = torch.Generator().manual_seed(0)
    intervals = [share_interval((torch.rand(20, generator=generator) < 0.05).float()) for _ in range(1000)]
    assert sum(i.low <= 0.05 <= i.high for i in intervals) > 900


def test_interval_of_a_difference_of_shares():
    """The worked example of Altman and others, Statistics with Confidence (2000), table 6.2: 0.122 (0.011 to 0.226)."""
    ours, theirs = torch.tensor([[1.0, 1.0]] * 14 + [[1.0, 0.0]] * 5 + [[0.0, 0.0]] * 22).T
    assert [round(value, 3) for value in paired_interval(ours, theirs)] == [0.122, 0.011, 0.226, 41]
    none = paired_interval(torch.zeros(20), torch.zeros(20))
    assert none == (0.0, pytest.approx(-0.1611, abs=1e-4), pytest.approx(0.1611, abs=1e-4), 20)
    assert math.isnan(paired_interval(torch.zeros(0), torch.zeros(0)).low)
    generator, inside = torch.Generator().manual_seed(0), 0
    for _ in range(1000):
        hard = torch.rand(30, generator=generator)
        ours, theirs = ((hard + 0.3 * torch.rand(30, generator=generator) < x).float() for x in (0.6, 0.4))
        found = paired_interval(ours, theirs)
        inside += found.low <= 0.2 <= found.high
    assert inside > 920


def test_interval_is_repeatable_and_leaves_the_global_generator_alone():
    values, state = torch.rand(20), torch.get_rng_state()
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values)
    assert torch.equal(torch.get_rng_state(), state)


def test_interval_of_little():
    assert bootstrap_interval(torch.ones(1)) == (1.0, 1.0, 1.0, 1)
    empty = bootstrap_interval(torch.zeros(0))
    assert empty.n == 0
    assert all(math.isnan(x) for x in empty[:3])


def test_repeats_count_once_and_rows_come_in_order():
    metric = PerExample()
    metric.update(torch.tensor([3.0, 1.0, 1.0]), torch.tensor([30, 10, 10]))
    metric.update(torch.tensor([2.0, 3.0]), torch.tensor([20, 30]))
    assert metric.compute().tolist() == [1.0, 2.0, 3.0]
    metric.reset()
    metric.update(torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert metric.compute().shape == (0,)
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert PerExample().compute().shape == (0,)


def test_shapes_must_agree():
    for values, rows in ((torch.ones(2), torch.tensor([1])), (torch.ones(1, 2), torch.ones(1, 2))):
        with pytest.raises(ValueError, match="one shape"):
            PerExample().update(values, rows)


WORKER = """
import sys
import torch
from laai.evaluation.metrics import PerExample

rank, rows = int(sys.argv[1]), torch.arange(7)
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
for mine in (rows[rank::2], rows[:5] if rank else rows[4:], rows if rank else rows[:0]):
    metric = PerExample()
    if len(mine):
        for part in mine.split(2):
            metric.update((part * part).float(), part)
    print(metric.compute().tolist())
torch.distributed.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path):
    """Rows dealt evenly, with repeats, and all to one device."""
    one = PerExample()
    one.update((torch.arange(7) ** 2).float(), torch.arange(7))
    expected = str(one.compute().tolist())
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER, str(rank), str(tmp_path / "meet")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=120)[0].splitlines() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert outputs == [[expected] * 3] * 2


def test_calibrated_choices_take_the_average_query_off():
    """By hand, from each option's probability over its mean; what is never likely is not blown up."""
    nlls = torch.rand(12, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0, 2.0])
    likely = (-nlls).softmax(-1)
    expected = (likely / likely.mean(0)).argmax(-1)
    assert calibrated_choices(nlls).tolist() == expected.tolist() != likely.argmax(-1).tolist()
    never = torch.tensor([[0.1, 40.0], [0.1, 41.0]])
    assert calibrated_choices(never).tolist() == [0, 0]
    overflown = torch.cat([nlls, torch.full((1, 3), float("nan"))])
    assert calibrated_choices(overflown)[:12].tolist() == expected.tolist()
