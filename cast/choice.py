"""Where and how strongly to add a vector: layers and a scale, chosen on a few labelled examples.

A vector that repairs the form of answers can cost knowledge: exact match rises while the right option loses to others.
So the choice looks at both. Among places that leave the odds of the right option no worse than the model has them
without a vector, it takes the one that gives the whole answer, its terminator included, the highest probability: the
exact match that sampling would expect. It says when none helps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from laai.intervention import Intervention
from laai.layers import find_decoder
from laai.metrics import bootstrap_interval
from laai.models import LanguageModel
from laai.prompts import Prompt, Template
from laai.sweep import sweep
from laai.tasks import Example

SCALES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Choice:
    """Layers and scale of a vector, and what they did to the examples that they were chosen on.

    Attributes:
        layers: that keep their vectors.
        scale: the strength.
        helps: answers got likelier by more than chance: the 95% bootstrap interval of `gain` lies above zero.
        gain, gain_low, gain_high: mean rise of the whole answer's probability against no vector.
        choice_gain: mean fall of −log p(right option | options), nats; None without choices.
        examples: how many.
    """

    layers: tuple[int, ...]
    scale: float
    helps: bool
    gain: float
    gain_low: float
    gain_high: float
    choice_gain: float | None
    examples: int

    def of(self, vector: Intervention) -> Intervention:
        """The chosen part of a vector at the chosen scale."""
        return self.scale * vector.select(layers=self.layers)


@dataclass(frozen=True)
class Grid:
    """What each place and scale does to each example: (places, scales, examples).

    Attributes:
        layers: of each place.
        scales: all, 0 (no vector) first.
        probability: of the answer and its terminator.
        choice_nll: −log p(right option | options), nats; None without choices.
        exact: greedy generation would write the answer.
    """

    layers: tuple[tuple[int, ...], ...]
    scales: tuple[float, ...]
    probability: Tensor
    choice_nll: Tensor | None
    exact: Tensor


def grid(
    model: LanguageModel,
    vector: Intervention,
    template: Template,
    examples: Sequence[Example],
    *,
    scales: Sequence[float] = SCALES,
    places: Sequence[Sequence[int]] | None = None,
    progress: bool = True,
) -> Grid:
    """Score a vector at many places and scales on labelled examples, in one pass over their prefixes.

    Args:
        model: the language model.
        vector: from `cast.extract`.
        template: writes the prompts.
        examples: labelled.
        scales: strengths.
        places: layers that keep their vectors, each a candidate; default: `places_of` the vector.
        progress: show a progress bar.
    """
    places = places_of(model, vector) if places is None else places
    candidates = [vector.select(layers=layers) for layers in places]
    scales = (0.0, *(scale for scale in scales if scale))
    answers = [template.encode(e.input, answer=e.output) for e in examples]
    options = [template.encode(e.input, answer=option, terminate=False) for e in examples for option in e.choices or ()]
    total = len(candidates) * len(answers + options)
    with tqdm(total=total, desc="choosing layers and scale", disable=not progress, leave=False) as bar:
        found = sweep(model, candidates, scales, answers, on_candidate=bar.update)
        probability = (-found.nll * torch.tensor([len(prompt.answer) for prompt in answers])).exp()
        choice_nll = _choice_nll(model, candidates, scales, examples, options, bar.update) if options else None
    return Grid(tuple(map(tuple, places)), scales, probability, choice_nll, found.greedy)


def _choice_nll(
    model: LanguageModel,
    candidates: Sequence[Intervention],
    scales: Sequence[float],
    examples: Sequence[Example],
    options: Sequence[Prompt],
    on_candidate: Callable[[int], object],
) -> Tensor:
    """(candidates, scales, examples with choices)."""
    mean = sweep(model, candidates, scales, options, on_candidate=on_candidate).nll
    logs = -mean * torch.tensor([len(prompt.answer) for prompt in options])  # log-likelihood of the whole option
    counts = [len(e.choices) for e in examples if e.choices]
    right = [e.label or 0 for e in examples if e.choices]
    columns = [
        -part.log_softmax(dim=-1)[..., i] for part, i in zip(torch.split(logs, counts, dim=-1), right, strict=True)
    ]  # fmt: skip
    return torch.stack(columns, dim=-1)


def places_of(model: LanguageModel, vector: Intervention) -> list[tuple[int, ...]]:
    """Layers to try: each alone at `residual`, where vectors add up along the depth; groups of them at `heads`."""
    layers = tuple(vector.layers)
    if vector.sites == ["residual"]:
        return [(layer,) for layer in layers]
    depth = len(find_decoder(model.llm).layers)
    bounds = [(0, depth), (0, 2 * depth // 3), (depth // 3, depth), (0, depth // 2), (depth // 2, depth)]
    bounds += [(third * depth // 3, (third + 1) * depth // 3) for third in range(3)]
    places = [tuple(layer for layer in layers if low <= layer < high) for low, high in bounds]
    return [place for place in dict.fromkeys(places) if place]


def choose(found: Grid) -> Choice:
    """The place and scale that make answers likeliest, among those that leave the right option's odds no worse.

    No vector, scale 0, is among them always: the choice may be that, and then does not help.
    """
    gains = found.probability.nan_to_num(nan=0.0) - found.probability[:, :1]  # a NaN: the model overflowed
    means = gains.mean(dim=-1)
    choice_gains = None if found.choice_nll is None else (found.choice_nll[:, :1] - found.choice_nll).mean(dim=-1)
    if choice_gains is not None:
        means = means.where(choice_gains.nan_to_num(nan=-torch.inf) >= 0, -torch.inf)
    best = int(means.argmax())
    place, scale = divmod(best, len(found.scales))
    interval = bootstrap_interval(gains[place, scale])
    return Choice(
        layers=found.layers[place],
        scale=found.scales[scale],
        helps=interval.low > 0,
        gain=interval.mean,
        gain_low=interval.low,
        gain_high=interval.high,
        choice_gain=None if choice_gains is None else float(choice_gains[place, scale]),
        examples=interval.n,
    )
