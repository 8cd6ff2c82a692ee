"""Where and how strongly a vector goes, from a few labelled examples: the search from start to end.

`scale_by_layer` ends it on demand: a chosen vector, part by part stronger, weaker, left out or taken in again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from cast.extraction import with_label_prior
from cast.transfers.choice import Placement, choose, grid, judged, labelled, probabilities, right_options, rises, scaled
from laai.engine import Engine
from laai.evaluation import Interval, bootstrap_interval
from laai.models import LanguageModel
from laai.prompts import Template
from laai.steering import Intervention
from laai.tasks import Example
from laai.vocabulary import Site

PARTS = 6
"""Parts of the depth, each with a scale of its own."""

PART_SCALES = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Strengths that are tried for each part."""


def choose_placement(
    model: LanguageModel, vector: Intervention, template: Template, examples: Sequence[Example], **options: Any
) -> Placement:
    """The likeliest of `placements_by_site`, whose further arguments `options` are."""
    return likeliest(placements_by_site(model, vector, template, examples, **options))


def likeliest(found: Mapping[Site, Placement]) -> Placement:
    """The one at the site where the answers' probability rises most, of those that help if one does."""
    return max(found.values(), key=lambda placement: (placement.helps, placement.gain))


def placements_by_site(
    model: LanguageModel, vector: Intervention, template: Template, examples: Sequence[Example], *,
    calibrate: bool = True, by_layer: bool = False, **options: Any,
) -> dict[Site, Placement]:  # fmt: skip
    """`cast.transfers.choice.choose` at each site of a vector, with the gain of what would be applied there.

    Args:
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


def scale_by_layer(
    model: LanguageModel, vector: Intervention, template: Template, examples: Sequence[Example], start: Placement, *,
    parts: int = PARTS, scales: Sequence[float] = PART_SCALES, calibrate: bool = True,
) -> Placement:  # fmt: skip
    """Go on from layers and one scale: give each part of the depth the scale that makes answers likeliest.

    One pass from the last layers to the first. A change is kept if it raises the mean probability of the whole answer,
    unless the right option's share falls below what the start made it by more than chance.

    Args:
        vector: the whole vector, which the start was chosen for.
        examples: labelled; those that the start was chosen on.
        start: where to start. Of a vector at `residual` it is one layer, and is returned as it is.
        parts: of the whole depth.
        scales: to try for each part.
        calibrate: options are compared with a `label_prior`, where there is one.
    """
    if vector.sites != ["heads"]:
        return start
    depth, engine, answers = len(model.decoder.layers), Engine(model), labelled(template, examples)
    given = dict.fromkeys(vector.layers, 0.0) | dict(zip(start.layers, start.scales, strict=True))

    def probable(tries: Sequence[Mapping[int, float]]) -> Tensor:
        """(tries, examples)"""
        return probabilities(engine, [scaled(vector, by) for by in tries], [1.0], answers)[:, 0]

    before, now = probable([dict.fromkeys(given, 0.0), given])
    rise = _rise(model, scaled(vector, given), bool(start.scale), template, examples, calibrate)
    at, gain, among = given, rises(before, now), start.choice_gain
    for part in reversed(range(parts)):
        inside = given.keys() & set(range(part * depth // parts, (part + 1) * depth // parts))
        tries = [at | dict.fromkeys(inside, scale) for scale in scales if inside]
        gains = [rises(before, one) for one in probable(tries)] if tries else []
        for number in sorted(range(len(tries)), key=lambda number: -float(gains[number].mean())):
            if gains[number].mean() <= gain.mean():
                break
            change = rise(scaled(vector, tries[number]))
            if change is None or change.high >= 0:
                at, gain = tries[number], gains[number]
                among = None if change is None else (start.choice_gain or 0.0) + change.mean
                break
    if at == given:
        return start
    layers, scale = tuple(layer for layer in at if at[layer]), max(at.values())
    return judged(layers, scale, gain, among, [at[layer] / scale for layer in layers])


def _rise(
    model: LanguageModel, start: Intervention, steers: bool, template: Template, examples: Sequence[Example],
    calibrate: bool,
) -> Callable[[Intervention], Interval | None]:  # fmt: skip
    """How much the right option's share rises against `start`, if it `steers`; None where there are no options."""
    if not any(e.choices for e in examples):
        return lambda tried: None
    options: dict[str, Any] = {"calibrate": calibrate, "engine": Engine(model)}
    before = right_options(model, start, template, examples, **options)(start.layers, float(steers))

    def rise(tried: Intervention) -> Interval | None:
        if not before.isfinite().any():
            return None  # it overflows on every example with choices
        after = right_options(model, tried, template, examples, **options)(tried.layers, 1.0)
        return bootstrap_interval(rises(before, after))

    return rise
