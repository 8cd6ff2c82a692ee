"""Which layers to steer: as the user says, or by depth."""

from __future__ import annotations

import math

from laai.errors import UserError
from laai.models import Decoder
from laai.vocabulary import Site

AUTO_DEPTH = 2 / 3
"""Share of the layers, from the first, that `auto` steers at `heads`. Against all layers it is better where the task
asks for knowledge, worse where it asks for form, and equal on the mean (experiments/compare_methods.py, `laai-all`)."""


def resolve_layers(layers: str | int | list[int], decoder: Decoder, site: Site) -> list[int]:
    """The layers that `auto`, `all`, a number or a list of numbers stand for, ascending.

    `auto` is the first two thirds; at `residual`, `laai.layer_profile` chooses one from the examples instead.

    Raises:
        UserError: a layer that the model does not have, or one without heads at site `heads`.
    """
    if isinstance(layers, str):
        steerable = decoder.steerable(site)
        return steerable if layers == "all" else steerable[: math.ceil(AUTO_DEPTH * len(steerable))]
    wanted = [layers] if isinstance(layers, int) else list(layers)
    if not wanted or len(set(wanted)) != len(wanted):
        raise UserError(f"layers must be auto, all, a number or a list of different numbers, found {wanted}")
    for layer in wanted:
        decoder.width(site, layer)
    return sorted(wanted)
