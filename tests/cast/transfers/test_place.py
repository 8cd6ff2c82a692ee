"""The search for a place from start to end: which site, and the gain of what would be applied."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cast.extraction.calibration import label_prior, with_label_prior
from cast.transfers.choice import Placement
from cast.transfers.search import choose_placement, likeliest, placements_by_site
from laai.evaluation.measuring import measure
from laai.prompts.templates import Template
from laai.steering.intervention import Intervention


@pytest.mark.parametrize(("loud", "quiet"), [("heads", "residual"), ("residual", "heads")])
def test_of_two_sites_the_one_that_serves_better(tiny, word_task, loud, quiet):
    """A direction that raises the answers' probability, beside one at the other site that is too short to do much."""
    template = Template(tiny.tokenizer, word_task)
    examples = [dataclasses.replace(e, choices=None, label=None) for e in word_task.examples[:6]]

    def chosen(vector):
        return choose_placement(tiny, vector, template, examples, scales=(0.5, 2.0), progress=False)

    draws = (Intervention.random(tiny, loud, range(3), norm=2.0, seed=seed) for seed in range(20))
    useful = next(draw for draw in draws if chosen(draw).gain > 0)
    both = useful + Intervention.random(tiny, quiet, range(3), norm=1e-4, seed=1)
    assert chosen(both) == chosen(useful)
    assert (chosen(both).site, chosen(both).of(both).sites) == (loud, [loud])


def probabilities(model, template, examples, vector):
    """Of the whole answers, as measuring gives them."""
    with vector.on(model):
        found = measure(model, template, list(enumerate(examples)))
    tokens = [len(template.encode(e.input, answer=e.output).answer) for e in examples]
    return torch.tensor([-m.nll * count for m, count in zip(found, tokens, strict=True)]).exp()


@pytest.mark.parametrize("calibrate", [True, False])
def test_the_gain_is_that_of_what_would_be_applied(tiny, word_task, calibrate):
    """With the label prior, unless that is not wanted."""
    template, examples = Template(tiny.tokenizer, word_task), word_task.examples[:6]
    options = {"scales": (0.5, 2.0), "progress": False, "calibrate": calibrate}
    for seed in range(20):  # until a direction is of use
        vector = Intervention.random(tiny, "residual", range(3), norm=2.0, seed=seed)
        (found,) = placements_by_site(tiny, vector, template, examples, **options).values()
        if found.scale:
            break
    bare = found.of(vector)
    assert label_prior(tiny, bare, template, examples) is not None
    applied = with_label_prior(tiny, bare, template, examples) if calibrate else bare
    before, after = (probabilities(tiny, template, examples, v) for v in (0.0 * vector, applied))
    assert found.gain == pytest.approx(float((after - before).mean()), rel=1e-3, abs=1e-7)
    assert found.gain_low <= found.gain <= found.gain_high


def test_no_vector_has_no_gain_and_no_prior(tiny, word_task):
    """A label prior alone is no gain of a vector's."""
    template, examples = Template(tiny.tokenizer, word_task), word_task.examples[:6]
    found = choose_placement(
        tiny, Intervention.zeros(tiny, "residual", [1]), template, examples, scales=(1.0,), progress=False
    )
    assert (found.scale, found.gain, found.helps) == (0.0, 0.0, False)


def test_a_site_that_helps_goes_before_one_that_does_not():
    """Its gain on few examples may be the smaller one, and surer."""
    unsure = Placement((0,), 1.0, False, gain=0.060, gain_low=-0.005, gain_high=0.13, choice_gain=None, examples=12)
    sure = Placement((1,), 1.0, True, gain=0.055, gain_low=0.02, gain_high=0.09, choice_gain=None, examples=12)
    assert likeliest({"heads": unsure, "residual": sure}) is sure
    both = {"heads": dataclasses.replace(unsure, helps=True), "residual": sure}
    assert likeliest(both) is both["heads"], "of two that help the one with the larger gain"
