"""Scales by layer: a part that hurts goes, one that helps gets stronger, and nothing happens without a gain."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

import cast.transfers.search as module
from cast.transfers.choice import Placement, choose, grid
from cast.transfers.search import choose_placement, scale_by_layer
from laai.engine import Engine, answer_nll
from laai.engine.sweep import SweepScores
from laai.prompts.batches import collate
from laai.prompts.templates import Template
from laai.steering.intervention import Intervention
from laai.tasks.examples import Example, Task

EXAMPLES = tuple(Example(f"word {i}", ("red", "blue")[i % 2], choices=("red", "blue"), label=i % 2) for i in range(6))
FREE = tuple(dataclasses.replace(e, choices=None, label=None) for e in EXAMPLES)
SCALES = (0.0, 1.0, 2.0)


def probabilities(model, template, vector):
    """Of the whole answers, by plain forwards of the steered model."""
    found = []
    for e in template.task.examples:
        prompt = template.encode(e.input, answer=e.output)
        batch = collate([prompt], model.pad).to(model.device)
        with vector.on(model), torch.no_grad():
            found.append(float((-answer_nll(model, batch).sum()).exp()))
    return torch.tensor(found)


@pytest.fixture
def template(tiny):
    return Template(tiny.tokenizer, Task("colours", FREE))


@pytest.fixture
def with_options(tiny):
    return Template(tiny.tokenizer, Task("colours", EXAMPLES))


@pytest.fixture
def vector(tiny):
    return 0.5 * Intervention.random(tiny, "heads", range(3), norm=2.0, seed=3)


def here(layers, scale, **more):
    return dataclasses.replace(Placement(layers, scale, False, 0.0, 0.0, 0.0, None, 6), **more)


def test_each_part_gets_the_scale_that_makes_answers_likeliest(tiny, template, vector):
    """By hand: the last layer first, each with the others as they are by then; layer 1 was left out by the choice."""
    at = {0: 1.0, 1: 0.0, 2: 1.0}
    found = scale_by_layer(tiny, vector, template, FREE, here((0, 2), 1.0), parts=3, scales=SCALES)
    for layer in (2, 1, 0):
        tries = {s: at | {layer: s} for s in SCALES}
        vectors = {s: vector.with_vectors({k: by[k[1]] * v for k, v in vector.items()}) for s, by in tries.items()}
        tried = {s: probabilities(tiny, template, one).mean() for s, one in vectors.items()}
        best = max(tried, key=tried.__getitem__)
        at[layer] = best if tried[best] > tried[at[layer]] else at[layer]
    assert dict(zip(found.layers, found.scales, strict=True)) == {layer: s for layer, s in at.items() if s}
    assert set(at.values()) != {0.0, 1.0}
    assert found.scale == max(found.scales)
    gains = probabilities(tiny, template, found.of(vector)) - probabilities(tiny, template, 0.0 * vector)
    assert found.gain == pytest.approx(float(gains.mean()), abs=1e-5)
    assert found.gain_low <= found.gain <= found.gain_high
    assert (found.examples, found.choice_gain) == (6, None)


def test_a_choice_with_factors_applies_them(vector):
    part = here((0, 2), 2.0, factors=(0.25, 1.0)).of(vector)
    assert (part.layers, part.scale) == ([0, 2], 1.0)
    for layer, strength in ((0, 0.25), (2, 1.0)):
        torch.testing.assert_close(part["heads", layer], strength * vector["heads", layer])
    assert here((0, 2), 2.0, factors=(0.25, 1.0)).scales == (0.5, 2.0)
    assert here((0, 2), 2.0).scales == (2.0, 2.0)


def test_it_goes_on_from_no_vector(tiny, template, vector):
    found = scale_by_layer(tiny, vector, template, FREE, here((0, 1, 2), 0.0), parts=3)
    assert found.scale > 0
    assert found.gain > 0


def test_nothing_changes_without_a_gain(tiny, template, vector, monkeypatch):
    monkeypatch.setattr(Engine, "sweep", lambda self, tries, scales, prompts: SweepScores.of(len(tries), 1, 6))
    given = here((0, 2), 1.0, gain=0.25, helps=True)
    assert scale_by_layer(tiny, vector, template, FREE, given) is given


def test_what_costs_right_options_is_passed_over(tiny, with_options, vector, monkeypatch):
    shares = itertools.chain([0.9], itertools.repeat(0.1))
    monkeypatch.setattr(module, "right_options", lambda *_, **__: lambda *_: torch.full((6,), next(shares)))
    given = here((0, 1, 2), 1.0)
    assert scale_by_layer(tiny, vector, with_options, EXAMPLES, given, parts=3) is given
    monkeypatch.setattr(module, "right_options", lambda *_, **__: lambda *_: torch.full((6,), 0.5))
    found = scale_by_layer(tiny, vector, with_options, EXAMPLES, given, parts=3)
    assert (found.scales != given.scales, found.choice_gain) == (True, 0.0)
    found = scale_by_layer(tiny, vector, with_options, EXAMPLES, dataclasses.replace(given, choice_gain=0.25), parts=3)
    assert found.choice_gain == 0.25, "against no vector"


def test_one_residual_layer_stays_as_it_is(tiny, template):
    residual, given = Intervention.random(tiny, "residual", range(3)), here((1,), 1.0)
    assert scale_by_layer(tiny, residual, template, FREE, given) is given


def test_the_search_from_start_to_end(tiny, with_options, vector):
    options = {"scales": (0.5, 1.0), "progress": False}
    plain = choose_placement(tiny, vector, with_options, EXAMPLES, calibrate=False, **options)
    found = choose_placement(tiny, vector, with_options, EXAMPLES, calibrate=False, by_layer=True, **options)
    assert dataclasses.replace(plain, site=None) == choose(
        grid(tiny, vector, with_options, EXAMPLES, **options),
        module.right_options(tiny, vector, with_options, EXAMPLES),
    )
    scaled = scale_by_layer(tiny, vector, with_options, EXAMPLES, plain, calibrate=False)
    assert found == dataclasses.replace(scaled, site="heads")
    assert found.gain > plain.gain
    before = probabilities(tiny, with_options, 0.0 * vector)
    after = probabilities(tiny, with_options, found.of(vector))
    assert found.gain == pytest.approx(float((after - before).mean()), abs=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_right_options_count_against_what_the_choice_made_of_them(tiny, with_options, vector, monkeypatch, scale):
    asked = []

    def options(model, steering, *_, **__):
        return lambda layers, strength: asked.append(strength * steering) or torch.full((6,), 0.5)

    monkeypatch.setattr(module, "right_options", options)
    scale_by_layer(tiny, vector, with_options, EXAMPLES, here((0, 2), scale), parts=3)
    before = asked[0]
    assert before.scale == scale * 0.5
    for layer in (0, 1, 2):
        expected = (scale if layer != 1 else 0.0) * vector["heads", layer]
        torch.testing.assert_close(before.scale * before["heads", layer], 0.5 * expected)
