"""A folder for each run, which no other run gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from laai.errors import UserError


def claim_version(runs: Path) -> int:
    """Make the folder `version_N` for the next N, and return N. Two runs that start at once get two folders.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        runs.mkdir(parents=True, exist_ok=True)
        taken = [int(p.name.removeprefix("version_")) for p in runs.glob("version_*") if p.name[8:].isdecimal()]
        version = max(taken, default=-1) + 1
        while True:
            try:
                (runs / f"version_{version}").mkdir()
            except FileExistsError:
                version += 1
            else:
                return version
    except OSError as error:
        raise UserError(f"expected a folder for runs at {runs}, which cannot be written: {error.strerror}") from error


def folder_options(given: Any, runs: Path) -> dict[str, Any]:
    """Trainer options that give a run with other loggers than TensorBoard's, or none, a folder in `runs` too.

    Trackers have no folder for each run, so that the next run would overwrite its files: a CSV logger before them has.
    """
    if given is True or (given and isinstance(_listed(given)[0], TensorBoardLogger | CSVLogger)):
        return {}
    version = claim_version(runs)
    if not given:
        return {"default_root_dir": runs / f"version_{version}"}
    return {"logger": [CSVLogger(str(runs.parent), name=runs.name, version=version), *_listed(given)]}


def _listed(loggers: Logger | list[Logger]) -> list[Logger]:
    return loggers if isinstance(loggers, list) else [loggers]


def with_csv(logger: TensorBoardLogger, version: int) -> list[Logger]:
    """TensorBoard's logger in the folder of this version, and one that writes the same values to `metrics.csv`."""
    logger._version = version
    return [logger, CSVLogger(logger.save_dir, name=logger.name, version=version)]
