"""Which layers to steer: as the user says, or chosen by depth or from the training examples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from laai.activations import last_token_statistics
from laai.errors import UserError
from laai.evaluate import to_device
from laai.forward import mean_nll
from laai.intervention import Intervention
from laai.layers import find_decoder
from laai.models import LanguageModel
from laai.prompts import Batch, Prompt, collate, pad_token
from laai.steered import SteeredLM
from laai.words import Positions, Site

AUTO_DEPTH = 2 / 3
"""Share of the layers, from the first, that `auto` steers at `heads`. Against all layers it is better where the task
asks for knowledge, worse where it asks for form, and equal on the mean (experiments/compare_methods.py, `laai-all`)."""


def resolve_layers(
    layers: str | int | list[int], model: LanguageModel, site: Site, positions: Positions, prompts: Sequence[Prompt]
) -> list[int]:
    """The layers that `auto`, `all`, a number or a list of numbers stand for, ascending.

    `auto` is the first two thirds at `heads`, and at `residual` the one that `choose_layer` finds.

    Raises:
        UserError: a layer that the model does not have, or one without heads at site `heads`.
    """
    decoder = find_decoder(model.llm)
    if layers == "auto" and site == "residual":
        return [choose_layer(model, site, positions, prompts)]
    if isinstance(layers, str):
        steerable = decoder.steerable(site)
        return steerable if layers == "all" else steerable[: math.ceil(AUTO_DEPTH * len(steerable))]
    wanted = [layers] if isinstance(layers, int) else list(layers)
    if not wanted or len(set(wanted)) != len(wanted):
        raise UserError(f"layers must be auto, all, a number or a list of different numbers, found {wanted}")
    for layer in wanted:
        decoder.width(site, layer)
    return sorted(wanted)


def choose_layer(
    model: LanguageModel,
    site: Site,
    positions: Positions,
    prompts: Sequence[Prompt],
    *,
    candidates: int = 8,
    steps: int = 8,
    rate: float = 0.03,
) -> int:
    """The layer whose vector, learned on one half of the examples, best predicts the other half.

    Two-fold cross-validation over evenly spaced layers, each by a short fit from zero.

    Args:
        model: the language model.
        site: where the vector is added.
        positions: which tokens are steered.
        prompts: training prompts with their answers, at least 2.
        candidates: layers to try, evenly spaced.
        steps: optimiser steps of each fit.
        rate: Adam's rate, in units of the activations' RMS.

    Raises:
        UserError: fewer than 2 training examples.
    """
    if len(prompts) < 2:
        raise UserError("layers=auto needs at least 2 training examples; name a layer instead")
    pad = pad_token(model.tokenizer)
    layers = _spread(find_decoder(model.llm).steerable(site), candidates)
    statistics = last_token_statistics(model.llm, prompts, site, layers, pad=pad)
    halves = [to_device(collate(half, pad), model.llm) for half in (prompts[::2], prompts[1::2])]
    folds = [(halves[0], halves[1]), (halves[1], halves[0])]
    scores: dict[int, float] = {}
    for layer in tqdm(layers, desc=f"choosing a layer at {site}", leave=False):
        start = Intervention.zeros(model, site, [layer], positions=positions)
        step = rate * statistics.rms(layer)
        scores[layer] = sum(_held_out_nll(model, start, learn, held, steps, step) for learn, held in folds)
    return min(scores, key=lambda layer: scores[layer])


def _held_out_nll(
    model: LanguageModel, start: Intervention, learn: Batch, held: Batch, steps: int, rate: float
) -> float:
    steered = SteeredLM(model.llm, start.with_vectors(dict(start.items())))
    try:
        optimizer = torch.optim.Adam(steered.intervention.parameters(), lr=rate)
        for _ in range(steps):
            loss: Tensor = mean_nll(steered(learn).nll, learn.labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            return float(mean_nll(steered(held).nll, held.labels))
    finally:
        steered.detach()


def _spread(layers: Sequence[int], count: int) -> list[int]:
    """At most `count` of the layers, evenly spaced, first and last among them."""
    if len(layers) <= count:
        return list(layers)
    return sorted({layers[round(i * (len(layers) - 1) / (count - 1))] for i in range(count)})
