"""Runs that are stopped from outside or by an error: what is kept, and how to go on."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException

from laai.errors import UserError
from laai.learn.module import LAAIModule
from laai.runtime import on_sigterm


class Interruption(pl.Callback):
    """Stops at SIGTERM as at Ctrl-C, keeps the vectors so far, and says how to go on."""

    def _listen(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on SIGTERM ends the run at once, with its files in order; Lightning would end the step first."""
        on_sigterm(trainer, SIGTERMException)

    # At each start: Lightning puts its own handler first, which waits for processes that may be saving.
    on_fit_start = on_sanity_check_start = on_train_start = on_validation_start = on_test_start = _listen

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep the vectors as they are, and say where, and how to go on."""
        outside = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        if not trainer.is_global_zero or not (outside or isinstance(exception, UserError)):
            return
        if not isinstance(pl_module, LAAIModule):
            sys.stderr.write("\ninterrupted while testing; learned vectors, if any, are in the run's folder\n")
        elif trainer.state.fn == "fit" and trainer.global_step > 0:
            sys.stderr.write(f"\nstopped after {trainer.global_step} steps{self._kept(trainer, pl_module)}\n")
        elif outside:
            sys.stderr.write("\ninterrupted before the first step\n")

    def _kept(self, trainer: pl.Trainer, module: LAAIModule) -> str:
        """Save the vectors; says where they are and how to go on."""
        kept = ""
        folder = trainer.loggers[0].log_dir if trainer.loggers else trainer.default_root_dir
        finite = all(bool(vector.isfinite().all()) for _, vector in module.intervention.items())
        if folder is not None and finite and not getattr(trainer, "fast_dev_run", False):
            path = Path(folder) / "intervention.safetensors"
            with suppress(UserError):  # a full disk may be what stopped the run
                module.learned().save(path)
                kept = f"; the vectors are in {path}"
        last = getattr(trainer.checkpoint_callback, "last_model_path", "")
        return kept + (f"; to go on: the same command with --ckpt_path {last}" if last else "")
