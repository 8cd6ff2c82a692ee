"""The registry: a method is a function from a `Setting` to an `Arm` of a comparison, under a name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from cast.extraction import extract_own
from laai.errors import UserError
from laai.evaluation import Arm
from laai.models import LanguageModel
from laai.prompts import Prompt, Template
from laai.runtime import FewShotDataModule, encode_training
from laai.steering import Intervention


@dataclass(frozen=True)
class Setting:
    """What methods are built from. What several of them need is made once, when the first asks for it.

    Attributes:
        model: the frozen language model.
        data: the task, its training examples, and the queries.
        made: what is there already: `own`, the CAST vector at scale 1 that is the task's own, and what a method would
            steer by, under the method's name. It is not made again.
        options: further arguments by a method's name, as its file says.
    """

    model: LanguageModel
    data: FewShotDataModule
    made: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    _arms: dict[str, Arm | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def template(self) -> Template:
        """How the task is written for the model."""
        return self.data.template(self.model.tokenizer)

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The training examples with their answers."""
        return [prompt for _, prompt in encode_training(self.template, self.data.splits.train)]

    @cached_property
    def own(self) -> Intervention:
        """The CAST vector at scale 1: of the training examples, each behind all the others, unless it was given.

        Raises:
            UserError: there is one example.
        """
        given: Intervention | None = self.made.get("own")
        return given or extract_own(self.model, self.template, self.data.splits.train, progress=False)

    def arm(self, name: str) -> Arm | None:
        """The arm of a method, built once; None where the method has nothing to show here.

        Raises:
            UserError: there is no such method, or it cannot be built.
        """
        if name not in self._arms:
            if name in self.made:
                self._arms[name] = Arm(name, self.made[name])
            else:
                self._arms[name] = (arm := method(name)(self)) and replace(arm, name=name)
        return self._arms[name]


Method = Callable[[Setting], Arm | None]
METHODS: dict[str, Method] = {}
"""Methods by name: those of this package, and what others `register`."""


def register(name: str) -> Callable[[Method], Method]:
    """Enter a function into `METHODS` under a name."""

    def entered(made: Method) -> Method:
        METHODS[name] = made
        return made

    return entered


def method(name: str) -> Method:
    """The method of this name.

    Raises:
        UserError: there is none.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1, cutoff=0.0)
        raise UserError(f"expected a method among {', '.join(METHODS)}, found {name!r}; did you mean {near[0]}?")
    return METHODS[name]


def build(names: Iterable[str | Arm], setting: Setting) -> list[Arm]:
    """The arms of methods by name, in order, less those that have nothing to show; an `Arm` is taken as it is.

    Raises:
        UserError: as `Setting.arm`; all names are looked up before anything is made.
    """
    wanted = list(names)
    for name in wanted:
        if isinstance(name, str) and name not in setting.made:
            method(name)
    arms = [one if isinstance(one, Arm) else setting.arm(one) for one in wanted]
    return [arm for arm in arms if arm is not None]
