"""Where and how strongly a vector goes, from a few labelled examples: the search from start to end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cast.choice import Choice, choose, grid, right_options
from cast.layer_scales import scale_by_layer
from laai.intervention import Intervention
from laai.models import LanguageModel
from laai.prompts import Template
from laai.tasks import Example


def choose_place(
    model: LanguageModel,
    vector: Intervention,
    template: Template,
    examples: Sequence[Example],
    *,
    calibrate: bool = True,
    by_layer: bool = False,
    **options: Any,
) -> Choice:
    """`cast.choice.choose` from the `grid` of a vector, then, if wanted, `scale_by_layer`.

    Args:
        model: the language model.
        vector: from `cast.extract`.
        template: writes the prompts.
        examples: labelled; where some have choices, places that cost right options are passed over.
        calibrate: options are compared with the label prior that goes with the vector.
        by_layer: look for a scale for each part of the depth too.
        options: further arguments of `grid`: scales, places, progress.
    """
    found = grid(model, vector, template, examples, **options)
    choices = any(example.choices for example in examples)
    right = right_options(model, vector, template, examples, calibrate=calibrate) if choices else None
    choice = choose(found, right)
    return scale_by_layer(model, vector, template, examples, choice, calibrate=calibrate) if by_layer else choice
