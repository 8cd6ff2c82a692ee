"""Checkpoints that survive: whole or absent, safe to read, and at points from which a run goes on exactly as it was."""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from laai.errors import UserError
from laai.files import write_atomically

EVERY_SECONDS = 10.0


class RunCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint after each epoch and its validation, and in the middle of long ones.

    A step that ends an epoch is saved when the epoch's validation and early stopping have had their say: a run that
    goes on from there does what the uninterrupted one did.

    Args:
        dirpath: folder; default: `checkpoints` in the logger's.
        every_seconds: at least so long between two checkpoints within an epoch.
    """

    def __init__(self, dirpath: str | Path | None = None, every_seconds: float = EVERY_SECONDS) -> None:
        super().__init__(dirpath, save_last=True, filename="{step}")
        self._every, self._saved_at = every_seconds, time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Save within an epoch, after a step, if the last time is long ago."""
        within = not (trainer.is_last_batch or trainer.fit_loop._should_accumulate())
        if not within or self._should_skip_saving_checkpoint(trainer):
            return
        if trainer.strategy.broadcast(time.monotonic() - self._saved_at >= self._every):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self._saved_at = time.monotonic()


class CheckpointFiles(TorchCheckpointIO):
    """Writes checkpoints atomically, and reads none that could run code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; raises UserError if the disk is full, and then leaves an older file as it was."""
        whole = io.BytesIO()  # a write of torch's own that fails says no more than "iostream error"
        torch.save(checkpoint, whole)
        write_atomically(Path(path), lambda temporary: temporary.write_bytes(whole.getvalue()))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint of tensors and plain values.

        Raises:
            UserError: the file is missing, damaged, no checkpoint of this project, or holds code.
        """
        try:
            found = torch.load(path, map_location=map_location, weights_only=True)
        except FileNotFoundError as error:
            raise UserError(f"expected a checkpoint at {path}, found no file") from error
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            kind = "other objects than tensors" if isinstance(error, pickle.UnpicklingError) else "a damaged file"
            raise UserError(f"expected a checkpoint of this project at {path}, found {kind}") from error
        if not isinstance(found, dict) or not {"state_dict", "laai", "loops"} <= found.keys():
            raise UserError(f"expected a checkpoint of this project at {path}, found another file")
        return found


def check_belongs(
    checkpoint: Mapping[str, Any], identity: Mapping[str, str | None], names: Iterable[str], data: Mapping[str, Any]
) -> None:
    """Refuse a checkpoint of another model or other data, or one whose vectors are not exactly those named.

    Lightning would load what it finds and leave the rest at zero.

    Raises:
        UserError: with what was expected and what was found.
    """
    made_for = checkpoint.get("laai") or {}
    if made_for.get("config_hash") != identity["config_hash"]:
        raise UserError(f"the checkpoint was made for {made_for.get('base_model')}, not for {identity['base_model']}")
    if made_for.get("revision") and identity["revision"] and made_for["revision"] != identity["revision"]:
        raise UserError(
            f"the checkpoint was made for revision {made_for['revision']}, not for {identity['revision']}, "
            f"of {identity['base_model']}"
        )
    learned = made_for.get("data")
    if learned and any(learned.get(key, data[key]) != data[key] for key in ("examples", "style", "instruction")):
        raise UserError(
            f"the checkpoint learned from {_told(learned)}, this run has {_told(data)}, or the file has changed: "
            "go on with the options that the run began with"
        )
    expected, found = set(names), set(checkpoint["state_dict"])
    if expected != found:
        raise UserError(f"the checkpoint's vectors differ from this run's: {sorted(expected ^ found)[:4]}")


def _told(data: Mapping[str, Any]) -> str:
    under = f" under {data['instruction']!r}" if data.get("instruction") else ""
    return f"{data['num_examples']} examples of {data['task']}{under} (seed {data['seed']}, {data['style']})"


def newest_checkpoint(runs: Path) -> Path:
    """The last checkpoint of the run below this folder that saved one last.

    Raises:
        UserError: there is none.
    """
    found = [(path.stat().st_mtime_ns, path) for path in runs.glob("*/checkpoints/last.ckpt")]
    if not found:
        raise UserError(
            f"expected a run with a checkpoint below {runs}, found none: leave out --ckpt_path to start one"
        )
    return max(found)[1]
