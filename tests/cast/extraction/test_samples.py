"""Random samples and their demonstrations."""

from __future__ import annotations

import pytest

from cast.extraction.samples import draw
from laai.errors import UserError
from laai.tasks.examples import Example

POOL = [Example(str(i), "x") for i in range(12)]


@pytest.mark.parametrize(("samples", "shots"), [(1, 1), (5, 3), (12, 11), (50, 4)])
def test_no_sample_is_shown_to_itself(samples, shots):
    for seed in range(20):
        chosen, shown = draw(POOL, samples, shots, seed)
        assert len(chosen) == len({e.input for e in chosen}) == min(samples, len(POOL))
        for sample, demonstrations in zip(chosen, shown, strict=True):
            assert len({d.input for d in demonstrations}) == shots
            assert sample not in demonstrations


def test_every_other_example_is_shown_as_often():
    counts = dict.fromkeys((e.input for e in POOL), 0)
    rounds = 600
    for seed in range(rounds):
        (sample,), (shown,) = draw(POOL, 1, 3, seed)
        for d in shown:
            counts[d.input] += 1
        assert sample not in shown
    expected = rounds * 3 / len(POOL)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


@pytest.mark.parametrize(("samples", "shots"), [(1, 1), (5, 3), (12, 11), (50, 4)])
def test_shared_demonstrations_are_no_samples(samples, shots):
    for seed in range(20):
        chosen, shown = draw(POOL, samples, shots, seed, shared=True)
        assert len(chosen) == len(shown) == min(samples, len(POOL) - shots)
        assert all(demonstrations == shown[0] for demonstrations in shown)
        assert len({e.input for e in [*chosen, *shown[0]]}) == len(chosen) + shots


def test_seeds():
    assert draw(POOL, 5, 3, 7) == draw(POOL, 5, 3, 7)
    assert draw(POOL, 5, 3, 7) != draw(POOL, 5, 3, 8)


@pytest.mark.parametrize(("samples", "shots"), [(0, 1), (1, 0), (-1, 2), (1, 12), (3, 40)])
def test_sizes_that_cannot_be_drawn(samples, shots):
    with pytest.raises(UserError):
        draw(POOL, samples, shots, 0)
