"""Where and how strongly a vector goes, from a few labelled examples: the search from start to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cast.extraction import with_label_prior
from cast.transfers.choice import Placement, choose, grid, judged, labelled, probabilities, right_options, rises
from cast.transfers.layer_scales import scale_by_layer
from laai.engine import Engine
from laai.models import LanguageModel
from laai.prompts import Template
from laai.steering import Intervention
from laai.tasks import Example
from laai.vocabulary import Site


def choose_placement(
    model: LanguageModel, vector: Intervention, template: Template, examples: Sequence[Example], **options: Any
) -> Placement:
    """The likeliest of `placements_by_site`, whose further arguments `options` are."""
    return likeliest(placements_by_site(model, vector, template, examples, **options))


def likeliest(found: Mapping[Site, Placement]) -> Placement:
    """The one at the site where the answers' probability rises most, of those that help if one does."""
    return max(found.values(), key=lambda placement: (placement.helps, placement.gain))


def placements_by_site(
    model: LanguageModel,
    vector: Intervention,
    template: Template,
    examples: Sequence[Example],
    *,
    calibrate: bool = True,
    by_layer: bool = False,
    **options: Any,
) -> dict[Site, Placement]:
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

    def at(site: Site) -> Placement:
        part = vector.select(site=site)
        likely = grid(model, part, template, examples, **options)
        choices = any(example.choices for example in examples)
        right = right_options(model, part, template, examples, calibrate=calibrate) if choices else None
        found = choose(likely, right)
        found = scale_by_layer(model, part, template, examples, found, calibrate=calibrate) if by_layer else found
        found = with_prior(model, part, template, examples, found) if calibrate else found
        return replace(found, site=site)

    return {site: at(site) for site in vector.sites}


def with_prior(
    model: LanguageModel, vector: Intervention, template: Template, examples: Sequence[Example], found: Placement
) -> Placement:
    """The placement with the gain that its part of the vector has together with its label prior, where there is one."""
    bare = found.of(vector)
    both = with_label_prior(model, bare, template, examples) if found.scale else bare
    if both is bare:
        return found
    before, after = probabilities(Engine(model), [both], [0.0, 1.0], labelled(template, examples))[0]
    return judged(found.layers, found.scale, rises(before, after), found.choice_gain, found.factors)
