"""Whether a forward after a kept prefix gives what the whole forward gives: asked before it is relied on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from laai.engine.forward import answer_logits, token_nll
from laai.engine.frozen import Agreed, FrozenBatch, Way
from laai.engine.prefix import rows_of, run_prefix, stack_rows
from laai.models import LanguageModel
from laai.prompts import IGNORE, Batch
from laai.steering import Intervention

FLOOR = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""By the dtype of the computation: a difference in a token's NLL, in nats, that is never held against a way."""

NOISES = (0.05, 0.5, 5.0)
"""Standard deviations to disturb vectors by, until the disturbance is seen."""


@torch.no_grad()
def find_way(
    model: LanguageModel,
    batch: Batch,
    below: Sequence[nn.Module] = (),
    intervention: Intervention | None = None,
    ways: Sequence[Way] = get_args(Way),
) -> Agreed | None:
    """The first way that agrees with the whole forward on two examples of a batch, its shortest and its longest.

    The examples' prefixes are run apart and put together, as they are in use. Vectors are disturbed meanwhile, so far
    that it shows in the whole forward, as vectors of zeros would agree with anything. A way may differ as much as the
    whole forward differs from itself under more padding, times a few.

    Args:
        model: with the vectors attached if there are any.
        batch: prompts with their answers.
        below: layers to skip if that agrees.
        intervention: the vectors.
        ways: what to try.

    Returns:
        How to attend, and whether all of `below` can be skipped. None if every way differs.
    """
    lengths = batch.prefix_mask.sum(-1).tolist()
    by_length = sorted((i for i in range(len(lengths)) if lengths[i]), key=lambda i: lengths[i])
    probe = batch.rows_at(sorted({by_length[0], by_length[-1]}))
    if bool((probe.labels == IGNORE).all()):  # bare prompts: what the model would say stands for the answers
        likeliest = answer_logits(model, probe).argmax(-1)
        probe = probe._replace(labels=likeliest.where(probe.suffix_mask.bool(), IGNORE))
    plain = _nll(model, probe)
    near = FLOOR.get(computing_dtype(model), FLOOR[torch.bfloat16])
    padded = _nll(model, _padded(probe))[:, : plain.shape[1]]
    near = max(near * (1 + float(plain.max())), 8 * float((padded - plain).abs().max()))
    for noise in NOISES if intervention is not None else (0.0,):
        with nullcontext() if intervention is None else disturbed(intervention, noise):
            whole = plain if intervention is None else _nll(model, probe)
            if intervention is None or float((whole - plain).abs().max()) > 10 * near or noise == NOISES[-1]:
                cases = [Agreed(way, skips) for way in ways for skips in (True, False) if skips or below]
                return next((case for case in cases if _agrees(model, probe, whole, near, below, case)), None)
    return None


def _agrees(
    model: LanguageModel, probe: Batch, whole: Tensor, near: float, below: Sequence[nn.Module], case: Agreed
) -> bool:
    try:
        alone = [probe.rows_at([i]) for i in range(len(probe.rows))]
        rows = [rows_of(run_prefix(model, one.prefix_ids, one.prefix_mask))[0] for one in alone]
        frozen = FrozenBatch(model, probe, stack_rows(rows, probe.prefix_ids.device), case.way, skips=case.skips)
        found = [token_nll(frozen.run(below), probe.labels) for _ in range(2)]  # skipped layers are noted first
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # foreign modelling code may fail in any way on what it was not made for
        logging.getLogger("laai").debug("after a kept prefix, %s: %r", case.way, error)
        return False
    return all(float((nll - whole).abs().max()) <= near for nll in found)


def _nll(model: LanguageModel, batch: Batch) -> Tensor:
    return token_nll(answer_logits(model, batch), batch.labels)


def _padded(batch: Batch) -> Batch:
    """The batch with three more columns of padding before each prefix and two after each suffix."""
    ids, mask = (functional.pad(table, (3, 0)) for table in (batch.prefix_ids, batch.prefix_mask))
    after, real = (functional.pad(table, (0, 2)) for table in (batch.suffix_ids, batch.suffix_mask))
    return Batch(ids, mask, after, real, functional.pad(batch.labels, (0, 2), value=IGNORE), batch.rows)


@contextmanager
def disturbed(intervention: Intervention, noise: float) -> Iterator[None]:
    """Add noise to the vectors; afterwards they are bitwise as they were."""
    generator = torch.Generator().manual_seed(0)
    before = [vector.detach().clone() for vector in intervention.parameters()]
    try:
        for vector in intervention.parameters():
            vector.data += noise * torch.randn(vector.shape, generator=generator).to(vector.device)
        yield
    finally:
        for vector, kept in zip(intervention.parameters(), before, strict=True):
            vector.data.copy_(kept)


def computing_dtype(model: LanguageModel) -> torch.dtype:
    """What the model computes in: autocast's dtype, else its own."""
    parameter = next(model.llm.parameters())
    device = parameter.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else parameter.dtype
