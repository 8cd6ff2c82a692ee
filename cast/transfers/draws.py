"""What a transfer works on: examples of the target, and source tasks without those that are tested."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cast.transfers.choice import FEWEST
from cast.transfers.settings import TransferSettings
from laai.errors import UserError
from laai.models import LanguageModel
from laai.prompts import Template
from laai.runtime import FewShotDataModule
from laai.tasks import Example, Task, load_task, without

SOURCE_DEVELOPMENT = 20
"""Source examples that layers and scale are chosen on where there are none of the target; a third of them at most."""


Sources = Task | str | Mapping[str, float] | Mapping[Task, float] | Sequence[Task | str]
"""A task, several, or weights by task."""


@dataclass(frozen=True)
class Drawn:
    """Tasks and examples of one transfer.

    Attributes:
        data: the target's: test queries, and demonstrations to train on.
        sources: weights by task, without examples that are tested or chosen on.
        centre: tasks whose mean vector is taken off, without those too.
        template: writes the prompts of `examples`.
        examples: labelled, that the placement is chosen on.
        calibrates: a label prior goes with vectors.
    """

    data: FewShotDataModule
    sources: Mapping[Task, float]
    centre: tuple[Task, ...]
    template: Template
    examples: tuple[Example, ...]
    calibrates: bool


def draw_tasks(model: LanguageModel, source: Sources, target: Task | str, settings: TransferSettings) -> Drawn:
    """Draw a target's examples and keep them out of the sources.

    Raises:
        UserError: a task cannot be read, is too small or is given twice.
    """
    shots, seed, style, development = settings.shots, settings.seed, settings.style, settings.development
    data = FewShotDataModule(target, shots, seed=seed, validation=development, test=settings.test, style=style)
    template, examples = data.template(model.tokenizer), data.splits.validation
    seen = {example.input for example in (*data.splits.test, *examples)}
    sources = distinct([(without(task, seen), weight) for task, weight in weighted(source)])
    if not development:
        first = next(iter(sources))
        template, examples = Template(model.tokenizer, first, style), source_development(first, seed)
        seen |= {example.input for example in examples}
        sources = distinct([(without(task, seen), weight) for task, weight in sources.items()])
    centre = tuple(without(task, seen) for task, _ in weighted(settings.centre)) if settings.centre else ()
    everyone = (*data.task.examples, *data.splits.test)  # a few may have the same options by chance
    calibrates = settings.calibrate and development > 0 and len({e.choices for e in everyone}) == 1
    return Drawn(data, sources, centre, template, examples, calibrates)


def source_development(source: Task, seed: int) -> tuple[Example, ...]:
    """Examples of a source that layers and scale are chosen on where there are none of the target: no samples.

    Raises:
        UserError: the source has too few.
    """
    some = min(SOURCE_DEVELOPMENT, len(source.examples) // 3)
    if some < FEWEST:
        raise UserError(
            f"expected {3 * FEWEST} examples of {source.name} or more, a third of them to choose layers and scale "
            f"on, found {len(source.examples)}: give it more, or --development some of the target"
        )
    return source.split(0, validation=some, test=0, seed=seed).validation


def weighted(source: Sources, load: Callable[[str], Task] = load_task) -> list[tuple[Task, float]]:
    """Source tasks with their weights, which sum to one; `load` reads those that are given by name.

    Raises:
        UserError: no source, one that is given twice, or weights that are not positive and finite.
    """
    pairs: list[tuple[Task | str, float]]
    if isinstance(source, Mapping):
        pairs = [(one, weight) for one, weight in source.items()]
    else:
        pairs = [(one, 1.0) for one in ([source] if isinstance(source, Task | str) else source)]
    if not pairs or any(not 0 < weight < math.inf for _, weight in pairs):
        named = ", ".join(f"{one.name if isinstance(one, Task) else one}={weight:g}" for one, weight in pairs)
        raise UserError(f"expected at least one source task, each with a weight above 0, found {named or 'none'}")
    total = sum(weight for _, weight in pairs)
    found = [(one if isinstance(one, Task) else load(one), weight / total) for one, weight in pairs]
    return list(distinct(found).items())


def distinct(pairs: Sequence[tuple[Task, float]]) -> dict[Task, float]:
    """Weights by task.

    Raises:
        UserError: two tasks are equal.
    """
    found: dict[Task, float] = {}
    for task, weight in pairs:
        if task in found:
            raise UserError(f"expected each task once, found {task.name!r} twice: give it once, perhaps with a weight")
        found[task] = weight
    return found
