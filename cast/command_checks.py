"""What the commands look at before a model is loaded: minutes of work are not to end at a slip."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator

from cast.contrast_loop import check_precision
from laai.errors import UserError
from laai.files import check_name
from laai.tasks import Task, builtin_tasks, load_task


def check_output(name: str, option: str = "--output") -> Path:
    """The path of a file to be written later; nothing is left behind.

    Args:
        name: as the user gave it.
        option: that it was given by.

    Raises:
        UserError: a folder, or a place where no file can be made.
    """
    path = check_name(name)
    folder = path.absolute().parent
    try:
        if path.is_dir():
            raise UserError(f"expected {option} as a file to write, found the folder {path}: name a file in it")
        while not folder.exists():
            folder = folder.parent
        # Tried rather than asked: permissions, read-only disks and names that are too long all show by it.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}.partial-00.0.", suffix=".tmp"):
            pass
    except OSError as error:
        found = f"{path}: {error.strerror or error}"
        raise UserError(f"expected {option} as a file that can be written, found {found}; name another") from error
    return path


def load_with(columns: Mapping[str, str], names: Sequence[str]) -> Callable[[str], Task]:
    """A function that reads tasks by name: those that are not built in, by their columns.

    Args:
        columns: as `load_task` takes them.
        names: of the tasks to be read.

    Raises:
        UserError: columns, and no task that takes them.
    """
    if columns and all(name in builtin_tasks() for name in names):
        raise UserError("expected --columns with a file, folder or hf:NAME, found built-in tasks alone: leave it out")
    return lambda name: load_task(name, columns=None if name in builtin_tasks() else columns)


def trainer_of(devices: str, precision: str) -> pl.Trainer:
    """A quiet trainer for extractions and tests.

    Args:
        devices: a number, or auto.
        precision: Lightning's, one that leaves the model as it is.

    Raises:
        UserError: there are not so many devices, no such precision, or one that would convert the model.
    """
    if devices != "auto" and not (devices.isdecimal() and int(devices) > 0):
        raise UserError(f"expected --devices as a number from 1 on, or auto, found {devices!r}")
    anything: Any = precision  # what is not among Lightning's own is caught
    try:
        trainer = pl.Trainer(
            devices=devices,
            precision=anything,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, ImportError) as error:
        asked = f"--devices {devices} --precision {precision}"
        raise UserError(f"expected devices and a precision that this machine has, found {asked}: {error}") from error
    cores = os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > cores:
        raise UserError(f"expected --devices as at most {cores}, this machine's CPU cores, found {devices}")
    check_precision(trainer)
    return trainer
