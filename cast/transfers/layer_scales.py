"""A scale for each part of the depth: a chosen vector, part by part stronger, weaker, left out or taken in again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from cast.transfers.choice import Placement, judged, labelled, probabilities, right_options, rises
from laai.engine import Engine
from laai.evaluation import Interval, bootstrap_interval
from laai.models import LanguageModel
from laai.prompts import Prompt, Template
from laai.steering import Intervention
from laai.tasks import Example

PARTS = 6
"""Parts of the depth, each with a scale of its own."""


PART_SCALES = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Strengths that are tried for each part."""


def scale_by_layer(
    model: LanguageModel,
    vector: Intervention,
    template: Template,
    examples: Sequence[Example],
    start: Placement,
    *,
    parts: int = PARTS,
    scales: Sequence[float] = PART_SCALES,
    calibrate: bool = True,
) -> Placement:
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
    depth, given = len(model.decoder.layers), dict.fromkeys(vector.layers, 0.0)
    given |= dict(zip(start.layers, start.scales, strict=True))
    rise = _rise(model, _scaled(vector, given), bool(start.scale), template, examples, calibrate)
    tried = _Tries(model, vector, labelled(template, examples), given)
    for part in reversed(range(parts)):
        if inside := given.keys() & set(range(part * depth // parts, (part + 1) * depth // parts)):
            tried.better([tried.at | dict.fromkeys(inside, scale) for scale in scales], rise)
    if tried.at == given:
        return start
    layers, scale = tuple(layer for layer in tried.at if tried.at[layer]), max(tried.at.values())
    among = None if tried.rise is None else (start.choice_gain or 0.0) + tried.rise.mean
    gains = rises(tried.before, tried.best)
    return judged(layers, scale, gains, among, [tried.at[layer] / scale for layer in layers])


def _scaled(vector: Intervention, by: Mapping[int, float]) -> Intervention:
    return vector.with_vectors({key: by[key[1]] * v for key, v in vector.items()})


class _Tries:
    """The best scales by layer so far: `at`, the answers' probabilities there, and the right options' rise."""

    def __init__(
        self, model: LanguageModel, vector: Intervention, answers: Sequence[Prompt], at: Mapping[int, float]
    ) -> None:
        self._engine, self._vector, self._answers = Engine(model), vector, answers
        self.at = dict(at)
        self.rise: Interval | None = None
        self.before, self.best = self._probabilities([dict.fromkeys(at, 0.0), at])

    def better(self, tries: Sequence[dict[int, float]], rise: Callable[[Intervention], Interval | None]) -> None:
        """Go where answers are likelier, and right options not rarer by more than chance, if one of these is so."""
        found = self._probabilities(tries)
        means = self._mean(found)
        for number in means.argsort(descending=True, stable=True).tolist():
            if means[number] <= self._mean(self.best):
                break
            change = rise(_scaled(self._vector, tries[number]))
            if change is None or change.high >= 0:
                self.best, self.at, self.rise = found[number], tries[number], change
                break

    def _probabilities(self, tries: Sequence[Mapping[int, float]]) -> Tensor:
        """(tries, examples)"""
        vectors = [_scaled(self._vector, by) for by in tries]
        return probabilities(self._engine, vectors, [1.0], self._answers)[:, 0]

    def _mean(self, probability: Tensor) -> Tensor:
        """Over the examples, the last dimension, on which the model does not overflow by itself."""
        return probability[..., self.before.isfinite()].nan_to_num(nan=0.0).mean(-1)


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
