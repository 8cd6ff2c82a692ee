"""When to stop: at a low enough training loss, or when held-back examples no longer gain."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from laai.learn.module import LAAIModule


class StopAtLoss(pl.Callback):
    """Stop once the training loss of an epoch is below a threshold.

    With ten examples there are none to spare for validation. Past this loss the model is sure of every training answer,
    and further steps fit these ten alone.

    Args:
        threshold: mean negative log-likelihood per answer token of all training examples, nats.
    """

    def __init__(self, threshold: float = 0.1) -> None:
        self._threshold = threshold
        self._sum = self._tokens = 0.0
        self._reached = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stay stopped, where a checkpoint was made at the end."""
        trainer.should_stop = trainer.should_stop or self._reached

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Add the step's loss, each token counted once."""
        if isinstance(pl_module, LAAIModule):
            self._sum += float(trainer.callback_metrics["train/loss"]) * pl_module.step_tokens
            self._tokens += pl_module.step_tokens

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the mean of all examples."""
        self._reached = self._reached or (self._tokens > 0 and self._sum / self._tokens < self._threshold)
        self._sum = self._tokens = 0.0
        trainer.should_stop = trainer.should_stop or self._reached

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs in the middle of an epoch, or after the last."""
        return {"sum": self._sum, "tokens": self._tokens, "reached": self._reached}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where a checkpoint left off."""
        self._sum, self._tokens = state_dict["sum"], state_dict["tokens"]
        self._reached = state_dict["reached"]


class StopAtBest(EarlyStopping):
    """Lightning's early stopping on the validation examples' NLL, which also keeps the best vectors.

    Args:
        patience: validations without progress before stopping.
    """

    def __init__(self, patience: int = 3) -> None:
        super().__init__("val/nll", patience=patience, check_on_train_epoch_end=False)
        self._best: dict[str, Tensor] = {}
        self._best_seen = float("inf")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stay stopped, where a checkpoint was made at the end."""
        trainer.should_stop = trainer.should_stop or 0 < self.wait_count >= self.patience

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the vectors if they are the best so far; stop if there has been no progress for long."""
        super().on_validation_end(trainer, pl_module)
        score = float(trainer.callback_metrics["val/nll"])
        if trainer.state.fn == "fit" and score < self._best_seen:
            self._best_seen = score
            self._best = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go back to the best vectors."""
        if self._best and isinstance(pl_module, LAAIModule):
            with torch.no_grad():
                pl_module.load_state_dict(self._best, strict=False)

    def state_dict(self) -> dict[str, Any]:
        """Lightning's state, and the best vectors."""
        return super().state_dict() | {"best": self._best, "best_seen": self._best_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where a checkpoint left off."""
        self._best, self._best_seen = state_dict["best"], state_dict["best_seen"]
        super().load_state_dict({k: v for k, v in state_dict.items() if k not in ("best", "best_seen")})
