"""`fit`: the Python way to learn an intervention; `python train.py` is the command line's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from cast.extraction import CastStart
from laai.errors import UserError
from laai.learn.module import LAAIModule
from laai.learn.recipe import Recipe
from laai.learn.stopping import StopAtBest, StopAtLoss
from laai.models import LanguageModel
from laai.runtime import FewShotDataModule, StepProgress, ignore_noise, quiet_trainer
from laai.steering import Intervention
from laai.tasks import Task, load_task
from laai.vocabulary import Style


def fit(
    model: LanguageModel, task: Task | str, num_examples: int = 10, *, init: Intervention | str | Path = "cast",
    steps: int | None = None, stop_at_loss: float | None = None, seed: int = 0, validation: int = 0,
    batch_size: int | None = None, style: Style = "plain", trainer: pl.Trainer | None = None,
    callbacks: Sequence[pl.Callback] = (), cast: CastStart | None = None, **options: Any,
) -> Intervention:  # fmt: skip
    """Learn vectors for a task from a few of its labelled examples (LAAI, arXiv 2502.06115).

    As `python train.py` does: by default the same recipe on the same examples, to the bit.

    Args:
        model: the frozen language model; bitwise as it was afterwards.
        task: a `Task`, or what `load_task` takes.
        num_examples: labelled training examples.
        init: an intervention to start from, `cast` (the vector of these examples themselves), `zero`, `random`, or the
            path of a file.
        steps: optimiser steps at most; default: 30.
        stop_at_loss: stop before that once the training loss is below this, 0.1 nats per token by default; where there
            are no validation examples.
        seed: draws the examples.
        validation: further examples held back for early stopping by the default trainer.
        batch_size: examples per step; None for all.
        style: prompt style, `plain` or `chat`.
        trainer: a Lightning trainer of one's own, which says when to stop; default: one on the best single device that
            writes nothing.
        callbacks: for the default trainer.
        cast: how a CAST start is extracted from other tasks (`source`).
        options: further fields of `Recipe`: site, layers, positions, init_scale, l1, group_l2, optimizer, …

    Returns:
        The learned intervention on the model's device, with its settings in its provenance.

    Raises:
        UserError: the task is too small, or an option does not fit the model or the other options.
    """
    given = init if isinstance(init, Intervention) else None
    recipe = Recipe(base_model=model.name, init="zero" if given is not None else str(init), **options)
    data = _data(task, num_examples, seed=seed, validation=validation, batch_size=batch_size, style=style)
    module = LAAIModule(recipe, data, model, start=given, cast=cast)
    if trainer is None:
        stop = StopAtBest() if validation else StopAtLoss(0.1 if stop_at_loss is None else stop_at_loss)
        limit = 30 if steps is None else steps
        trainer = quiet_trainer([*callbacks, StepProgress(), stop], max_steps=limit)
    elif callbacks or steps is not None or stop_at_loss is not None:
        raise UserError(
            "expected steps, stop_at_loss and callbacks in the trainer, found some beside it: give it those"
        )
    return _learned(module, trainer)


def _learned(module: LAAIModule, trainer: pl.Trainer) -> Intervention:
    """The vectors that a trainer learns; the model is left as and where it was."""
    model = module.language_model
    device = model.device
    try:
        with warnings.catch_warnings():
            ignore_noise()
            trainer.fit(module, datamodule=module.data)
    finally:
        if hasattr(module, "steered"):
            module.steered.detach()
        model.to(device)  # Lightning leaves the model where it trained it, or moves it to the CPU
    return module.learned().to(device)


def _data(task: Task | str, num_examples: int, **options: Any) -> FewShotDataModule:
    """The command's own draw: what it would test on is not learned from, unless the task has no more."""
    task = task if isinstance(task, Task) else load_task(task)
    try:
        return FewShotDataModule(task, num_examples, **options)
    except UserError:
        return FewShotDataModule(task, num_examples, test=0, **options)
