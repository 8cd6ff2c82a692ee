"""The one place where our own code makes trainers, and what is checked before a command's is made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ProgressBar

from laai.errors import UserError


def quiet_trainer(callbacks: Sequence[pl.Callback] = (), **options: Any) -> pl.Trainer:
    """A trainer on the best single device that writes nothing, and ends with its steps.

    Args:
        callbacks: a progress bar is shown only if one is among them.
        options: further ones of Lightning's trainer, which go before these.
    """
    shown = any(isinstance(callback, ProgressBar) for callback in callbacks)
    quiet: dict[str, Any] = {"devices": 1, "logger": False, "enable_checkpointing": False, "max_epochs": -1}
    quiet |= {"enable_model_summary": False, "enable_progress_bar": shown, "num_sanity_val_steps": 0}
    return pl.Trainer(callbacks=list(callbacks), **(quiet | options))


def trainer_of(devices: str, precision: str, nodes: int = 1) -> pl.Trainer:
    """A quiet trainer for extractions and tests.

    Args:
        devices: a number, or auto.
        precision: Lightning's, one that leaves the model as it is.
        nodes: machines, each with so many devices.

    Raises:
        UserError: there are not so many devices or machines, no such precision, or one that would convert the model.
    """
    if devices != "auto" and not (devices.isdecimal() and int(devices) > 0):
        raise UserError(f"expected --devices as a number from 1 on, or auto, found {devices!r}")
    if nodes < 1:
        raise UserError(f"expected --num_nodes as a number from 1 on, found {nodes}")
    anything: Any = precision  # what is not among Lightning's own is caught
    try:
        trainer = quiet_trainer(devices=devices, num_nodes=nodes, precision=anything)
        if environment := getattr(trainer.strategy, "cluster_environment", None):
            environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
    except (MisconfigurationException, ValueError, ImportError) as error:
        asked = f"--devices {devices} --num_nodes {nodes} --precision {precision}"
        raise UserError(f"expected devices and a precision that this machine has, found {asked}: {error}") from error
    cores = os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > cores:
        raise UserError(f"expected --devices as at most {cores}, this machine's CPU cores, found {devices}")
    check_precision(trainer)
    return trainer


Trainer = pl.Trainer
"""Lightning's own, for rooms that hand one through."""


PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
"""Lightning's precisions that leave the weights as they are."""


def check_precision(trainer: pl.Trainer) -> None:
    """Refuse a precision by which Lightning would convert the user's model for good.

    Raises:
        UserError: the precision is none of `PRECISIONS`.
    """
    if trainer.precision not in PRECISIONS:
        raise UserError(
            f"expected a precision that leaves the model as it is ({', '.join(PRECISIONS)}), found "
            f"{trainer.precision}, which would convert it for good: load the model with that dtype instead (--dtype)"
        )
