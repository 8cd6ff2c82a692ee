"""Vectors that differ by row of a batch: a server's requests, several fits at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from laai.errors import UserError
from laai.models import LanguageModel
from laai.steering.hooks import Attachment, Edit, Key, steer
from laai.steering.intervention import Intervention
from laai.steering.positions import Where
from laai.steering.steering import refuse_misfit


def attach_rows(vectors: Sequence[Intervention], model: nn.Module | LanguageModel) -> Attachment:
    """Steer each row of a batch by an intervention of its own, until the returned attachment is detached.

    Each forward and `generate` must have as many rows as there are interventions, or a multiple where `generate`
    follows several beams or samples of each prompt. Gradients reach the vectors of each row. As a context manager:
    `with attach_rows([a, b], model): model.generate(...)`.

    Args:
        vectors: of equal sites and layers, positions and `preserve_norm`; scales may differ.
        model: a `LanguageModel` or a transformers causal LM.

    Raises:
        UserError: they differ in more, or one does not fit the model. Later, of a batch of other rows.
    """
    for what in ("positions", "preserve_norm"):
        if len(found := {getattr(one, what) for one in vectors}) != 1:
            raise UserError(f"expected interventions of equal {what} for the rows of a batch, found {sorted(found)}")
    if any(one.widths() != vectors[0].widths() for one in vectors):
        raise UserError(
            "expected interventions at equal sites and layers for the rows of a batch, found different ones"
        )
    for one in vectors:
        refuse_misfit(one, model)

    def edit_at(key: Key) -> Edit:
        def edit(hidden: Tensor, where: Where) -> Tensor:
            each, left = divmod(len(hidden), len(vectors))
            if left or not each:
                raise UserError(f"expected a batch of {len(vectors)} rows, or a multiple, found {len(hidden)}")
            table = torch.stack([(one.scale * one[key]).to(hidden.device) for one in vectors])
            return steer(hidden, table.repeat_interleave(each, dim=0)[:, None], where, vectors[0].preserve_norm)

        return edit

    return Attachment(model, {key: edit_at(key) for key in vectors[0].widths()}, vectors[0].positions)
