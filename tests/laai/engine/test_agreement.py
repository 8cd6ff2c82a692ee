"""The comparison with the whole forward: what disturbs vectors for it, and the precision it judges by."""

from __future__ import annotations

import torch

from laai.engine.agreement import computing_dtype, disturbed
from laai.steering.intervention import Intervention
from tests.tiny_models import build, language_model, random_vectors


def test_disturbed_restores_bitwise():
    intervention = Intervention(random_vectors("llama", [("heads", 0), ("residual", 2)]))
    before = [v.detach().clone() for v in intervention.parameters()]
    with disturbed(intervention, 0.1):
        assert not any(torch.equal(a, b) for a, b in zip(before, intervention.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, intervention.parameters(), strict=True))


def test_precision_is_that_of_the_computation():
    model = language_model(build("llama"))
    assert computing_dtype(model) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert computing_dtype(model) == torch.bfloat16
    assert computing_dtype(language_model(model.llm.half())) == torch.float16
