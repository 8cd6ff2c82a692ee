"""`LAAIModule`: learn additive vectors of a frozen LLM from a few labelled examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from cast.extraction import CastStart
from laai.engine import Engine
from laai.learn.effects import Scoring
from laai.learn.penalty import shrink
from laai.learn.prepare import Prepared, describe, place, prepare
from laai.learn.recipe import Recipe
from laai.learn.start import cast_vector, source_tasks
from laai.learn.steered import SteeredLM, TokenLosses
from laai.learn.steps import check_finite, gradient_norm, optimizer_facts, scheduled_optimizer, undone_unless_finite
from laai.models import LanguageModel
from laai.prompts import IGNORE, Batch, Template
from laai.runtime import FewShotDataModule, ShardedStrategy, average_gradients, check_belongs, check_equal, data_facts
from laai.steering import Intervention
from laai.tasks import Task


class LAAIModule(LightningModule):
    """Task-driven Layerwise Additive Activation Intervention (arXiv 2502.06115) as a LightningModule.

    Minimises the mean negative log-likelihood of the answers' tokens over the vectors alone; a proximal step of the
    sparse group lasso follows each step of the optimiser. Only the vectors are trained and checkpointed.

    Args:
        recipe: how is learned.
        data: what is learned from; `Trainer.fit` gets it as its datamodule too.
        model: the language model; default: the recipe's, loaded where the trainer wants it.
        start: vectors to start from; they go before the recipe's `init`.
        cast: how a CAST start is extracted from other tasks.
    """

    language_model: LanguageModel
    prepared: Prepared
    steered: SteeredLM
    sources: Sequence[Task] = ()
    """Other tasks that a CAST vector for this run comes from."""
    step_tokens = 0.0
    """Answer tokens of the last step, on average over devices."""

    def __init__(
        self, recipe: Recipe, data: FewShotDataModule, model: LanguageModel | None = None,
        start: Intervention | None = None, cast: CastStart | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters({f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name != "optimizer"})
        self.recipe, self.data, self.cast = recipe, data, cast or CastStart()
        self._given = (start,)  # as an attribute its vectors would be parameters of this module
        if model is not None:
            self.language_model = model
        self.strict_loading = False  # checkpoints hold the vectors alone; `on_load_checkpoint` checks those
        self.scoring = Scoring()
        self._optimizer: dict[str, Any] = {}

    @property
    def intervention(self) -> Intervention:
        """The vectors being learned."""
        return self.steered.intervention

    @property
    def template(self) -> Template:
        """How the task is written for this model."""
        return self.data.template(self.language_model.tokenizer)

    def configure_model(self) -> None:
        """Load the LLM and make the start; once, in every process, before optimisers and wrappers."""
        if hasattr(self, "steered"):
            return
        self.sources = source_tasks(self.recipe, self.data, self.cast)  # a mistake shows before the model is loaded
        self.language_model = place(self.recipe, self.trainer, getattr(self, "language_model", None))
        self.data.encode(self.language_model)
        self.engine = Engine(self.language_model, self.recipe.prefix_cache)
        start: dict[str, Any] = {"given": self._given[0], "cast": self.cast, "sources": self.sources}
        self.prepared = prepare(self.engine, self.recipe, self.data, agree=self.trainer.strategy.broadcast, **start)
        several = (self.data.batch_size or self.data.num_examples) < self.data.num_examples  # in an epoch's own order
        self.steered = SteeredLM(self.engine, self.prepared.start, several, self.recipe.activation_checkpointing)

    def cast_vector(self) -> Intervention:
        """The CAST vector for this run, at scale 1, on all layers that have the site; the start's own if it has one."""
        if self.prepared.cast is not None:
            return self.prepared.cast
        return cast_vector(self.language_model, self.recipe, self.data, self.cast, self.sources)

    def learned(self, **facts: Any) -> Intervention:
        """The vectors with the settings of their training, and further facts, in their provenance."""
        describe(self.prepared, self.recipe, self.data, {"steps": self.trainer.global_step} | self._optimizer, facts)
        return self.intervention

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser over the vectors, one group each, its rate in units of the activations' RMS."""
        steps = self.trainer.estimated_stepping_batches
        optimizer, scheduler = scheduled_optimizer(self.recipe, self.intervention, self.prepared.rms, steps)
        self._optimizer = optimizer_facts(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Batch) -> Tensor:
        """Mean negative log-likelihood of the batch's answer tokens, and their divergence from the teacher."""
        # Devices average their gradients: dividing by the mean number of tokens on a device weighs all tokens equally.
        tokens = self.trainer.strategy.reduce((batch.labels != IGNORE).sum().float(), reduce_op="mean")
        rows, teacher = batch.rows.tolist(), self.prepared.teacher_of(batch)
        losses: TokenLosses = self.steered(batch, teacher)
        self._last = [self.data.splits.train[row].input for row in rows], losses.nll.detach()
        nll, divergence = (loss.sum() / tokens for loss in losses)
        self.log("train/loss", nll, prog_bar=True, batch_size=len(rows), sync_dist=True)
        self.step_tokens = float(tokens)
        if teacher is not None:
            self.log("train/divergence", divergence, batch_size=len(rows), sync_dist=True)
        return nll + self.recipe.distill * divergence

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the gradient's norm, in units of the activations'; all devices end before a step that is not finite."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            average_gradients(list(self.intervention.parameters()))
        norm = gradient_norm(self.intervention, self.prepared.rms)
        self.log("train/gradient norm", norm)
        if not self.trainer.precision.startswith("16"):  # whose scaler skips such steps
            check_finite(norm, self.trainer.global_step + 1, *self._last)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:  # fmt: skip
        """The optimiser's step, then the proximal step of the sparse group lasso at the same rate."""
        with undone_unless_finite(list(self.intervention.parameters()), self.trainer.global_step + 1):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.recipe.l1 or self.recipe.group_l2:
            self.log("train/penalty", shrink(self.intervention, self.prepared.centre, optimizer, self.recipe))

    def on_train_epoch_end(self) -> None:
        """See that processes that hold the vectors themselves hold the same."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            check_equal(list(self.intervention.parameters()))

    def on_fit_end(self) -> None:
        """Drop what validations kept."""
        self.engine.clear()

    def validation_step(self, rows: Tensor) -> None:
        """Measure the steered model on validation or test examples, numbered `rows`."""
        examples = self.data.splits.test if self.trainer.testing else self.data.splits.validation
        self.scoring.add(self.engine, self.data, examples, rows)

    def on_validation_epoch_end(self) -> None:
        """Log the scores; `val/nll` is what early stopping watches."""
        self.scoring.log(self, "test" if self.trainer.testing else "val")

    test_step, on_test_epoch_end = validation_step, on_validation_epoch_end

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The vectors alone: the LLM and the metrics are not part of a checkpoint."""
        whole = super().state_dict(*args, **kwargs)
        return {name: value for name, value in whole.items() if name.startswith("steered.intervention.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which model the vectors belong to, and which data."""
        checkpoint["laai"] = self.language_model.identity | {"data": data_facts(self.data)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model or other examples, or one whose vectors are not exactly ours."""
        check_belongs(checkpoint, self.language_model.identity, self.state_dict(), data_facts(self.data))
