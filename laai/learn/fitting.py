"""`fit`: the Python way to learn an intervention; `python train.py` is the command line's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from laai.learn.module import LAAIModule
from laai.learn.stopping import StopAtBest, StopAtLoss
from laai.models import LanguageModel
from laai.runtime import FewShotDataModule, StepProgress, ignore_noise
from laai.steering import Intervention
from laai.tasks import Task
from laai.vocabulary import Style


def fit(
    model: LanguageModel,
    task: Task | str,
    num_examples: int = 10,
    *,
    init: Intervention | str | Path = "zero",
    steps: int = 30,
    stop_at_loss: float = 0.1,
    seed: int = 0,
    validation: int = 0,
    batch_size: int | None = None,
    style: Style = "plain",
    trainer: pl.Trainer | None = None,
    callbacks: Sequence[pl.Callback] = (),
    **options: Any,
) -> Intervention:
    """Learn vectors for a task from a few of its labelled examples (LAAI, arXiv 2502.06115).

    Args:
        model: the frozen language model; bitwise as it was afterwards.
        task: a `Task`, or what `load_task` takes.
        num_examples: labelled training examples.
        init: an intervention to start from (a CAST vector, say), `zero`, `random`, or the path of a file.
        steps: optimiser steps at most; unless `trainer` is given.
        stop_at_loss: stop before that once the training loss is below this; where there are no validation examples.
        seed: draws the examples.
        validation: further examples held back for early stopping by the default trainer.
        batch_size: examples per step; None for all.
        style: prompt style, `plain` or `chat`.
        trainer: a Lightning trainer of one's own; default: one on the best single device that writes nothing.
        callbacks: for the default trainer.
        options: further arguments of `LAAIModule`: site, layers, positions, init_scale, l1, group_l2, optimizer, …

    Returns:
        The learned intervention on the model's device, with its settings in its provenance.

    Raises:
        UserError: the task is too small, or an option does not fit the model.
    """
    data = FewShotDataModule(
        task, num_examples, seed=seed, validation=validation, test=0, batch_size=batch_size, style=style
    )
    given = init if isinstance(init, Intervention) else None
    module = LAAIModule(base_model=model.name, init="zero" if given is not None else str(init), **options)
    module.language_model, module.given_start = model, given
    stop = StopAtBest() if validation else StopAtLoss(stop_at_loss)
    trainer = trainer or _quiet_trainer(steps, [*callbacks, StepProgress(), stop])
    device = model.device
    try:
        with warnings.catch_warnings():
            ignore_noise()
            trainer.fit(module, datamodule=data)
    finally:
        if hasattr(module, "steered"):
            module.steered.detach()
        model.to(device)  # Lightning leaves the model where it trained it, or moves it to the CPU
    return module.learned().to(device)


def _quiet_trainer(steps: int, callbacks: Sequence[pl.Callback]) -> pl.Trainer:
    """One device, no logs, no checkpoints."""
    return pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
    )
