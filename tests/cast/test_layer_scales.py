"""Scales by layer: a part that hurts goes, one that helps gets stronger, and nothing happens without a gain."""

from __future__ import annotations

import pytest
import torch

from cast.layer_scales import MULTIPLES, scale_by_layer
from laai.batches import to_device
from laai.forward import answer_nll
from laai.intervention import Intervention
from laai.prompts import Template, collate, pad_token
from laai.tasks import Example, Task

EXAMPLES = tuple(Example(f"word {i}", ("red", "blue")[i % 2], choices=("red", "blue"), label=i % 2) for i in range(6))
TASK = Task("colours", EXAMPLES)


def probability(model, template, vector):
    """Mean probability of the whole answers, by plain forwards of the steered model."""
    found = []
    for e in EXAMPLES:
        prompt = template.encode(e.input, answer=e.output)
        batch = to_device(collate([prompt], pad_token(model.tokenizer)), model.llm)
        with vector.on(model), torch.no_grad():
            found.append(float((-answer_nll(model.llm, batch).sum()).exp()))
    return sum(found) / len(found)


@pytest.fixture
def template(tiny):
    return Template(tiny.tokenizer, TASK)


@pytest.fixture
def vector(tiny):
    return 0.5 * Intervention.random(tiny, "heads", range(3), norm=2.0, seed=3)


def test_answers_get_no_less_likely_and_factors_are_told(tiny, template, vector):
    before = {key: v.detach().clone() for key, v in vector.items()}
    made = scale_by_layer(tiny, vector, template, EXAMPLES, parts=3)
    factors = made.metadata["layer_scales"]
    assert set(factors.values()) <= {1.0, *MULTIPLES}
    assert set(factors.values()) != {1.0}
    for (site, layer), v in made.items():
        assert torch.equal(v, 0.5 * factors[str(layer)] * before[site, layer])
    assert made.scale == 1.0
    assert probability(tiny, template, made) > probability(tiny, template, vector)
    assert all(torch.equal(v, before[key]) for key, v in vector.items()), "the given vector is left alone"
    assert "layer_scales" not in vector.metadata


def test_the_best_factor_of_a_part_is_taken(tiny, template, vector):
    alone = vector.select(layers=[1])
    tried = {f: probability(tiny, template, f * alone) for f in (1.0, *MULTIPLES)}
    made = scale_by_layer(tiny, alone, template, EXAMPLES, parts=1, calibrate=False)
    found = made.metadata["layer_scales"]["1"]
    # One that costs right options may be passed over for the next.
    assert found == 1.0 or tried[found] > tried[1.0]
    free = Template(tiny.tokenizer, Task("free", tuple(Example(e.input, e.output) for e in EXAMPLES)))
    made = scale_by_layer(tiny, alone, free, free.task.examples, parts=1)
    assert made.metadata["layer_scales"]["1"] == max(tried, key=tried.__getitem__)


def test_what_costs_right_options_is_passed_over(tiny, template, vector, monkeypatch):
    import cast.layer_scales as module

    def losing(model, tried, *_, **__):
        return lambda layers, scale: torch.full((6,), 0.9 if scale == 0.0 else 0.1)

    monkeypatch.setattr(module, "right_options", losing)
    made = scale_by_layer(tiny, vector, template, EXAMPLES, parts=3)
    assert set(made.metadata["layer_scales"].values()) == {1.0}
