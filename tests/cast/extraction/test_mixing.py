"""Random directions with a vector's own norms: the control of a transfer."""

from __future__ import annotations

import pytest
import torch

from cast.extraction.mixing import of_equal_norm, own_seed
from laai.steering.intervention import Intervention


def test_the_control_has_the_same_norms(tiny):
    vector = 0.5 * Intervention.random(tiny, "heads", [0, 2], norm=3.0, seed=1)
    control = of_equal_norm(tiny, vector, seed=7)
    assert control.scale == 0.5
    for key, v in vector.items():
        assert control[key].norm().item() == pytest.approx(3.0, rel=1e-5)
        assert torch.cosine_similarity(control[key], v, dim=0).abs() < 0.9


def test_controls_of_several_transfers_are_independent_draws(tiny):
    vector = Intervention.random(tiny, "heads", [0, 2], norm=3.0, seed=1)
    seeds = {own_seed(seed, source, "t") for seed in (0, 1) for source in ("a", "b")}
    assert len(seeds) == 4
    assert own_seed(0, "a", "t") in seeds, "the same in every run"
    one, other = (of_equal_norm(tiny, vector, seed) for seed in sorted(seeds)[:2])
    for key, v in one.items():
        assert torch.cosine_similarity(v, other[key], dim=0).abs() < 0.9
