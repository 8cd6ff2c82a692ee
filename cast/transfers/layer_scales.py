"""A scale for each part of the depth: a chosen vector, part by part stronger, weaker, left out or taken in again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from cast.transfers.choice import Choice, judged, right_options, whole_answers
from laai.engine import Engine
from laai.evaluation import Interval, bootstrap_interval
from laai.models import LanguageModel
from laai.prompts import Template
from laai.steering import Intervention
from laai.tasks import Example

PARTS = 6


SCALES = (0.0, 0.5, 1.0, 1.5, 2.0)


def scale_by_layer(
    model: LanguageModel,
    vector: Intervention,
    template: Template,
    examples: Sequence[Example],
    choice: Choice,
    *,
    parts: int = PARTS,
    scales: Sequence[float] = SCALES,
    calibrate: bool = True,
) -> Choice:
    """Go on from a choice of layers and one scale: give each part of the depth the scale that makes answers likeliest.

    One pass from the last layers to the first. A change is kept if it raises the mean probability of the whole answer,
    unless the right option's share falls below what the choice made it by more than chance.

    Args:
        model: the language model.
        vector: the whole vector, which the choice was made for.
        template: writes the prompts.
        examples: labelled; those of the choice.
        choice: where to start. Of a vector at `residual` it is one layer, and is returned as it is.
        parts: of the whole depth.
        scales: to try for each part.
        calibrate: options are compared with a `label_prior`, where there is one.
    """
    if vector.sites != ["heads"]:
        return choice
    depth, engine = len(model.decoder.layers), Engine(model)
    answers = [template.encode(e.input, answer=e.output) for e in examples]
    start = dict.fromkeys(vector.layers, 0.0) | dict(zip(choice.layers, choice.scales, strict=True))

    def scaled(by: Mapping[int, float]) -> Intervention:
        return vector.with_vectors({key: by[key[1]] * v for key, v in vector.items()})

    def probabilities(tries: Sequence[Mapping[int, float]]) -> Tensor:
        """(tries, examples)"""
        return whole_answers(engine.sweep([scaled(by) for by in tries], [1.0], answers).nll[:, 0], answers)

    before, best = probabilities([dict.fromkeys(start, 0.0), start])
    rise = _rise(model, scaled(start), bool(choice.scale), template, examples, calibrate)
    at, risen = start, None
    for part in reversed(range(parts)):
        inside = start.keys() & set(range(part * depth // parts, (part + 1) * depth // parts))
        if not inside:
            continue
        tries = [at | dict.fromkeys(inside, scale) for scale in scales]
        found = probabilities(tries)
        means = _mean(found, before)
        for number in means.argsort(descending=True, stable=True).tolist():
            if means[number] <= _mean(best, before):
                break
            change = rise(scaled(tries[number]))
            if change is None or change.high >= 0:
                best, at, risen = found[number], tries[number], change
                break
    if at == start:
        return choice
    layers, scale = tuple(layer for layer in at if at[layer]), max(at.values())
    gains = (best.nan_to_num(nan=0.0) - before)[before.isfinite()]
    among = None if risen is None else (choice.choice_gain or 0.0) + risen.mean
    return judged(layers, scale, gains, among, [at[layer] / scale for layer in layers])


def _mean(probability: Tensor, before: Tensor) -> Tensor:
    """Over the examples, the last dimension, on which the model does not overflow by itself."""
    return probability[..., before.isfinite()].nan_to_num(nan=0.0).mean(-1)


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
    known = before.isfinite()

    def rise(scaled: Intervention) -> Interval | None:
        if not known.any():
            return None  # it overflows on every example with choices
        after = right_options(model, scaled, template, examples, **options)(scaled.layers, 1.0)
        return bootstrap_interval((after.nan_to_num(nan=0.0) - before)[known])

    return rise
