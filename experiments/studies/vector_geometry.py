"""Difference vectors of tasks compared by layer, beside what chance and what all demonstrations share would give."""

from __future__ import annotations

import torch
from torch import Tensor

from cast.extraction import Contrast
from laai.compare import Row


def compare_tasks(tasks: dict[str, Contrast], seed: int) -> Row:
    """Cosines between tasks in full dimension, at site `heads` of each layer and over all layers at once.

    Args:
        tasks: each task's kept activations, of as many samples each.
        seed: draws halves, signs and partners.

    Returns:
        By layer: `raw` and `centred` (mean over pairs of tasks; centred is less the mean over the n tasks, which forces
        about -1/(n - 1) on it whatever the vectors are), `same` (the means of two halves of a task's samples, mean over
        tasks: each of half as many samples as the vector, and with demonstrations from one pool, which overlap), and
        nulls: `signs` (each sample's difference with a random sign), `shuffled` (few-shot activations of a task less
        zero-shot ones of other tasks' samples), `random` (the expected absolute cosine of random directions; their
        signed cosine, which the others are means of, has the mean 0). `matrix` and `centred_matrix` hold all pairs of
        tasks, all layers as one vector; `similarity` the cosines of the tasks' mean zero-shot states; `points` the
        first two principal components of all samples' differences.
    """
    generator = torch.Generator().manual_seed(seed)
    states = {name: {key: (zero, diff) for key, zero, diff in contrast.states()} for name, contrast in tasks.items()}
    keys = list(next(iter(states.values())))
    zero, diff = (torch.stack([torch.cat([s[k][part] for k in keys], -1) for s in states.values()]) for part in (0, 1))
    widths = [states[next(iter(states))][key][0].shape[-1] for key in keys]
    count, samples = diff.shape[:2]
    half = torch.randperm(samples, generator=generator)
    signs = torch.randint(2, (count, samples, 1), generator=generator) * 2.0 - 1
    partner = (torch.arange(count)[:, None] + torch.randint(1, count, (count, samples), generator=generator)) % count
    others = zero[partner, torch.arange(samples).expand(count, -1)]
    vectors = {
        "raw": diff.mean(1),
        "centred": diff.mean(1) - diff.mean((0, 1)),
        "signs": (signs * diff).mean(1),
        "shuffled": (zero + diff - others).mean(1),
    }
    by_layer: dict[str, list[float]] = {
        name: [_between(part) for part in torch.split(v, widths, dim=-1)] for name, v in vectors.items()
    }
    halves = [diff[:, half[: samples // 2]].mean(1), diff[:, half[samples // 2 :]].mean(1)]
    parts = zip(*(torch.split(h, widths, dim=-1) for h in halves), strict=True)
    by_layer["same"] = [float(torch.cosine_similarity(a, b, dim=-1).mean()) for a, b in parts]
    by_layer["random"] = [(2 / (torch.pi * width)) ** 0.5 for width in widths]
    return {
        "layers": [layer for _, layer in keys],
        "by_layer": by_layer,
        "names": list(tasks),
        "matrix": _cosines(vectors["raw"]).tolist(),
        "centred_matrix": _cosines(vectors["centred"]).tolist(),
        "similarity": _cosines(zero.mean(1) - zero.mean((0, 1))).tolist(),
        "points": _components(diff),
    }


def _cosines(vectors: Tensor) -> Tensor:
    """(tasks, tasks)."""
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    return unit @ unit.T


def _between(vectors: Tensor) -> float:
    """Mean cosine of different tasks."""
    table, count = _cosines(vectors), len(vectors)
    return float((table.sum() - table.trace()) / (count * (count - 1)))


def _components(diff: Tensor) -> list[list[list[float]]]:
    """(tasks, samples, 2): each sample's difference, of unit length, along the first two principal components."""
    unit = torch.nn.functional.normalize(diff, dim=-1).flatten(0, 1)
    unit = unit - unit.mean(0)
    _, _, directions = torch.linalg.svd(unit, full_matrices=False)
    found: list[list[list[float]]] = (unit @ directions[:2].T).view(*diff.shape[:2], 2).tolist()
    return found
