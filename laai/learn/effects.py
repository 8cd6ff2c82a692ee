"""What each layer's vector is worth: the loss without it."""

from __future__ import annotations

from collections.abc import Sequence

from laai.engine import Engine
from laai.prompts import Prompt
from laai.steering import Intervention


def layer_effects(engine: Engine, intervention: Intervention, prompts: Sequence[Prompt]) -> dict[int, float]:
    """Rise of the mean negative log-likelihood per answer token when one layer's vectors are left out, by layer.

    Args:
        engine: of the language model, with no vectors attached.
        intervention: the vectors; one forward for each of their layers.
        prompts: with answers.

    Returns:
        layer -> nats; negative where the layer does harm.
    """
    layers = intervention.layers
    rests = [[other for other in layers if other != layer] for layer in layers]
    without = [intervention.select(layers=rest) if rest else 0 * intervention for rest in rests]
    found = engine.sweep([intervention, *without], [1.0], prompts).nll.mean(dim=-1).squeeze(-1)
    return {layer: float(nll - found[0]) for layer, nll in zip(layers, found[1:], strict=True)}
