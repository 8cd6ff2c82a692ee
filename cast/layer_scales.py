"""A scale for each part of the depth: a chosen vector, part by part stronger, weaker or left out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cast.choice import right_options
from laai.intervention import Intervention
from laai.layers import find_decoder
from laai.metrics import bootstrap_interval
from laai.models import LanguageModel
from laai.prompts import Template
from laai.sweep import sweep
from laai.tasks import Example

MULTIPLES = (0.0, 0.5, 1.5, 2.0)


def scale_by_layer(
    model: LanguageModel,
    vector: Intervention,
    template: Template,
    examples: Sequence[Example],
    *,
    parts: int = 6,
    multiples: Sequence[float] = MULTIPLES,
    calibrate: bool = True,
) -> Intervention:
    """Scale parts of a vector's layers, one after the other, wherever that makes answers likelier.

    One pass from the last layers to the first. As in `cast.choice.choose`, a change is kept that raises the mean
    probability of the whole answer, unless the right option's share falls below that of no vector by more than chance.

    Args:
        model: the language model.
        vector: at its chosen layers and scale, which is multiplied in.
        template: writes the prompts.
        examples: labelled; those that layers and scale were chosen on.
        parts: of the whole depth, each with its own factor.
        multiples: factors to try beside 1.
        calibrate: options are compared with a `label_prior`, where there is one.

    Returns:
        The vector at scale 1; its layers' factors are in its metadata, as `layer_scales`.
    """
    depth = len(find_decoder(model.llm).layers)
    answers = [template.encode(e.input, answer=e.output) for e in examples]
    tokens = torch.tensor([len(prompt.answer) for prompt in answers])
    factors = dict.fromkeys(vector.layers, 1.0)

    def scaled(by: dict[int, float]) -> Intervention:
        return vector.with_vectors({key: vector.scale * by[key[1]] * v for key, v in vector.items()}, scale=1.0)

    def likely(tries: Sequence[dict[int, float]]) -> list[float]:
        nll = sweep(model, [scaled(by) for by in tries], [1.0], answers).nll[:, 0]
        return (-nll * tokens).exp().nan_to_num(nan=0.0).mean(-1).tolist()

    (best,) = likely([factors])
    before = None
    if any(e.choices for e in examples):
        before = right_options(model, vector, template, examples, calibrate=calibrate)(vector.layers, 0.0)
    for part in reversed(range(parts)):
        inside = set(range(part * depth // parts, (part + 1) * depth // parts)) & factors.keys()
        tries = [factors | dict.fromkeys(inside, factor) for factor in multiples]
        found = likely(tries) if inside else []
        for better, tried in sorted(zip(found, tries, strict=False), key=lambda one: -one[0]):
            if better <= best:
                break
            if before is not None:
                right = right_options(model, scaled(tried), template, examples, calibrate=calibrate)
                change = (right(vector.layers, 1.0).nan_to_num(nan=0.0) - before)[before.isfinite()]
                if len(change) and bootstrap_interval(change).high < 0:
                    continue
            best, factors = better, tried
            break
    made = scaled(factors)
    made.metadata["layer_scales"] = {str(layer): factor for layer, factor in factors.items()}
    return made
