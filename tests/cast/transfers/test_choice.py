"""Layers and scale against losses by hand, and the rule that says when nothing helps."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cast.extraction.calibration import label_prior
from cast.extraction.scale import LONGEST_ANSWER, answer_scores
from cast.transfers.choice import Grid, Placement, choose, grid, places_of, right_options
from cast.transfers.report import said_of
from cast.transfers.search import choose_placement
from laai.errors import UserError
from laai.evaluation.measuring import measure
from laai.prompts.batches import Prompt
from laai.prompts.templates import Template
from laai.steering.intervention import Intervention
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
                measured = measure(tiny, template, list(enumerate(examples)))
            tokens = [len(template.encode(e.input, answer=e.output).answer) for e in examples]
            pairs = zip(measured, tokens, strict=True)
            expected = torch.tensor([-m.nll * count for m, count in pairs], dtype=torch.float64).exp()
            torch.testing.assert_close(found.probability[place, number], expected, rtol=1e-3, atol=1e-6)
            right = right_options(tiny, vector, template, examples)(layers, scale)
            shares = [
                torch.tensor(m.options).neg().softmax(-1)[e.label] for m, e in zip(measured, examples, strict=True)
            ]
            torch.testing.assert_close(right, torch.stack(shares), rtol=1e-3, atol=1e-6)
            assert found.exact[place, number].tolist() == [m.exact for m in measured]


def test_options_of_unequal_number(character_model, letter_task):
    """Only examples with choices count in forced choice."""
    model = character_model("llama")
    vector = Intervention.random(model, "heads", range(LAYERS), seed=0)
    template = Template(model.tokenizer, letter_task)
    assert grid(model, vector, template, letter_task.examples, progress=False).probability.shape[-1] == 12
    with vector.on(model):
        measured = measure(model, template, list(enumerate(letter_task.examples)))
    right = right_options(model, vector, template, letter_task.examples, calibrate=True)(range(LAYERS), 1.0)
    likeliest = [share > 1 / 2 for share in right.tolist()]  # all have two options
    assert likeliest == [m.choice_sum for m in measured if m.choice_sum is not None]
    assert len(right) == 8
    choice = choose_placement(model, vector, template, letter_task.examples, progress=False)
    assert (choice.examples, choice.choice_gain is None) == (12, False)


def test_no_label_prior_where_some_examples_have_no_options(tiny, word_task):
    """None would be added to the vector."""
    template, examples = Template(tiny.tokenizer, word_task), list(word_task.examples[:8])
    vector = Intervention.random(tiny, "heads", range(3), norm=2.0, seed=1)
    mixed = [*examples[:7], dataclasses.replace(examples[7], choices=None, label=None)]
    shares = [right_options(tiny, vector, template, mixed, calibrate=c)(range(3), 2.0) for c in (True, False)]
    assert len(shares[0]) == 7
    assert torch.equal(*shares)


def test_options_with_the_label_prior_that_goes_with_a_vector(tiny, word_task):
    """Options are shifted as the vector's own label prior says; without a vector there is none."""
    template, examples = Template(tiny.tokenizer, word_task), word_task.examples[:8]
    vector = Intervention.random(tiny, "heads", range(3), norm=2.0, seed=1)
    right = right_options(tiny, vector, template, examples, calibrate=True)
    plain = right_options(tiny, vector, template, examples)
    bare = 2.0 * vector.select(layers=[0, 1])
    prior = label_prior(tiny, bare, template, examples)
    shifts = torch.tensor([prior.provenance.label_prior[option] for option in examples[0].choices])
    with bare.on(tiny):
        measured = measure(tiny, template, list(enumerate(examples)))
    shares = [(shifts - torch.tensor(m.options)).softmax(-1)[e.label] for m, e in zip(measured, examples, strict=True)]
    torch.testing.assert_close(right([0, 1], 2.0), torch.stack(shares), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(right([0, 1], 2.0), plain([0, 1], 2.0), rtol=0.1, atol=1e-4)
    assert torch.equal(right([0, 1], 0.0), plain([0, 1], 0.0))


def table(probability):
    """A grid of two places and three scales, of so many examples."""
    probability = torch.tensor(probability)
    return Grid(((0,), (1, 2)), (0.0, 1.0, 2.0), probability, probability > 0.5)


def every(values):
    return [[[v - 0.01, v, v + 0.01, v, v] for v in row] for row in values]


def test_the_likeliest_answers_win():
    found = choose(table(every([[0.1, 0.4, 0.3], [0.1, 0.3, 0.7]])))
    assert (found.layers, found.scale, found.helps, found.choice_gain) == ((1, 2), 2.0, True, None)
    assert found.gain == pytest.approx(0.6, abs=1e-5)
    assert found.gain_low <= found.gain <= found.gain_high


def test_a_gain_in_form_that_costs_knowledge_is_passed_over():
    likely = table(every([[0.1, 0.4, 0.3], [0.1, 0.3, 0.7]]))
    asked = []

    def right(of_place):
        def answer(layers, scale):
            asked.append((layers, scale))
            return torch.tensor(of_place.get((layers, scale), [0.5, 0.7, 0.6, 0.2, 0.5]))

        return answer

    worse, noisy = [0.3, 0.5, 0.4, 0.2, 0.4], [0.6, 0.7, 0.1, 0.4, 0.5]
    found = choose(likely, right({((1, 2), 2.0): worse, ((0,), 1.0): noisy}))
    assert (found.layers, found.scale, found.helps) == ((0,), 1.0, True)
    assert found.choice_gain == pytest.approx(-0.04), "a loss that may be chance"
    assert asked == [((0,), 0.0), ((1, 2), 2.0), ((0,), 1.0)], "only as many places as needed"
    places = [((0,), 1.0), ((0,), 2.0), ((1, 2), 1.0), ((1, 2), 2.0)]
    nothing = choose(likely, right(dict.fromkeys(places, worse)))
    assert (nothing.scale, nothing.helps, nothing.gain, nothing.choice_gain) == (0.0, False, 0.0, 0.0)


def test_chance_and_overflow_do_not_help():
    noisy = [[[0.3, 0.3, 0.3, 0.3], [0.9, 0.1, 0.6, 0.1], [float("nan")] * 4]] * 2
    found = choose(table(noisy))
    assert found.scale == 1.0
    assert not found.helps


def test_examples_on_which_the_model_overflows_by_itself_do_not_count():
    nan, gains = float("nan"), torch.tensor(every([[0.1, 0.4, 0.3], [0.1, 0.3, 0.7]]))
    overflown = gains.clone()
    overflown[:, 0, 2] = nan
    found = choose(table(torch.cat([gains, overflown[..., 2:3]], dim=-1).tolist()))
    assert found == choose(table(gains.tolist()))
    assert (found.helps, found.examples) == (True, 5)
    shares = {0.0: [0.5, 0.5, nan], 2.0: [0.6, nan, 0.9], 1.0: [0.6, 0.7, 0.9]}
    chosen = choose(table(gains.tolist()), lambda _, scale: torch.tensor(shares[scale]))
    assert (chosen.scale, chosen.choice_gain) == (2.0, pytest.approx(-0.2)), "no share where a vector overflows"
    bare = choose(table(gains.tolist()), lambda *_: torch.tensor([nan, nan]))
    assert (bare.scale, bare.choice_gain) == (2.0, None)
    with pytest.raises(UserError, match="found none of 5: it overflows without a vector; load it with another dtype"):
        choose(table((gains * nan).tolist()))


def test_few_examples_never_help():
    four, five = (choose(table([[[0.1] * n, [0.6] * n, [0.2] * n]] * 2)) for n in (4, 5))
    assert four.gain_low > 0
    assert (four.helps, five.helps) == (False, True)


def test_a_sure_gain_may_be_too_small_to_help():
    grids = [table([[[0.0] * 5, [gain] * 5, [0.0] * 5]] * 2) for gain in (0.005, 0.02)]
    small, enough = (choose(found, lambda *_: torch.ones(5)) for found in grids)
    assert choose(grids[0]).helps, "without options there is no forced choice to lose"
    assert (small.scale, enough.scale) == (1.0, 1.0)
    assert small.gain_low > 0
    assert (small.helps, enough.helps) == (False, True)


def test_long_answers_can_be_told_apart():
    """Forty tokens at 3.0 nats each, or 2.7: fp32 knows neither probability."""
    prompts = [Prompt((1,), (2, *range(count))) for count in (40, 40, LONGEST_ANSWER, 3)]
    nll = torch.tensor([[[3.0, 3.0, 3.0, 3.0]], [[2.7, 2.7, 3.0, 3.0]]])
    found = answer_scores(nll, prompts, "probability")
    assert found[0, 0].log() == pytest.approx([-72, -72, -72, -9])
    assert found[1, 0].log() == pytest.approx([-64.8, -64.8, -72, -9])
    better = torch.stack([found[0], found[1]], dim=1)[:, :, :2]  # no vector, a vector
    choice = choose(Grid(((0,),), (0.0, 1.0), better, better > 1))
    assert (choice.scale, choice.gain > 0) == (1.0, True)


def test_places(tiny):
    residual = Intervention.zeros(tiny, "residual", [0, 2])
    assert places_of(tiny, residual) == [(0,), (2,)]
    heads = places_of(tiny, Intervention.zeros(tiny, "heads", range(3)))
    assert heads[0] == (0, 1, 2)
    assert len(set(heads)) == len(heads)
    assert all(heads)


def test_the_chosen_part_at_its_scale(tiny, vector):
    chosen = Placement((0, 2), 0.5, True, 1.0, 0.5, 1.5, None, 4)
    part = chosen.of(vector)
    assert (part.layers, part.scale) == ([0, 2], 0.5)
    assert torch.equal(part["residual", 2], vector["residual", 2])
    both = vector + Intervention.random(tiny, "heads", range(3), norm=2.0, seed=2)
    assert chosen.of(both).sites == ["heads", "residual"]
    (only,) = dataclasses.replace(chosen, layers=(1,), site="heads").of(both).items()
    assert only[0] == ("heads", 1)


def test_strong_scales_that_cost_knowledge_do_not_hide_a_milder_one():
    """They are likeliest, and many where many scales are tried."""
    scales = (0.0, *(0.5 * number for number in range(1, 11)))
    probability = torch.tensor([[[0.01 + 0.05 * scale] * 5 for scale in scales]])
    likely = Grid(((0, 1),), scales, probability, probability > 0.5)
    found = choose(likely, lambda layers, scale: torch.full((5,), 0.3 if scale > 1 else 0.6))
    assert (found.layers, found.scale, found.helps) == ((0, 1), 1.0, True)


def test_a_choice_is_told_in_a_line():
    found = Placement((2, 3, 4), 0.5, True, 0.25, 0.1, 0.4, None, 12)
    line = "layers 2 to 4, scale 0.5, chosen on 12 examples of the target"
    assert said_of(found, "target") == f"{line} (probability of the right answer +0.250, +0.100 to +0.400)"
    one = Placement((7,), 1.0, False, 0.25, 0.1, 0.4, -0.03, 12, site="residual")
    assert said_of(one, "source").startswith("layer 7 at residual, scale 1, chosen on 12 examples of the source")
    assert "among the options -0.030" in said_of(one, "source")
    nothing = Placement((0, 1), 0.0, False, 0.0, 0.0, 0.0, 0.0, 12)
    assert said_of(nothing, "target").startswith("no vector: ")
