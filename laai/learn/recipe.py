"""`Recipe`: how vectors are learned, one field for each option `--model.X` of the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable

from laai.errors import UserError
from laai.files import check_name
from laai.vocabulary import POSITIONS, PRIORS, SITES, Positions, PrefixBudget, Prior, Site

ADAM = partial(torch.optim.Adam, lr=0.01)


@dataclass(frozen=True)
class Recipe:
    """How vectors are learned: the model, where they are added, their start, and what is minimised.

    Raises:
        UserError: a setting that makes no sense, alone or beside the others.
    """

    base_model: str = "default"
    """`default`, a hub id, a folder, or a GGUF file; it is frozen."""
    dtype: str = "float32"
    """Of the LLM: float32, bfloat16, float16 or auto. Vectors are always fp32."""
    site: Site = "heads"
    """`heads` (concatenated head outputs before the output projection) or `residual` (a layer's output)."""
    layers: Literal["auto", "all"] | int | list[int] = "auto"
    """`all`, a number, a list of numbers, or `auto`: the first two thirds at `heads`; at `residual` the one that a
    cross-validated race of layers on the training examples prefers."""
    positions: Positions = "last_prompt"
    """`last_prompt`, `generated` (that one and all later tokens), or `all`."""
    init: str = "cast"
    """The vectors' start: `zero`, `random`, `cast`, or the path of an intervention file."""
    source: str | list[str] = "auto"
    """Of a `cast` start: `own` (the training examples), another task, or several, for the mean of their vectors. `auto`
    is `own`, and for a single example, which has no vector, the mean of four built-in tasks."""
    init_scale: float = 0.5
    """Factor on a `cast` start; size of a `random` start relative to the activations."""
    l1: float = 0.0
    """Strength of the ℓ1 penalty, which zeroes entries. At 1 it takes back all that a step of Adam can add."""
    group_l2: float = 0.0
    """Strength of the group-ℓ2 penalty, which zeroes heads (site `heads`) or layers (`residual`). At the square root of
    the group's width it takes back all that a step of Adam can add."""
    prior: Prior = "zero"
    """What both penalties pull towards: `zero`, or the `start`, from which heads or layers that the task does not need
    to change then do not move."""
    distill: float = 0.5
    """Weight of the divergence from the model's own few-shot answers, each training example behind the others, of 5 or
    more: it keeps them from overruling what the model knows. 0 for the likelihood alone."""
    optimizer: OptimizerCallable = ADAM
    """Any of torch.optim, with its options, weight decay among them. Its learning rate is in units of the activations'
    root mean square at each vector's site, so that one rate serves all layers, sites and models."""
    schedule: str = "constant"
    """Of the rate, first step to last: constant, linear, cosine, or another name of transformers' schedules."""
    prefix_cache: PrefixBudget = "auto"
    """Memory on the device for what is kept of prompts, in training and in evaluations together: `auto` (half of what
    is free), bytes, or `off` to run whole prompts every time. Beside another device than the CPU, half of the free host
    memory comes on top. What does not fit is run again."""
    activation_checkpointing: bool = False
    """Run each layer again in the backward pass instead of keeping what it computed: less memory, more time. Whole
    prompts are run then, as caches do not go with it."""
    device_map: str | None = None
    """As in transformers (`auto`, `balanced`, …): one process spreads the LLM over all its devices."""

    def __post_init__(self) -> None:
        """Refuse what the types above do not, before anything is loaded."""
        from transformers import SchedulerType  # brings peft along: `--help` does not wait for it

        known: dict[str, tuple[str, ...]] = {"site": SITES, "positions": POSITIONS, "prior": PRIORS}
        known["schedule"] = tuple(kind.value for kind in SchedulerType)
        known["dtype"] = ("float32", "bfloat16", "float16", "auto")
        for name, names in known.items():
            if (value := getattr(self, name)) not in names:
                raise UserError(f"{name} must be one of {', '.join(names)}, not {value!r}")
        for name in ("l1", "group_l2", "distill"):
            if not (value := getattr(self, name)) >= 0:
                raise UserError(f"{name} must not be negative, found {value}")
        if not math.isfinite(self.init_scale):
            raise UserError(f"init_scale must be a finite number, found {self.init_scale}")
        budget = self.prefix_cache
        if budget not in ("auto", "off") and not (isinstance(budget, int) and budget >= 0):
            raise UserError(f"prefix_cache must be auto, off or a number of bytes, found {budget}")
        if self.prior == "start" and not (self.l1 or self.group_l2):
            raise UserError("prior=start says what penalties pull towards, found none: set l1 or group_l2 too")
        self._check_start()
        numbers = [self.layers] if isinstance(self.layers, int) else list(self.layers)
        if self.layers not in ("auto", "all") and not (
            0 < len(numbers) == len(set(numbers)) and all(isinstance(number, int) for number in numbers)
        ):
            raise UserError(f"layers must be auto, all, a number or a list of different numbers, found {self.layers!r}")

    def _check_start(self) -> None:
        check_name(self.init)
        if self.init not in ("zero", "random", "cast") and not Path(self.init).is_file():
            raise UserError(f"init must be zero, random, cast or an intervention file, found no file at {self.init!r}")
        if not self.sources or len(set(self.sources)) < len(self.sources):
            raise UserError(f"expected source as auto, own, or tasks by name, each once; found {self.sources}")

    @property
    def sources(self) -> list[str]:
        """The names in `source`."""
        return [self.source] if isinstance(self.source, str) else self.source

    @property
    def races(self) -> bool:
        """Whether the layer is the one that wins a race on the training examples."""
        return self.layers == "auto" and self.site == "residual"
