"""A scale for each part of the depth: a chosen vector, part by part stronger, weaker, left out or taken in again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from cast.transfers.choice import Placement, judged, labelled, probabilities, right_options, rises
from laai.engine import Engine
from laai.evaluation import Interval, bootstrap_interval
from laai.models import LanguageModel
from laai.prompts import Template
from laai.steering import Intervention
from laai.tasks import Example

PARTS = 6
"""Parts of the depth, each with a scale of its own."""


PART_SCALES = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Strengths that are tried for each part."""


def scale_by_layer(
    model: LanguageModel, vector: Intervention, template: Template, examples: Sequence[Example], start: Placement, *,
    parts: int = PARTS, scales: Sequence[float] = PART_SCALES, calibrate: bool = True,
) -> Placement:  # fmt: skip
    """Go on from layers and one scale: give each part of the depth the scale that makes answers likeliest.

    One pass from the last layers to the first. A change is kept if it raises the mean probability of the whole answer,
    unless the right option's share falls below what the start made it by more than chance.

    Args:
        model: the language model.
        vector: the whole vector, which the start was chosen for.
        template: writes the prompts.
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
        return probabilities(engine, [_scaled(vector, by) for by in tries], [1.0], answers)[:, 0]

    before, now = probable([dict.fromkeys(given, 0.0), given])
    rise = _rise(model, _scaled(vector, given), bool(start.scale), template, examples, calibrate)
    at, gain, among = given, rises(before, now), start.choice_gain
    for part in reversed(range(parts)):
        inside = given.keys() & set(range(part * depth // parts, (part + 1) * depth // parts))
        tries = [at | dict.fromkeys(inside, scale) for scale in scales if inside]
        gains = [rises(before, one) for one in probable(tries)] if tries else []
        for number in sorted(range(len(tries)), key=lambda number: -float(gains[number].mean())):
            if gains[number].mean() <= gain.mean():
                break
            change = rise(_scaled(vector, tries[number]))
            if change is None or change.high >= 0:
                at, gain = tries[number], gains[number]
                among = None if change is None else (start.choice_gain or 0.0) + change.mean
                break
    if at == given:
        return start
    layers, scale = tuple(layer for layer in at if at[layer]), max(at.values())
    return judged(layers, scale, gain, among, [at[layer] / scale for layer in layers])


def _scaled(vector: Intervention, by: Mapping[int, float]) -> Intervention:
    return vector.with_vectors({key: by[key[1]] * v for key, v in vector.items()})


def _rise(
    model: LanguageModel,
    start: Intervention,
    steers: bool,
    template: Template,
    examples: Sequence[Example],
    calibrate: bool,
) -> Callable[[Intervention], Interval | None]:
    """How much the right option's share rises against `start`, if it `steers`; None where there are no options."""
    if not any(e.choices for e in examples):
        return lambda scaled: None
    options: dict[str, Any] = {"calibrate": calibrate, "engine": Engine(model)}
    before = right_options(model, start, template, examples, **options)(start.layers, float(steers))

    def rise(scaled: Intervention) -> Interval | None:
        if not before.isfinite().any():
            return None  # it overflows on every example with choices
        after = right_options(model, scaled, template, examples, **options)(scaled.layers, 1.0)
        return bootstrap_interval(rises(before, after))

    return rise
