"""A folder for each run, which no other run gets."""

from __future__ import annotations

from pathlib import Path

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


def with_csv(logger: TensorBoardLogger, version: int) -> list[Logger]:
    """TensorBoard's logger in the folder of this version, and one that writes the same values to `metrics.csv`."""
    logger._version = version
    return [logger, CSVLogger(logger.save_dir, name=logger.name, version=version)]
