"""A vector that makes the labels of a task equally likely before a query is read: part of what steering upsets.

A CAST vector carries its source's leaning to some words over others, and a small model leans to some labels by itself.
Batch calibration (2309.17249) takes each label's mean probability over some queries, of which no label is needed, off
its log-probability. Here a vector on the last layer's output, in the span of the labels' rows of the output head, does
that to the labels' first tokens, so that generation has it too and it travels in the same file. It looks at the first
tokens alone: made up for at its beginning, the unlikely rest of a long label would make greedy generation begin with
that label always, and then go on otherwise. And it raises all labels until the likeliest has, on each of those queries,
no lower odds against all other tokens than before: else words would win that are no label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from laai.engine import Engine
from laai.evaluation import label_offsets
from laai.models import LanguageModel
from laai.prompts import Template
from laai.steering import Intervention
from laai.tasks import Example

RIDGE = 1e-3
"""Added to the second moment of the output head, as a share of its mean diagonal, so that it can be inverted."""

PROBE = 0.01
"""Length of the vectors that the response is measured by, as a share of the state's; less where labels move far."""

FAR = 1.0
"""Nats that a probe may move its label by: further away the response is another."""

CLOSE, ENOUGH = 1e-3, 0.1
"""Nats from what is wanted at which the search ends, and at which its result serves."""

ROUNDS, HALVINGS = 8, 6


@torch.no_grad()
def label_prior(
    model: LanguageModel, vector: Intervention, template: Template, examples: Sequence[Example]
) -> Intervention | None:
    """The vector that, added to `vector`, shifts the labels' log-odds by `label_offsets`, all raised (see above).

    Args:
        vector: at positions `last_prompt`; of any scale.
        examples: all with the same choices; which of them is right is not looked at.

    Returns:
        One vector at the last layer's residual site, with the shifts by label in its provenance. None where it cannot
        serve: other positions, norms that are kept, choices that differ between examples or begin with the same token,
        a model that overflows on all examples or cannot be brought within `ENOUGH` of the shifts. Where it overflows on
        some examples, these are left out.
    """
    ids = shifted_tokens(vector, template, examples)
    if ids is None:
        return None
    last, engine = len(model.decoder.layers) - 1, Engine(model)
    rows = functional.normalize(_least_disturbing(model.head, ids), dim=-1)

    def shifted(weights: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds of each label against all that is none (examples, labels), and the last states' norms."""
        both = vector + _at(vector, last, weights @ rows)
        prompts = [template.encode(example.input) for example in examples]
        odds, norms = torch.zeros(len(examples), len(ids)), torch.zeros(len(examples))
        with both.on(model), engine.passes(prompts) as batches:
            for read in engine.activations(prompts, [("residual", last)], 32, batches):
                logits = read.logits.float()
                rest = logits.index_fill(1, torch.tensor(ids, device=logits.device), float("-inf"))
                odds[read.rows] = (logits[:, ids] - rest.logsumexp(dim=-1, keepdim=True)).cpu()
                norms[read.rows] = read.states["residual", last].float().norm(dim=-1).cpu()
        return odds, norms

    nothing = torch.zeros(len(ids))
    plain, norms = shifted(nothing)
    sound = plain.isfinite().all(dim=-1)
    if not sound.any():
        return None
    plain, norm = plain[sound], float(norms[sound].mean())
    found = label_offsets(plain)
    wanted = found + (plain.amax(dim=-1) - (plain + found).amax(dim=-1)).amax()
    weights = reach(lambda tried: (shifted(tried)[0][sound] - plain).mean(dim=0), wanted, PROBE * norm)
    if weights is None:
        return None
    shifts = dict(zip(examples[0].choices or (), [round(value, 4) for value in found.tolist()], strict=True))
    prior = _at(vector, last, weights @ rows)
    return prior.with_vectors(dict(prior.items()), provenance=replace(prior.provenance, label_prior=shifts))


def reach(change: Callable[[Tensor], Tensor], wanted: Tensor, length: float) -> Tensor | None:
    """Weights whose `change`, a function of as many values that is 0 at 0, comes to `wanted`; None beyond `ENOUGH`.

    Newton's method with the response measured once, by probes of a `length` at most, and then kept by Broyden's
    update: the final norm, the cap and the other tokens of a model bend it. Steps are halved until they bring it
    closer.
    """
    columns = []
    for unit in torch.eye(len(wanted)):
        probe = length * unit
        found = change(probe)
        if (far := float(found.abs().amax())) > FAR:
            probe = probe / far
            found = change(probe)
        columns.append(found / probe.sum())
    response = torch.stack(columns, dim=1)
    if not response.isfinite().all():
        return None
    weights, missing = torch.zeros_like(wanted), wanted
    for _ in range(ROUNDS):
        if missing.abs().amax() < CLOSE:
            break
        step = torch.linalg.pinv(response) @ missing
        for _ in range(HALVINGS):
            left = wanted - change(weights + step)
            if left.norm() < missing.norm():
                break
            step = step / 2
        else:
            break  # no closer: rounding, or out of reach
        response = response + torch.outer(missing - left - response @ step, step) / (step @ step)
        weights, missing = weights + step, left
    return weights if missing.abs().amax() < ENOUGH else None


def _least_disturbing(table: Tensor, ids: list[int]) -> Tensor:
    """(labels, width): directions that raise the labels' logits and change all tokens' least, by mean square."""
    mean = table.mean(dim=0, dtype=torch.float32)
    moment = torch.zeros(table.shape[1], table.shape[1], device=table.device)
    for start in range(0, len(table), 16384):  # a large table has no second copy in fp32
        part = table[start : start + 16384].float()
        moment += part.T @ part / len(table)
    moment.diagonal().add_(RIDGE * moment.diagonal().mean())
    found: Tensor = torch.linalg.solve(moment.cpu(), (table[ids].float() - mean).T.cpu()).T
    return found


def with_label_prior(
    model: LanguageModel, vector: Intervention, template: Template, examples: Sequence[Example]
) -> Intervention:
    """A vector, as it is to be applied, together with its `label_prior` (batch calibration, 2309.17249).

    Returns:
        Their sum, fp32 at scale 1, with the shifts by label in the provenance; `vector` itself where there is no prior.
    """
    prior = label_prior(model, vector, template, examples)
    if prior is None:
        return vector
    both = vector + prior
    made = vector.provenance.derived(f"{vector.provenance.label} + {prior.provenance.label}")
    return both.with_vectors(dict(both.items()), provenance=replace(made, label_prior=prior.provenance.label_prior))


def shifted_tokens(vector: Intervention, template: Template, examples: Sequence[Example]) -> list[int] | None:
    """The tokens that a `label_prior` of the vector shifts; None where it cannot have one, as is told there."""
    if vector.positions != "last_prompt" or vector.preserve_norm:
        return None
    return first_tokens(template, examples)


def first_tokens(template: Template, examples: Sequence[Example]) -> list[int] | None:
    """The token that each label begins with; None unless all examples have the same labels, each with its own."""
    if not examples or not examples[0].choices or len({example.choices for example in examples}) > 1:
        return None
    found = {
        tuple(template.encode(e.input, answer=option, terminate=False).answer[0] for option in e.choices or ())
        for e in examples
    }
    ids = found.pop()
    return list(ids) if not found and len(set(ids)) == len(ids) else None


def _at(vector: Intervention, layer: int, value: Tensor) -> Intervention:
    """A vector at the residual site of a layer, to be added to another intervention."""
    made = vector.provenance.model()
    return Intervention({("residual", layer): value}, positions=vector.positions, provenance=made)
