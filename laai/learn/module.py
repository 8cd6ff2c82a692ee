"""`LAAIModule`: learn additive vectors of a frozen LLM from a few labelled examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from laai.engine import Engine
from laai.evaluation import TaskMetrics, measure
from laai.learn import penalty
from laai.learn.gradients import check_finite, gradient_norm, restore_if_unsound
from laai.learn.layer_race import LayerProfile, profile_layers
from laai.learn.layers import resolve_layers
from laai.learn.options import check_options
from laai.learn.placement import place
from laai.learn.starts import start_of
from laai.learn.steered import SteeredLM
from laai.learn.teacher import few_shot_teacher
from laai.models import LanguageModel
from laai.prompts import IGNORE, Batch, Template, answer_limit
from laai.runtime import (
    FewShotDataModule,
    ShardedStrategy,
    average_gradients,
    check_belongs,
    check_equal,
    data_facts,
    encode_training,
)
from laai.steering import Intervention, Key
from laai.vocabulary import Positions, PrefixBudget, Prior, Site


class LAAIModule(LightningModule):
    """Task-driven Layerwise Additive Activation Intervention (arXiv 2502.06115) as a LightningModule.

    Minimises the mean negative log-likelihood of the answers' tokens over the vectors alone; a proximal step of the
    sparse group lasso follows each step of the optimiser. Only the vectors are trained and checkpointed.

    Args:
        base_model: `default`, a hub id, a folder, or a GGUF file; it is frozen.
        dtype: of the LLM: float32, bfloat16, float16 or auto. Vectors are always fp32.
        site: `heads` (concatenated head outputs before the output projection) or `residual` (a layer's output).
        layers: `all`, a number, a list of numbers, or `auto`: the first two thirds at `heads`; at `residual` the one
            that a cross-validated race of layers on the training examples prefers.
        positions: `last_prompt`, `generated` (that one and all later tokens), or `all`.
        init: the vectors' start: `zero`, `random`, `cast`, or the path of an intervention file.
        source: of a `cast` start: `own` (the training examples), another task, or several, for the mean of their
            vectors. `auto` is `own`, and for a single example, which has no vector, the mean of four built-in tasks.
        init_scale: factor on a `cast` start; size of a `random` start relative to the activations.
        l1: strength of the ℓ1 penalty, which zeroes entries. At 1 it takes back all that a step of Adam can add.
        group_l2: strength of the group-ℓ2 penalty, which zeroes heads (site `heads`) or layers (`residual`). At the
            square root of the group's width it takes back all that a step of Adam can add.
        prior: what both penalties pull towards: `zero`, or the `start`, from which heads or layers that the task does
            not need to change then do not move.
        distill: weight of the divergence from the model's own few-shot answers, each training example behind the
            others, of 5 or more: it keeps them from overruling what the model knows. 0 for the likelihood alone.
        optimizer: any of torch.optim, with its options, weight decay among them. Its learning rate is in units of the
            activations' root mean square at each vector's site, so that one rate serves all layers, sites and models.
        prefix_cache: memory on the device for the frozen prefixes of training examples, and as much again for those of
            evaluations: `auto` (half of what is free), bytes, or `off` to run whole prompts every time. Beside another
            device than the CPU, half of the free host memory comes on top. What does not fit is run again.
        schedule: of the rate, first step to last: constant, linear, cosine, or another name of transformers' schedules.
        activation_checkpointing: run each layer again in the backward pass instead of keeping what it computed: less
            memory, more time. Whole prompts are run then, as caches do not go with it.
        device_map: as in transformers (`auto`, `balanced`, …): one process spreads the LLM over all its devices.
    """

    language_model: LanguageModel
    steered: SteeredLM

    def __init__(
        self,
        base_model: str = "default",
        dtype: str = "float32",
        site: Site = "heads",
        layers: Literal["auto", "all"] | int | list[int] = "auto",
        positions: Positions = "last_prompt",
        init: str = "cast",
        source: str | list[str] = "auto",
        init_scale: float = 0.5,
        l1: float = 0.0,
        group_l2: float = 0.0,
        prior: Prior = "zero",
        distill: float = 0.5,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        schedule: str = "constant",
        prefix_cache: PrefixBudget = "auto",
        activation_checkpointing: bool = False,
        device_map: str | None = None,
    ) -> None:
        super().__init__()
        strengths = {"l1": l1, "group_l2": group_l2, "distill": distill}
        check_options(init=init, prior=prior, schedule=schedule, prefix_cache=prefix_cache, dtype=dtype, **strengths)
        self.save_hyperparameters(ignore=["optimizer"])
        self.base_model, self.dtype_name, self.site, self.positions = base_model, dtype, site, positions
        self.layers, self.init, self.source, self.init_scale = layers, init, source, init_scale
        self.l1, self.group_l2, self.prior, self.distill = l1, group_l2, prior, distill
        self.optimizer, self.schedule, self.prefix_cache = optimizer, schedule, prefix_cache
        self.activation_checkpointing, self.device_map = activation_checkpointing, device_map
        self.cast_start: Callable[[LAAIModule], Intervention] | None = None
        """Makes a `cast` start; set by a callback of the package that knows how (`laai.learn.cast_start.CastStart`)."""
        self.given_start: Intervention | None = None
        """A start given as an object; goes before `init`."""
        self.centre: dict[Key, Tensor] = {}
        """What the penalties pull each vector towards, where that is not zero."""
        self.rms: dict[int, float] = {}
        """Root mean square of the activation at the site, by layer: the unit of the learning rate."""
        self.teacher: list[Tensor] = []
        """Log-probabilities of the few-shot teacher at each training example's answer; empty without one."""
        self.layer_profile: LayerProfile | None = None
        """How layers compared, where one was chosen by `auto`."""
        self.step_tokens = 0.0
        """Answer tokens of the last step, on average over devices."""
        self.optimizer_facts: dict[str, Any] = {}
        """Name, rate and weight decay of the optimiser, once there is one."""
        self.strict_loading = False  # checkpoints hold the vectors alone; `on_load_checkpoint` checks those
        self.metrics = TaskMetrics()
        self.validated: list[Tensor] = []
        """NLL of every validation example, by validation."""
        self._limits: dict[bool, int] = {}

    @property
    def intervention(self) -> Intervention:
        """The vectors being learned."""
        return self.steered.intervention

    @property
    def data(self) -> FewShotDataModule:
        """The data module of this run."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, FewShotDataModule):
            raise RuntimeError("LAAIModule learns from a FewShotDataModule; pass one as datamodule=")
        return data

    @property
    def template(self) -> Template:
        """How the task is written for this model."""
        return self.data.template(self.language_model.tokenizer)

    def configure_model(self) -> None:
        """Load the LLM and make the start; once, in every process, before optimisers and wrappers."""
        if hasattr(self, "steered"):
            return
        model = place(self)
        self.engine = engine = Engine(model, self.prefix_cache)
        prompts = [prompt for _, prompt in encode_training(self.template, self.data.splits.train)]
        with torch.inference_mode(False), torch.enable_grad():
            if self.layers == "auto" and self.site == "residual":
                self.layer_profile = profile_layers(engine, self.site, self.positions, prompts)
                layers = [self.layer_profile.best]
            else:
                layers = resolve_layers(self.layers, model.decoder, self.site)
        layers = self.trainer.strategy.broadcast(layers)  # devices may round differently
        self.rms = engine.activation_rms(prompts, self.site, layers)
        start, examples = start_of(self, layers), self.data.splits.train
        self.centre = {key: v.detach().clone() for key, v in start.items()} if self.prior == "start" else {}
        self.teacher = few_shot_teacher(engine, self.template, examples) if self.distill else []
        several = (self.data.batch_size or len(examples)) < len(examples)  # batches, in an order of the epoch's own
        self.steered = SteeredLM(engine, start, alone=several, recompute=self.activation_checkpointing)

    def learned(self) -> Intervention:
        """The vectors with the settings of their training in their provenance."""
        names = ["site", "positions", "init", "source", "init_scale", "l1", "group_l2", "prior", "distill", "schedule"]
        training = {name: getattr(self, name) for name in names} | {"steps": self.trainer.global_step}
        training |= {"init": "given"} if self.given_start is not None else {}
        training |= data_facts(self.data) | self.optimizer_facts
        inputs = [e.input for e in (*self.data.splits.train, *self.data.splits.validation)]
        self.intervention.provenance = replace(self.intervention.provenance.having_seen(inputs), training=training)
        return self.intervention

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser over the vectors, one group each, its rate in units of the activations' RMS."""
        from transformers import get_scheduler  # brings peft along: `--help` does not wait for it

        optimizer = self.optimizer([{"params": [v], "name": f"{s}.{i}"} for (s, i), v in self.intervention.items()])
        stated = {name: optimizer.defaults.get(name) for name in ("lr", "weight_decay")}
        self.optimizer_facts = {"optimizer": type(optimizer).__name__} | {k: float(v) for k, v in stated.items() if v}
        for group, (key, _) in zip(optimizer.param_groups, self.intervention.items(), strict=True):
            group["lr"] *= self.rms[key[1]]
        steps = int(min(self.trainer.estimated_stepping_batches, 10**9))  # infinite without a bound on steps or epochs
        scheduler = get_scheduler(self.schedule, optimizer, num_warmup_steps=0, num_training_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Batch) -> Tensor:
        """Mean negative log-likelihood of the batch's answer tokens, and their divergence from the teacher."""
        # Devices average their gradients: dividing by the mean number of tokens on a device weighs all tokens equally.
        tokens = self.trainer.strategy.reduce((batch.labels != IGNORE).sum().float(), reduce_op="mean")
        rows = batch.rows.tolist()
        teacher = torch.cat([self.teacher[row] for row in rows]).to(self.device) if self.teacher else None
        losses = self.steered(batch, teacher)
        self._last = rows, losses.nll.detach()
        nll, divergence = (loss.sum() / tokens for loss in losses)
        self.log("train/loss", nll, prog_bar=True, batch_size=len(rows), sync_dist=True)
        self.step_tokens = float(tokens)
        if teacher is not None:
            self.log("train/divergence", divergence, batch_size=len(rows), sync_dist=True)
        loss: Tensor = nll + self.distill * divergence
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the gradient's norm, in units of the activations'; stop before a step that would not be finite.

        Raises:
            UserError: on every device, with the vectors as they were.
        """
        if isinstance(self.trainer.strategy, ShardedStrategy):
            average_gradients([vector for _, vector in self.intervention.items()])
        norm = gradient_norm(self.intervention, self.rms)
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
        if self.l1 or self.group_l2:
            rates = [float(group["lr"]) for group in optimizer.param_groups]
            self.log("train/penalty", penalty.shrink(self.intervention, self.centre, rates, self.l1, self.group_l2))

    def on_train_epoch_end(self) -> None:
        """See that processes that hold the vectors themselves hold the same."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            check_equal([vector for _, vector in self.intervention.items()])

    def on_fit_end(self) -> None:
        """Drop what validations kept."""
        self.engine.clear()

    def validation_step(self, rows: Tensor) -> None:
        """Measure the steered model on validation examples."""
        self._measure(rows, validation=True)

    def test_step(self, rows: Tensor) -> None:
        """Measure the steered model on test examples."""
        self._measure(rows, validation=False)

    def _measure(self, rows: Tensor, validation: bool) -> None:
        examples = self.data.splits.validation if validation else self.data.splits.test
        chosen = [(row, examples[row]) for row in rows.tolist()]
        if validation not in self._limits:
            self._limits[validation] = answer_limit(self.template, examples)
        limit, size = self._limits[validation], self.data.eval_batch_size
        options: dict[str, Any] = {"max_new_tokens": limit, "batch_size": size, "engine": self.engine}
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
