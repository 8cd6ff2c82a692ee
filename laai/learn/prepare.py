"""What a run settles before its first step: the model's place, the steered layers, the start, units, the teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from cast.extraction import CastStart
from laai.engine import Engine
from laai.errors import UserError
from laai.learn.layer_race import LayerProfile, profile_layers
from laai.learn.recipe import Recipe
from laai.learn.start import cast_vector, in_place, random_vectors
from laai.learn.teacher import few_shot_teacher
from laai.models import Decoder, LanguageModel, load_model, load_sharded
from laai.prompts import Batch
from laai.runtime import FewShotDataModule, ShardedStrategy, data_facts
from laai.steering import Intervention, Key, Provenance
from laai.tasks import Task
from laai.vocabulary import Site

AUTO_DEPTH = 2 / 3
"""Share of the layers, from the first, that `auto` steers at `heads`. Against all layers it is better where the task
asks for knowledge, worse where it asks for form, and equal on the mean (`laai-all` in
experiments/studies/compare_methods.py)."""


@dataclass(frozen=True)
class Prepared:
    """What is known before the first step.

    Attributes:
        start: the vectors then, on the layers that are steered, at scale 1; learning changes them in place.
        origin: what they were taken from, on all its layers; None for zero and random ones.
        given: whether that is an object of the caller's.
        cast: the CAST vector at scale 1, on all layers; None unless it is the start.
        rms: root mean square of the activation at the site, by layer: the unit of the learning rate.
        centre: what the penalties pull each vector towards, where that is not zero.
        teacher: log-probabilities of the few-shot teacher at each training example's answer; empty without one.
        profile: how layers compared, where one was chosen by a race.
    """

    start: Intervention
    origin: Intervention | None
    given: bool
    cast: Intervention | None
    rms: dict[int, float]
    centre: dict[Key, Tensor]
    teacher: list[Tensor]
    profile: LayerProfile | None

    def teacher_of(self, batch: Batch) -> Tensor | None:
        """The teacher's log-probabilities (answer tokens of the batch, vocabulary), on its device; None without one."""
        rows = batch.rows.tolist()
        return torch.cat([self.teacher[row] for row in rows]).to(batch.labels.device) if self.teacher else None


def prepare(
    engine: Engine, recipe: Recipe, data: FewShotDataModule, *, given: Intervention | None, cast: CastStart,
    sources: Sequence[Task], agree: Callable[[list[int]], list[int]],
) -> Prepared:  # fmt: skip
    """Choose the layers, measure their activations, and make the start and the teacher.

    Args:
        engine: of the language model, unsteered.
        recipe: how is learned.
        data: what is learned from, encoded for this model.
        given: a start as an object; goes before `recipe.init`.
        cast: how other tasks' CAST vectors are extracted.
        sources: those tasks (`source_tasks`).
        agree: makes the layers the same in all processes, which may round differently.

    Raises:
        UserError: layers that the model does not have, or a start that cannot be made or does not fit.
    """
    model = engine.model
    with torch.inference_mode(False), torch.enable_grad():
        race = (engine, recipe.site, recipe.positions, data.prompts)
        profile = profile_layers(*race) if recipe.races else None
    layers = agree([profile.best] if profile else resolve_layers(recipe.layers, model.decoder, recipe.site))
    rms = engine.activation_rms(data.prompts, recipe.site, layers)
    start = Intervention.zeros(model, recipe.site, layers, positions=recipe.positions)
    own, origin = None, given
    if given is None and recipe.init == "random":
        size = {layer: recipe.init_scale * unit for layer, unit in rms.items()}
        start = random_vectors(start, model, size, data.seed)
    elif given is None and recipe.init == "cast":
        own = cast_vector(model, recipe, data, cast, sources)
        origin = recipe.init_scale * own
    elif given is None and recipe.init != "zero":
        origin = Intervention.load(recipe.init, model)
    if origin is not None:
        start = in_place(start, origin, model)
    centre = {key: v.detach().clone() for key, v in start.items()} if recipe.prior == "start" else {}
    template, examples = data.template(model.tokenizer), data.splits.train
    teacher = few_shot_teacher(engine, template, examples, zero_shot=data.prompts) if recipe.distill else []
    return Prepared(start, origin, given is not None, own, rms, centre, teacher, profile)


def describe(
    prepared: Prepared, recipe: Recipe, data: FewShotDataModule, done: dict[str, Any], further: dict[str, Any]
) -> None:
    """Write into the provenance of the learned vectors, `prepared.start`, what they were made from, and how.

    `done` is told with the settings of their training; `further` facts stand beside it.
    """
    names = ["site", "positions", "init", "source", "init_scale", "l1", "group_l2", "prior", "distill", "schedule"]
    training = {name: getattr(recipe, name) for name in names} | done
    training |= {"init": "given"} if prepared.given else {}
    origin = Provenance() if prepared.origin is None else prepared.origin.provenance
    inputs = [e.input for e in (*data.splits.train, *data.splits.validation)]
    known = prepared.start.provenance.model().having_seen(inputs, origin.seen)
    facts = {"start": origin.cast, "training": training | data_facts(data)} | further
    prepared.start.provenance = replace(known, **facts)


def resolve_layers(layers: str | int | list[int], decoder: Decoder, site: Site) -> list[int]:
    """The layers that `auto` (the first two thirds), `all`, a number or a list of numbers stand for, ascending.

    Raises:
        UserError: a layer that the model does not have, or one without heads at site `heads`.
    """
    if isinstance(layers, str):
        steerable = decoder.steerable(site)
        return steerable if layers == "all" else steerable[: math.ceil(AUTO_DEPTH * len(steerable))]
    wanted = sorted([layers] if isinstance(layers, int) else layers)
    for layer in wanted:
        decoder.width(site, layer)
    return wanted


def place(recipe: Recipe, trainer: pl.Trainer, model: LanguageModel | None) -> LanguageModel:
    """Load the language model, unless there is one, and bring it to the process's device.

    One device for each process, or one process over all its devices.

    Raises:
        UserError: a precision that would cast the vectors, or a device map in a run of several processes.
    """
    if trainer.precision in ("16-true", "bf16-true", "64-true"):
        raise UserError(f"precision {trainer.precision} would cast the vectors, which are fp32; set dtype instead")
    if recipe.device_map is not None and trainer.world_size > 1:
        raise UserError(
            f"device_map spreads the model over the devices of one process, found {trainer.world_size} processes: "
            "set trainer.devices to 1, or leave out device_map"
        )
    if isinstance(trainer.strategy, ShardedStrategy):
        if model is not None:
            raise UserError("strategy fsdp2 loads the model itself, into shards: give it by name, through train.py")
        if recipe.races:
            raise UserError("layers=auto at residual does not go with strategy fsdp2: choose a layer")
        return load_sharded(recipe.base_model, recipe.dtype, trainer.strategy.mesh, trainer.strategy.root_device)
    model = model or load_model(recipe.base_model, dtype=recipe.dtype, device_map=recipe.device_map)
    model.to(trainer.strategy.root_device)
    return model
