"""Where learning starts: zero, random or CAST vectors, a file, or an object."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from laai.errors import UserError
from laai.steering import Intervention, check_fits

if TYPE_CHECKING:
    from laai.learn.module import LAAIModule


def start_of(module: LAAIModule, layers: list[int]) -> Intervention:
    """The vectors before the first step, on the wanted layers, at scale 1."""
    zeros = Intervention.zeros(module.language_model, module.site, layers, positions=module.positions)
    if module.given_start is not None:
        start = module.given_start
    elif module.init == "zero":
        return zeros
    elif module.init == "random":
        units = Intervention.random(module.language_model, module.site, layers, seed=module.data.seed)
        size = {key: module.init_scale * module.rms[key[1]] * len(v) ** 0.5 for key, v in units.items()}
        return zeros.with_vectors({key: size[key] * v for key, v in units.items()})
    elif module.init == "cast":
        if module.cast_start is None:
            raise UserError("a cast start needs the callback cast.CastStart in the trainer's callbacks")
        start = module.init_scale * module.cast_start(module)
    else:
        start = Intervention.load(module.init, module.language_model)
    check_fits(start, module.language_model, "the start")
    have = {key: start.scale * v.detach() for key, v in start.items()}
    missing = [layer for layer in layers if (module.site, layer) not in have]
    if missing:
        raise UserError(f"the start has no vector at {module.site} on layers {missing}; choose others by layers")
    return zeros.with_vectors(
        {key: have[key] for key, _ in zeros.items()},
        provenance=replace(zeros.provenance, start=start.provenance.cast, seen=start.provenance.seen),
    )
