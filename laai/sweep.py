"""Many vectors and strengths on the same prompts: one pass over the prefixes, then a short forward for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from laai.batches import by_length, to_device
from laai.engine import disturbed
from laai.forward import answer_logits, token_nll
from laai.frozen import FrozenBatch, find_way
from laai.hooks import Attachment, Edit, steer
from laai.intervention import Intervention
from laai.layers import find_decoder
from laai.models import LanguageModel
from laai.positions import Where
from laai.prefix import prefix_of
from laai.prompts import IGNORE, Batch, Prompt, collate, pad_token
from laai.skipping import unchanged_layers
from laai.steered import without_unlabelled_end


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
    """
    llm, decoder = model.llm, find_decoder(model.llm)
    below = [unchanged_layers(decoder, [key for key, _ in c.items()]) for c in candidates]
    shape = (len(candidates), len(scales), len(prompts))
    scores = SweepScores(torch.zeros(shape), torch.zeros(shape, dtype=torch.bool))
    for rows in by_length(prompts, batch_size):
        batch = without_unlabelled_end(to_device(collate([prompts[i] for i in rows], pad_token(model.tokenizer)), llm))
        frozen = freeze_for(model, batch, [c for c in candidates if c.positions != "all"])
        if frozen is not None:
            frozen.run(record=[layers[-1] for layers in below if layers])
        for index, candidate in enumerate(candidates):
            edits = {key: _edit(candidate, v, scales) for key, v in candidate.items()}
            attachment = Attachment(llm, edits, candidate.positions)
            try:
                if frozen is None or candidate.positions == "all":
                    logits = answer_logits(llm, batch.repeated(len(scales)))
                else:
                    logits = frozen.repeated(len(scales), below[index]).run(below[index])
            finally:
                attachment.detach()
            _score(scores, index, rows, logits, batch.repeated(len(scales)).labels)
            on_candidate(len(rows))
    return scores


def freeze_for(model: LanguageModel, batch: Batch, candidates: Sequence[Intervention]) -> FrozenBatch | None:
    """The batch with its prefix, as any of these vectors can use it; None where whole forwards are needed."""
    llm, decoder = model.llm, find_decoder(model.llm)
    if not candidates or not batch.prefix_ids.shape[1]:
        return None
    probe = max(candidates, key=lambda c: min(c.layers))  # what skips most
    with probe.on(model), disturbed(probe):
        found = find_way(llm, batch, unchanged_layers(decoder, [key for key, _ in probe.items()]))
    if found is None:
        return None
    way, below = found
    prefix = prefix_of(llm, batch.prefix_ids, batch.prefix_mask)
    return FrozenBatch(llm, batch, prefix, way, skips=bool(below))


def _edit(candidate: Intervention, vector: Tensor, scales: Sequence[float]) -> Edit:
    """Adds the vector at another scale in each row of a batch whose rows are repeated for the scales."""

    def edit(hidden: Tensor, where: Where) -> Tensor:
        strengths = candidate.scale * torch.tensor(scales, device=vector.device).repeat(len(hidden) // len(scales))
        return steer(hidden, strengths[:, None, None] * vector, where, candidate.preserve_norm)

    return edit


def _score(scores: SweepScores, index: int, rows: list[int], logits: Tensor, labels: Tensor) -> None:
    counts = (labels != IGNORE).sum(-1).clamp_min(1)
    nll = token_nll(logits, labels).sum(-1) / counts
    greedy = ((logits.argmax(-1) == labels) | (labels == IGNORE)).all(-1)
    for table, found in zip(scores, (nll, greedy), strict=True):
        table[index, :, rows] = found.view(len(rows), -1).T.to(table.device)
