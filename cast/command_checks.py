"""What the commands look at before a model is loaded: minutes of work are not to end at a slip."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator

from cast.contrast_loop import check_precision
from laai.errors import UserError
from laai.tasks import Task, builtin_tasks, load_task


def load_with(columns: Mapping[str, str], names: Sequence[str]) -> Callable[[str], Task]:
    """A function that reads tasks by name: those that are not built in by their columns, and all with an instruction.

    Args:
        columns: as `load_task` takes them.
        names: of the tasks to be read.

    Raises:
        UserError: columns, and no task that takes them.
    """
    said = {field: text for field, text in columns.items() if field == "instruction"}
    if columns.keys() - said.keys() and all(name in builtin_tasks() for name in names):
        raise UserError("expected --columns with a file, folder or hf:NAME, found built-in tasks alone: leave it out")
    return lambda name: load_task(name, columns=said if name in builtin_tasks() else columns)


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
        trainer = pl.Trainer(
            devices=devices,
            num_nodes=nodes,
            precision=anything,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
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
