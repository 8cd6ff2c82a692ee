"""Where and how strongly a vector goes, from a few labelled examples: the search from start to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cast.extraction import with_label_prior
from cast.transfers.choice import Choice, choose, grid, judged, right_options, whole_answers
from cast.transfers.layer_scales import scale_by_layer
from laai.engine import Engine
from laai.models import LanguageModel
from laai.prompts import Template
from laai.steering import Intervention
from laai.tasks import Example
from laai.vocabulary import Site


def choose_place(
    model: LanguageModel, vector: Intervention, template: Template, examples: Sequence[Example], **options: Any
) -> Choice:
    """The likeliest of `choices_by_site`, whose further arguments `options` are."""
    return likeliest(choices_by_site(model, vector, template, examples, **options))


def likeliest(choices: Mapping[Site, Choice]) -> Choice:
    """The choice of the site where the answers' probability rises most, of those that help if one does."""
    return max(choices.values(), key=lambda choice: (choice.helps, choice.gain))


def choices_by_site(
    model: LanguageModel,
    vector: Intervention,
    template: Template,
    examples: Sequence[Example],
    *,
    calibrate: bool = True,
    by_layer: bool = False,
    **options: Any,
) -> dict[Site, Choice]:
    """`cast.transfers.choice.choose` at each site of a vector, with the gain of what would be applied there.

    Args:
        model: the language model.
        vector: from `cast.extract`.
        template: writes the prompts.
        examples: labelled; where some have choices, places that cost right options are passed over.
        calibrate: options are compared, and the gain is measured, with the label prior that goes with the vector.
        by_layer: look for a scale for each part of the depth too, by `scale_by_layer`.
        options: further arguments of `grid`: scales, places, progress.
    """

    def at(site: Site) -> Choice:
        part = vector.select(site=site)
        found = grid(model, part, template, examples, **options)
        choices = any(example.choices for example in examples)
        right = right_options(model, part, template, examples, calibrate=calibrate) if choices else None
        choice = choose(found, right)
        choice = scale_by_layer(model, part, template, examples, choice, calibrate=calibrate) if by_layer else choice
        choice = with_prior(model, part, template, examples, choice) if calibrate else choice
        return replace(choice, site=site)

    return {site: at(site) for site in vector.sites}


def with_prior(
    model: LanguageModel, vector: Intervention, template: Template, examples: Sequence[Example], choice: Choice
) -> Choice:
    """The choice with the gain that its part of the vector has together with its label prior, where there is one."""
    bare = choice.of(vector)
    both = with_label_prior(model, bare, template, examples) if choice.scale else bare
    if both is bare:
        return choice
    answers = [template.encode(e.input, answer=e.output) for e in examples]
    before, after = whole_answers(Engine(model).sweep([both], [0.0, 1.0], answers).nll[0], answers)
    gains = (after.nan_to_num(nan=0.0) - before)[before.isfinite()]
    return judged(choice.layers, choice.scale, gains, choice.choice_gain, choice.factors)
