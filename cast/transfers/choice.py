"""Where and how strongly to add a vector: layers and a scale, chosen on a few labelled examples.

The place is taken that gives the whole answer, its terminator included, the highest probability: the exact match that
sampling would expect, in which form and knowledge both count. A vector that repairs the form of answers can still cost
knowledge: the right option loses to others. So places where its probability among the options falls by more than
chance are passed over; on a dozen examples that tells more than how often it wins. It is said when nothing helps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from cast.extraction import answer_scores, shifted_tokens
from laai.engine import Engine
from laai.errors import UserError
from laai.evaluation import bootstrap_interval, choose_options, label_offsets
from laai.models import LanguageModel
from laai.prompts import Prompt, Template
from laai.steering import Intervention
from laai.tasks import Example
from laai.vocabulary import Site

TRIES = 20
"""Places, best first, whose options are looked at, which costs a forward for each of them."""

Right = Callable[[Sequence[int], float], Tensor]
"""The right option's share of the options' probability, (examples with choices,), with layers at a scale."""

TRANSFER_SCALES = (0.5, 1.0, 2.0)
"""Strengths that are tried. 3 and 4 on residual layers raised the gain on these examples and lowered it on others."""

LEAST_GAIN = 0.01
"""Rise of the answers' probability, the exact match that sampling would expect, that is worth some forced choice."""

FEWEST = 5
"""Examples below which no gain is believed: a bootstrap of so few is too sure of itself."""


@dataclass(frozen=True)
class Placement:
    """Site, layers and scale of a vector, and what they did to the examples that they were chosen on.

    Attributes:
        layers: that keep their vectors.
        scale: the strength.
        helps: a rule of thumb, no test: on `FEWEST` examples or more, the 95% bootstrap interval of `gain` lies above
            zero. With choices, which a vector can cost, `gain` is `LEAST_GAIN` at least. The interval is of the best of
            many places and scales, on the same examples that they were compared on, and is not adjusted for that: gains
            on other examples tend to be smaller.
        gain, gain_low, gain_high: mean rise of the answers' probability (`answer_scores`) against no vector; of
            `choose_placement`, with the label prior that goes with the vector where there is one.
        choice_gain: mean rise of the right option's share of the options' probability, with the label prior that goes
            with the vector where there is one; None without choices.
        examples: how many counted; those on which the model overflows without a vector are left out.
        factors: of the scale, one for each of `layers`; empty where all layers have all of it.
        site: that keeps its vectors; None: all that the vector has.
    """

    layers: tuple[int, ...]
    scale: float
    helps: bool
    gain: float
    gain_low: float
    gain_high: float
    choice_gain: float | None
    examples: int
    factors: tuple[float, ...] = ()
    site: Site | None = None

    def of(self, vector: Intervention) -> Intervention:
        """The chosen part of a vector at the chosen scale."""
        part = self.scale * vector.select(layers=self.layers, site=self.site)
        return scaled(part, dict(zip(self.layers, self.factors, strict=True))) if self.factors else part

    @property
    def scales(self) -> tuple[float, ...]:
        """The strength on each of `layers`."""
        return tuple(self.scale * factor for factor in self.factors or (1.0,) * len(self.layers))


def scaled(vector: Intervention, by_layer: Mapping[int, float]) -> Intervention:
    """Each layer at a scale of its own."""
    return vector.with_vectors({key: by_layer[key[1]] * v for key, v in vector.items()})


@dataclass(frozen=True)
class Grid:
    """What each place and scale does to each example: (places, scales, examples).

    Attributes:
        layers: of each place.
        scales: all, 0 (no vector) first.
        probability: of the answer and its terminator.
        exact: greedy generation would write the answer.
    """

    layers: tuple[tuple[int, ...], ...]
    scales: tuple[float, ...]
    probability: Tensor
    exact: Tensor


def grid(
    model: LanguageModel, vector: Intervention, template: Template, examples: Sequence[Example], *,
    scales: Sequence[float] = TRANSFER_SCALES, places: Sequence[Sequence[int]] | None = None, progress: bool = True,
) -> Grid:  # fmt: skip
    """How likely a vector at many places and scales makes the answers of examples; one pass over their prefixes.

    Args:
        examples: labelled.
        places: layers that keep their vectors, each a candidate; default: `places_of` the vector.
    """
    places = places_of(model, vector) if places is None else places
    candidates = [vector.select(layers=layers) for layers in places]
    scales = (0.0, *(scale for scale in scales if scale))
    answers = labelled(template, examples)
    what, total = f"choosing layers and scale at {' and '.join(vector.sites)}", len(candidates) * len(answers)
    with tqdm(total=total, desc=what, disable=not progress, leave=False) as bar:
        found = Engine(model).sweep(candidates, scales, answers, on_candidate=bar.update)
    return Grid(tuple(map(tuple, places)), scales, answer_scores(found.nll, answers, "probability"), found.greedy)


def labelled(template: Template, examples: Sequence[Example]) -> list[Prompt]:
    """The zero-shot prompts of examples, with their answers."""
    return [template.encode(example.input, answer=example.output) for example in examples]


def probabilities(
    engine: Engine, vectors: Sequence[Intervention], scales: Sequence[float], answers: Sequence[Prompt]
) -> Tensor:
    """(vectors, scales, answers) of whole answers, fp64."""
    return answer_scores(engine.sweep(vectors, scales, answers).nll, answers, "probability")


def right_options(
    model: LanguageModel, vector: Intervention, template: Template, examples: Sequence[Example], *,
    calibrate: bool = False, engine: Engine | None = None,
) -> Right:  # fmt: skip
    """Measures the right option's probability in examples that have choices, with `vector` on some layers at a scale.

    Args:
        examples: labelled; those without choices are left out.
        calibrate: a `label_prior` goes with the vector, where it can; without the vector (scale 0) there is none.
        engine: the model's, with what others ran on these examples; default: all tries share one of their own.
    """
    having = [e for e in examples if e.choices]
    shared = engine or Engine(model)
    prior = calibrate and shifted_tokens(vector, template, examples) is not None

    def right(layers: Sequence[int], scale: float) -> Tensor:
        with (scale * vector.select(layers=layers)).on(model):
            found = choose_options(model, template, having, engine=shared)
        shift = label_offsets(-torch.tensor([one.firsts for one in found])) if prior and scale else 0.0
        shares = [(shift - torch.tensor(one.nlls)).softmax(-1) for one in found]
        same = [torch.tensor([option == e.output for option in e.choices or ()]) for e in having]
        return torch.tensor([float(share[right].sum()) for share, right in zip(shares, same, strict=True)])

    return right


def places_of(model: LanguageModel, vector: Intervention) -> list[tuple[int, ...]]:
    """Layers to try: each alone at `residual`, where vectors add up along the depth; groups of them at `heads`."""
    layers = tuple(vector.layers)
    if vector.sites == ["residual"]:
        return [(layer,) for layer in layers]
    depth = len(model.decoder.layers)
    bounds = [(0, depth), (0, 2 * depth // 3), (depth // 3, depth), (0, depth // 2), (depth // 2, depth)]
    bounds += [(third * depth // 3, (third + 1) * depth // 3) for third in range(3)]
    places = [tuple(layer for layer in layers if low <= layer < high) for low, high in bounds]
    return [place for place in dict.fromkeys(places) if place]


def choose(found: Grid, right: Right | None = None) -> Placement:
    """The place and scale that make answers likeliest, where the right option does not lose by more than chance.

    No vector, scale 0, is among them always: the placement may be that, and then does not help.

    Args:
        found: of `grid`.
        right: of `right_options`, on the same examples; None where they have no choices.

    Raises:
        UserError: the model overflows on all examples without a vector.
    """
    sound = found.probability[:, 0].isfinite().all(dim=0)
    if not sound.any():
        raise UserError(
            f"expected examples whose answers the model gives a probability, found none of {len(sound)}: it overflows "
            "without a vector; load it with another dtype, such as float32"
        )
    probability = found.probability[..., sound].nan_to_num(nan=0.0)  # a NaN: a vector that makes the model overflow
    gains = probability - probability[:, :1]
    ranked = gains.mean(dim=-1).flatten().argsort(descending=True, stable=True).tolist()
    nothing = (0, found.scales.index(0.0))
    before = None if right is None else right(found.layers[0], 0.0)
    if before is not None and not before.isfinite().any():
        before = None  # it overflows on every example with choices
    best, change = nothing, None if before is None else 0.0
    for flat in ranked[:TRIES]:
        place, number = divmod(flat, len(found.scales))
        if found.scales[number] == 0 or gains[place, number].mean() <= 0:
            break  # no vector is likelier
        if right is None or before is None:
            best = place, number
            break
        rise = bootstrap_interval(rises(before, right(found.layers[place], found.scales[number])))
        if rise.high >= 0:
            best, change = (place, number), rise.mean
            break
    return judged(found.layers[best[0]], found.scales[best[1]], gains[best], change)


def rises(before: Tensor, after: Tensor) -> Tensor:
    """(examples,) by how much a number rises, of the examples on which the model does not overflow by itself.

    Where it overflows with a vector, the number is taken as 0.
    """
    return (after.nan_to_num(nan=0.0) - before)[before.isfinite()]


def judged(
    layers: Sequence[int], scale: float, gains: Tensor, change: float | None, factors: Sequence[float] = ()
) -> Placement:
    """The placement that changes the answers' probability by `gains`, (examples,); `change`: `choice_gain`."""
    mean, low, high, n = bootstrap_interval(gains)
    helps = n >= FEWEST and low > 0 and (change is None or mean >= LEAST_GAIN)
    return Placement(tuple(layers), scale, helps, mean, low, high, change, n, tuple(factors))
