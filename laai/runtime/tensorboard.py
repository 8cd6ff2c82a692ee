"""Figures, texts and outcomes for TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _boards(trainer: pl.Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


@rank_zero_only
def log_figures(trainer: pl.Trainer, figures: dict[str, Figure]) -> None:
    """Add figures to every TensorBoard logger of the trainer."""
    for logger in _boards(trainer):
        for name, figure in figures.items():
            logger.experiment.add_figure(name, figure, global_step=trainer.global_step)


@rank_zero_only
def log_texts(trainer: pl.Trainer, texts: dict[str, str]) -> None:
    """Add Markdown texts to every TensorBoard logger of the trainer."""
    for logger in _boards(trainer):
        for name, text in texts.items():
            logger.experiment.add_text(name, text, global_step=trainer.global_step)


@rank_zero_only
def log_outcome(trainer: pl.Trainer, hyperparameters: dict[str, Any], metrics: dict[str, float]) -> None:
    """Add a row to the HParams page: the settings of the run with its final metrics."""
    for logger in _boards(trainer):
        logger.log_hyperparams(hyperparameters, metrics)
        logger.experiment.flush()
