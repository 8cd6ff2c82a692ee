"""Vectors of several tasks in one, less what they have in common, and random ones of the same length."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from laai.intervention import Intervention
from laai.models import LanguageModel


def combined(vectors: Sequence[Intervention], weights: Sequence[float]) -> Intervention:
    """The weighted mean of tasks' vectors; `weights` sum to one."""
    vectors = [weight * vector for vector, weight in zip(vectors, weights, strict=True)]
    if len(vectors) == 1:
        return vectors[0]
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    parts = [vector.metadata["cast"] | {"weight": vector.scale} for vector in vectors]
    made = {"combined": parts, "style": parts[0]["style"]}  # the style on top, where `laai evaluate` looks for it
    return total.with_vectors(dict(total.items()), metadata=total.metadata | {"cast": made})


def centred(vector: Intervention, others: Sequence[Intervention]) -> Intervention:
    """The vector less the mean of several tasks' vectors, at scale 1: less what demonstrations of any task do.

    Raises:
        UserError: other sites, layers or widths.
    """
    mean = others[0] * (1 / len(others))
    for other in others[1:]:
        mean = mean + other * (1 / len(others))
    made = {"cast": vector.metadata.get("cast", {}) | {"centred_on": [o.metadata.get("cast") for o in others]}}
    found = vector - mean
    return found.with_vectors(dict(found.items()), metadata=found.metadata | made)


def of_equal_norm(model: LanguageModel, vector: Intervention, seed: int) -> Intervention:
    """Random directions with the norms of `vector`, vector by vector: the control."""
    draws = [Intervention.random(model, site, vector.select(site=site).layers, seed=seed) for site in vector.sites]
    directions = {key: direction for draw in draws for key, direction in draw.items()}
    return vector.with_vectors({key: v.norm() * directions[key] for key, v in vector.items()})


def own_seed(seed: int, *names: str) -> int:
    """A seed of what is named alone, so that controls of several transfers at one seed are independent draws."""
    return zlib.crc32(repr((seed, *names)).encode(errors="surrogatepass"))
