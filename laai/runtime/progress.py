"""One progress bar over all optimiser steps, as epochs of one step each tell nothing."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar


class StepProgress(TQDMProgressBar):
    """Lightning's bar, with the optimiser's steps as its unit: time left is that of the whole fit."""

    _examples = 0

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Open the bar for all steps."""
        self.train_progress_bar = self.init_train_tqdm()
        self.train_progress_bar.reset(trainer.estimated_stepping_batches)
        self.train_progress_bar.set_description("fit")
        self._examples, self._began = 0, time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Keep the bar: an epoch may be a single step."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Advance to the number of steps taken."""
        self._examples += len(batch.rows) * trainer.world_size
        self.train_progress_bar.n = trainer.global_step
        self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show what validation gave."""
        self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=True)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Name the method that is being tested."""
        super().on_test_start(trainer, pl_module)
        arm = getattr(pl_module, "arm", None)
        self._testing = f"test {arm.name}" if arm else "test"

    def on_test_batch_start(self, *args: Any) -> None:
        """Lightning names the bar after the data loader here; name it after the method."""
        super().on_test_batch_start(*args)
        self.test_progress_bar.set_description(self._testing)

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The logged values without the run's number, and examples learned from in a second, over all devices."""
        values = {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
        if not self._examples:  # a validation before the first step
            return values
        return values | {"examples/s": f"{self._examples / (time.perf_counter() - self._began):.3g}"}
