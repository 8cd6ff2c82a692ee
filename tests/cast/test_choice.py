"""Layers and scale against losses by hand, and the rule that says when nothing helps."""

from __future__ import annotations

import pytest
import torch

from cast.choice import Choice, Grid, choose, grid, places_of
from laai.evaluate import measure
from laai.intervention import Intervention
from laai.prompts import Template
from tests.tiny_models import LAYERS


@pytest.fixture
def vector(tiny):
    return Intervention.random(tiny, "residual", range(3), norm=2.0, seed=1)


def test_the_grid_holds_what_measuring_gives(tiny, word_task, vector):
    template, examples = Template(tiny.tokenizer, word_task), word_task.examples[:5]
    found = grid(tiny, vector, template, examples, scales=(0.5, 0.0, 2.0), progress=False)
    assert found.scales == (0.0, 0.5, 2.0)
    assert found.layers == ((0,), (1,), (2,))
    for place, layers in enumerate(found.layers):
        for number, scale in enumerate(found.scales):
            with (scale * vector.select(layers=layers)).on(tiny):
                measured = measure(tiny.llm, template, list(enumerate(examples)))
            tokens = [len(template.encode(e.input, answer=e.output).answer) for e in examples]
            expected = torch.tensor([-m.nll * count for m, count in zip(measured, tokens, strict=True)]).exp()
            torch.testing.assert_close(found.probability[place, number], expected, rtol=1e-3, atol=1e-6)
            right = found.choice_nll[place, number] < torch.tensor(2.0).log()  # of two options
            assert right.tolist() == [m.choice_sum for m in measured]
            assert found.exact[place, number].tolist() == [m.exact for m in measured]


def test_options_of_unequal_number(character_model, letter_task):
    """Only examples with choices have odds."""
    model = character_model("llama")
    vector = Intervention.random(model, "heads", range(LAYERS), seed=0)
    found = grid(model, vector, Template(model.tokenizer, letter_task), letter_task.examples, progress=False)
    assert found.probability.shape[-1] == 12
    assert found.choice_nll.shape[-1] == 8
    assert (found.choice_nll > 0).all()


def table(probability, choice=None):
    """A grid of two places and three scales, of so many examples."""
    probability = torch.tensor(probability)
    choice = None if choice is None else torch.tensor(choice)
    return Grid(((0,), (1, 2)), (0.0, 1.0, 2.0), probability, choice, probability > 0.5)


def every(values):
    return [[[v - 0.01, v, v + 0.01, v] for v in row] for row in values]


def test_the_likeliest_answers_win():
    found = choose(table(every([[0.1, 0.4, 0.3], [0.1, 0.3, 0.7]])))
    assert (found.layers, found.scale, found.helps, found.choice_gain) == ((1, 2), 2.0, True, None)
    assert found.gain == pytest.approx(0.6, abs=1e-5)
    assert found.gain_low <= found.gain <= found.gain_high


def test_a_gain_in_form_that_costs_knowledge_is_passed_over():
    likely, choice = every([[0.1, 0.4, 0.3], [0.1, 0.3, 0.7]]), every([[0.7, 0.6, 0.8], [0.7, 0.7, 0.9]])
    found = choose(table(likely, choice))
    assert (found.layers, found.scale) == ((0,), 1.0)
    assert found.choice_gain == pytest.approx(0.1, abs=1e-5)
    nothing = choose(table(likely, every([[0.7, 0.8, 0.8], [0.7, 0.9, 0.9]])))
    assert (nothing.scale, nothing.helps, nothing.gain) == (0.0, False, 0.0)


def test_chance_and_overflow_do_not_help():
    noisy = [[[0.3, 0.3, 0.3, 0.3], [0.9, 0.1, 0.6, 0.1], [float("nan")] * 4]] * 2
    found = choose(table(noisy))
    assert found.scale == 1.0
    assert not found.helps


def test_places(tiny):
    residual = Intervention.zeros(tiny, "residual", [0, 2])
    assert places_of(tiny, residual) == [(0,), (2,)]
    heads = places_of(tiny, Intervention.zeros(tiny, "heads", range(3)))
    assert heads[0] == (0, 1, 2)
    assert len(set(heads)) == len(heads)
    assert all(heads)


def test_the_chosen_part_at_its_scale(vector):
    part = Choice((0, 2), 0.5, True, 1.0, 0.5, 1.5, None, 4).of(vector)
    assert (part.layers, part.scale) == ([0, 2], 0.5)
    assert torch.equal(part["residual", 2], vector["residual", 2])
