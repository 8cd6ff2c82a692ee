"""Many vectors and strengths on the same prompts: one pass over the prefixes, then a short forward for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from laai.engine.agreement import find_way
from laai.engine.forward import answer_logits, token_nll
from laai.engine.frozen import FrozenBatch, Way
from laai.engine.prefix import run_prefix
from laai.engine.skipping import unchanged_layers
from laai.models import LanguageModel
from laai.prompts import IGNORE, Batch, Prompt, by_length, collate, to_device, without_unlabelled_end
from laai.steering import Attachment, Edit, Intervention, Where, check_fits, steer

Choice = tuple[Way, bool]
"""How to attend to a prefix, and whether layers can be skipped."""


class SweepScores(NamedTuple):
    """Scores by candidate, scale and example, each (candidates, scales, examples).

    Attributes:
        nll: mean negative log-likelihood per token of the answer, fp32, nats.
        greedy: bool, every token of the answer is the likeliest after those before it: what greedy generation would
            write, if it ends where the answer does.
    """

    nll: Tensor
    greedy: Tensor


@torch.no_grad()
def sweep(
    model: LanguageModel,
    candidates: Sequence[Intervention],
    scales: Sequence[float],
    prompts: Sequence[Prompt],
    *,
    batch_size: int = 32,
    on_candidate: Callable[[int], object] = lambda done: None,
) -> SweepScores:
    """Score each candidate at each scale on prompts with their answers.

    The prefixes are run once for all, the layers below a candidate's first vector once for all scales, and all scales
    of a candidate in one forward. Candidates at positions `all` have no such prefix: they cost a whole forward each.

    Args:
        model: the language model.
        candidates: interventions; their own scale is multiplied in. `vector.select(layers=[i])` for each layer makes a
            grid of layers and scales.
        scales: strengths.
        prompts: with answers.
        batch_size: prompts run at a time, each as often as there are scales.
        on_candidate: told the number of prompts whenever a candidate is done with a batch.

    Raises:
        UserError: a candidate does not fit the model.
    """
    for candidate in candidates:
        check_fits(candidate, model)
    llm, decoder = model.llm, model.decoder
    below = [unchanged_layers(decoder, [key for key, _ in c.items()]) for c in candidates]
    shape = (len(candidates), len(scales), len(prompts))
    scores = SweepScores(torch.zeros(shape), torch.zeros(shape, dtype=torch.bool))
    choice: Choice | None = None
    for number, rows in enumerate(by_length(prompts, batch_size)):
        batch = without_unlabelled_end(to_device(collate([prompts[i] for i in rows], model.pad), llm))
        if number == 0:
            choice = choose_way(model, batch, candidates)
        frozen = freeze(model, batch, choice)
        if frozen is not None:
            frozen.run(record=[layers[-1] for layers in below if layers])
        for index, candidate in enumerate(candidates):
            usable = frozen if candidate.positions != "all" else None
            alone = [[i] for i in range(len(scales))]  # whole prompts, which would fill the memory if repeated
            for places in [[*range(len(scales))]] if usable else alone:
                logits = _steered_logits(llm, batch, usable, below[index], candidate, [scales[i] for i in places])
                _score(scores, index, places, rows, logits, batch.repeated(len(places)).labels)
            on_candidate(len(rows))
    return scores


def _steered_logits(
    llm: nn.Module,
    batch: Batch,
    frozen: FrozenBatch | None,
    below: Sequence[nn.Module],
    candidate: Intervention,
    scales: Sequence[float],
) -> Tensor:
    """Logits (batch * scales, suffix tokens, vocabulary): each row at each scale in turn."""
    edits = {key: _edit(candidate, vector, scales) for key, vector in candidate.items()}
    attachment = Attachment(llm, edits, candidate.positions)
    try:
        if frozen is None:
            return answer_logits(llm, batch.repeated(len(scales)))
        return frozen.repeated(len(scales), below).run(below)
    finally:
        attachment.detach()


def choose_way(model: LanguageModel, batch: Batch, candidates: Sequence[Intervention]) -> Choice | None:
    """How a batch like this can be frozen for these vectors; None where whole forwards are needed."""
    free = [c for c in candidates if c.positions != "all"]
    if not free or not batch.prefix_ids.shape[1]:
        return None
    ranked = sorted(free, key=lambda c: min(c.layers))
    probe = ranked[len(ranked) // 2]  # it skips some layers and runs some
    with probe.on(model):
        below = unchanged_layers(model.decoder, [key for key, _ in probe.items()])
        found = find_way(model.llm, batch, below, probe)
    return None if found is None else (found[0], bool(found[1]) or not below)


def freeze(model: LanguageModel, batch: Batch, choice: Choice | None) -> FrozenBatch | None:
    """The batch with its prefix, run without any vector; None where it has none or none may be kept."""
    if choice is None or not batch.prefix_ids.shape[1]:
        return None
    prefix = run_prefix(model.llm, batch.prefix_ids, batch.prefix_mask)
    return None if prefix is None else FrozenBatch(model.llm, batch, prefix, choice[0], skips=choice[1])


def _edit(candidate: Intervention, vector: Tensor, scales: Sequence[float]) -> Edit:
    """Adds the vector at another scale in each row of a batch whose rows are repeated for the scales."""

    def edit(hidden: Tensor, where: Where) -> Tensor:
        strengths = candidate.scale * torch.tensor(scales, device=vector.device).repeat(len(hidden) // len(scales))
        return steer(hidden, strengths[:, None, None] * vector, where, candidate.preserve_norm)

    return edit


def _score(
    scores: SweepScores, index: int, chosen: Sequence[int], rows: list[int], logits: Tensor, labels: Tensor
) -> None:
    counts = (labels != IGNORE).sum(-1).clamp_min(1)
    nll = token_nll(logits, labels).sum(-1) / counts
    greedy = ((logits.argmax(-1) == labels) | (labels == IGNORE)).all(-1)
    for table, found in zip(scores, (nll, greedy), strict=True):
        for place, column in zip(chosen, found.view(len(rows), -1).T.to(table.device), strict=True):
            table[index, place, rows] = column
