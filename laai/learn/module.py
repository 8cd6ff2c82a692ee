"""`LAAIModule`: learn additive vectors of a frozen LLM from a few labelled examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from cast.extraction import CastStart
from laai.engine import Engine
from laai.evaluation import TaskMetrics, measure
from laai.learn.gradients import check_finite, gradient_norm, restore_if_unsound
from laai.learn.penalty import shrink
from laai.learn.prepare import Prepared, describe, place, prepare
from laai.learn.recipe import Recipe
from laai.learn.start import cast_vector, source_tasks
from laai.learn.steered import SteeredLM
from laai.models import LanguageModel
from laai.prompts import IGNORE, Batch, Template, answer_limit
from laai.runtime import FewShotDataModule, ShardedStrategy, average_gradients, check_belongs, check_equal, data_facts
from laai.steering import Intervention
from laai.tasks import Example, Task


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
        self,
        recipe: Recipe,
        data: FewShotDataModule,
        model: LanguageModel | None = None,
        start: Intervention | None = None,
        cast: CastStart | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters({f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name != "optimizer"})
        self.recipe, self.data, self.cast = recipe, data, cast or CastStart()
        self._given = (start,)  # as an attribute its vectors would be parameters of this module
        if model is not None:
            self.language_model = model
        self.strict_loading = False  # checkpoints hold the vectors alone; `on_load_checkpoint` checks those
        self.metrics = TaskMetrics()
        self.validated: list[Tensor] = []
        """NLL of every validation example, by validation."""
        self.optimizer_facts: dict[str, Any] = {}
        """Name, rate and weight decay of the optimiser, once there is one."""
        self._limits: dict[Sequence[Example], int] = {}

    @property
    def intervention(self) -> Intervention:
        """The vectors being learned."""
        return self.steered.intervention

    @property
    def template(self) -> Template:
        """How the task is written for this model."""
        return self.data.template(self.language_model.tokenizer)

    def setup(self, stage: str) -> None:
        """Read the tasks of a CAST start now: a mistake shows before the model is loaded."""
        self.sources = source_tasks(self.recipe, self.data, self.cast)

    def configure_model(self) -> None:
        """Load the LLM and make the start; once, in every process, before optimisers and wrappers."""
        if hasattr(self, "steered"):
            return
        model = place(self.recipe, self.trainer, getattr(self, "language_model", None))
        self.language_model = model
        self.data.encode(model)
        start: dict[str, Any] = {"given": self._given[0], "cast": self.cast, "sources": self.sources}
        self.engine = Engine(model, self.recipe.prefix_cache)
        self.prepared = prepare(self.engine, self.recipe, self.data, agree=self.trainer.strategy.broadcast, **start)
        several = (self.data.batch_size or self.data.num_examples) < self.data.num_examples  # in an epoch's own order
        how: dict[str, Any] = {"alone": several, "recompute": self.recipe.activation_checkpointing}
        self.steered = SteeredLM(self.engine, self.prepared.start, **how)

    def cast_vector(self) -> Intervention:
        """The CAST vector for this run, at scale 1, on all layers that have the site; the start's own if it has one.

        Raises:
            UserError: too few examples to extract from.
        """
        if self.prepared.cast is not None:
            return self.prepared.cast
        return cast_vector(self.language_model, self.recipe, self.data, self.cast, self.sources)

    def learned(self, **facts: Any) -> Intervention:
        """The vectors with the settings of their training, and further facts, in their provenance."""
        done = {"steps": self.trainer.global_step} | self.optimizer_facts
        describe(self.prepared, self.recipe, self.data, done, facts)
        return self.intervention

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser over the vectors, one group each, its rate in units of the activations' RMS."""
        from transformers import get_scheduler  # brings peft along: `--help` does not wait for it

        optimizer = self.recipe.optimizer(
            [{"params": [v], "name": f"{s}.{i}"} for (s, i), v in self.intervention.items()]
        )
        stated = {name: optimizer.defaults.get(name) for name in ("lr", "weight_decay")}
        self.optimizer_facts = {"optimizer": type(optimizer).__name__} | {k: float(v) for k, v in stated.items() if v}
        for group, (key, _) in zip(optimizer.param_groups, self.intervention.items(), strict=True):
            group["lr"] *= self.prepared.rms[key[1]]
        steps = int(min(self.trainer.estimated_stepping_batches, 10**9))  # infinite without a bound on steps or epochs
        scheduler = get_scheduler(self.recipe.schedule, optimizer, num_warmup_steps=0, num_training_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Batch) -> Tensor:
        """Mean negative log-likelihood of the batch's answer tokens, and their divergence from the teacher."""
        # Devices average their gradients: dividing by the mean number of tokens on a device weighs all tokens equally.
        tokens = self.trainer.strategy.reduce((batch.labels != IGNORE).sum().float(), reduce_op="mean")
        rows = batch.rows.tolist()
        known = self.prepared.teacher
        teacher = torch.cat([known[row] for row in rows]).to(self.device) if known else None
        losses = self.steered(batch, teacher)
        self._last = rows, losses.nll.detach()
        nll, divergence = (loss.sum() / tokens for loss in losses)
        self.log("train/loss", nll, prog_bar=True, batch_size=len(rows), sync_dist=True)
        self.step_tokens = float(tokens)
        if teacher is not None:
            self.log("train/divergence", divergence, batch_size=len(rows), sync_dist=True)
        loss: Tensor = nll + self.recipe.distill * divergence
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the gradient's norm, in units of the activations'; stop before a step that would not be finite.

        Raises:
            UserError: on every device, with the vectors as they were.
        """
        if isinstance(self.trainer.strategy, ShardedStrategy):
            average_gradients([vector for _, vector in self.intervention.items()])
        norm = gradient_norm(self.intervention, self.prepared.rms)
        self.log("train/gradient norm", norm)
        if not self.trainer.precision.startswith("16"):  # whose scaler skips such steps
            rows, nll = self._last
            inputs = [self.data.splits.train[row].input for row in rows]
            check_finite(norm, self.trainer.global_step + 1, inputs, nll)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """The optimiser's step, then the proximal step of the sparse group lasso at the same rate."""
        before = [v.detach().clone() for _, v in self.intervention.items()]
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        restore_if_unsound([v for _, v in self.intervention.items()], before, self.trainer.global_step + 1)
        if self.recipe.l1 or self.recipe.group_l2:
            strengths = self.recipe.l1, self.recipe.group_l2
            rates = [float(group["lr"]) for group in optimizer.param_groups]
            self.log("train/penalty", shrink(self.intervention, self.prepared.centre, rates, *strengths))

    def on_train_epoch_end(self) -> None:
        """See that processes that hold the vectors themselves hold the same."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            check_equal([vector for _, vector in self.intervention.items()])

    def on_fit_end(self) -> None:
        """Drop what validations kept."""
        self.engine.clear()

    def validation_step(self, rows: Tensor) -> None:
        """Measure the steered model on validation examples."""
        self._measure(rows, self.data.splits.validation)

    def test_step(self, rows: Tensor) -> None:
        """Measure the steered model on test examples."""
        self._measure(rows, self.data.splits.test)

    def _measure(self, rows: Tensor, examples: Sequence[Example]) -> None:
        if examples not in self._limits:
            self._limits[examples] = answer_limit(self.template, examples)
        options: dict[str, Any] = {"max_new_tokens": self._limits[examples], "engine": self.engine}
        chosen = [(row, examples[row]) for row in rows.tolist()]
        options["batch_size"] = self.data.eval_batch_size
        self.metrics.update(measure(self.language_model, self.template, chosen, **options))

    def on_validation_epoch_end(self) -> None:
        """Log the validation scores; `val/nll` is what early stopping watches."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the test scores."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        scores = self.metrics.compute("laai")
        if stage == "val":
            self.validated.append(self.metrics.nll.compute().view(-1).cpu())
        self.metrics.reset()
        self.log(f"{stage}/exact_match", scores.exact_match, prog_bar=stage == "val")
        self.log(f"{stage}/nll", scores.nll)
        if scores.choice_accuracy is not None:
            self.log(f"{stage}/choice_accuracy", scores.choice_accuracy)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The vectors alone: the LLM and the metrics are not part of a checkpoint."""
        whole = super().state_dict(*args, **kwargs)
        return {name: value for name, value in whole.items() if name.startswith("steered.intervention.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which model the vectors belong to, and which data."""
        checkpoint["laai"] = self.language_model.identity | {"data": data_facts(self.data)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model or other examples, or one whose vectors are not exactly ours.

        Raises:
            UserError: with what was expected and what was found.
        """
        check_belongs(checkpoint, self.language_model.identity, self.state_dict(), data_facts(self.data))
