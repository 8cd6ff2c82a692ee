"""Vectors of several tasks in one, less what they have in common, and random ones of the same length."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add

from laai.models import LanguageModel
from laai.steering import Intervention


def combined(vectors: Sequence[Intervention], weights: Sequence[float]) -> Intervention:
    """The weighted mean of tasks' vectors.

    Args:
        vectors: at least one, of one model, each (width,) by site and layer; their scales count.
        weights: one for each, which sum to one.

    Returns:
        fp32 vectors at scale 1 (of a single one its own times its weight), whose provenance names all parts.

    Raises:
        UserError: other sites, layers or widths.
    """
    vectors = [weight * vector for vector, weight in zip(vectors, weights, strict=True)]
    if len(vectors) == 1:
        return vectors[0]
    total = reduce(add, vectors)
    parts = [{**(vector.provenance.cast or {}), "weight": vector.scale} for vector in vectors]
    made = {"combined": parts, "style": parts[0]["style"]}  # the style on top, where `laai evaluate` looks for it
    return total.with_vectors(dict(total.items()), provenance=replace(total.provenance, cast=made))


def centred(vector: Intervention, others: Sequence[Intervention]) -> Intervention:
    """The vector less the mean of several tasks' vectors: less what demonstrations of any task do.

    Args:
        vector: a CAST vector, (width,) by site and layer.
        others: at least one, extracted from the same model at the same sites and layers; may hold `vector` itself.

    Returns:
        fp32 vectors at scale 1, whose provenance names what was taken off.

    Raises:
        UserError: other sites, layers or widths.
    """
    mean = reduce(add, [other * (1 / len(others)) for other in others])
    made = {**(vector.provenance.cast or {}), "centred_on": [other.provenance.cast for other in others]}
    found = vector - mean
    return found.with_vectors(dict(found.items()), provenance=replace(found.provenance, cast=made))


def of_equal_norm(model: LanguageModel, vector: Intervention, seed: int) -> Intervention:
    """The control: random directions, uniform on the sphere, where and as long as those of `vector`; fp32."""
    draws = [Intervention.random(model, site, vector.select(site=site).layers, seed=seed) for site in vector.sites]
    directions = {key: direction for draw in draws for key, direction in draw.items()}
    return vector.with_vectors({key: v.norm() * directions[key] for key, v in vector.items()})


def own_seed(seed: int, *names: str) -> int:
    """A seed of what is named alone, so that controls of several transfers at one seed are independent draws."""
    return zlib.crc32(repr((seed, *names)).encode(errors="surrogatepass"))
