"""What a transfer is asked for and works on: its settings, the target's examples, sources without the tested ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cast.transfers.choice import FEWEST, TRANSFER_SCALES
from laai.errors import UserError
from laai.models import LanguageModel
from laai.prompts import Template
from laai.runtime import FewShotDataModule
from laai.tasks import Example, Task, load_task, without
from laai.vocabulary import SITES, Site, Style

SOURCE_DEVELOPMENT = 20
"""Source examples that layers and scale are chosen on where there are none of the target; a third of them at most."""

Sources = Task | str | Mapping[str, float] | Mapping[Task, float] | Sequence[Task | str]
"""A task, several, or weights by task."""


@dataclass(frozen=True)
class TransferSettings:
    """Settings of `transfer`.

    Raises:
        UserError: no test query.
    """

    development: int = 20
    """Labelled target examples on which site, layers and scale are chosen; 0 to choose them on some examples of the
    source that were no samples (`SOURCE_DEVELOPMENT` of the first, if there are several). No vector is expected to help
    on fewer than `cast.transfers.choice.FEWEST`."""
    test: int | None = 100
    """Target queries at most, at least 1; None for all."""
    samples: int = 50
    """Samples of each source, and the examples that the baseline `cross-task few-shot` shows of the source with the
    largest weight (the first of several), as far as they fit: see `fitting`."""
    shots: int = 5
    """Demonstrations in few-shot prompts: those of the extraction, and those of the baseline `few-shot`, as far as they
    fit."""
    scales: Sequence[float] = TRANSFER_SCALES
    """Strengths to choose from."""
    site: Site | Sequence[Site] = SITES
    """`heads`, `residual`, or both, of which the placement takes one."""
    refuse: bool = True
    """Leave the model as it is where the vector is not expected to help (`Placement.helps`)."""
    calibrate: bool = True
    """Add the `label_prior` that makes labels equally likely over the development examples, to the vector and to the
    controls, where all examples of the target have the same labels. The baseline `label prior` is that of the model
    without a vector."""
    by_layer: bool = False
    """Look for a scale for each sixth of the depth too, see `scale_by_layer`; at `heads` alone."""
    centre: Sequence[Task | str] = ()
    """Tasks whose mean vector is taken off, see `centred`."""
    baselines: Sequence[str] | None = None
    """Which of `cast.transfers.baselines.BASELINES` to measure beside it; None for all."""
    style: Style = "plain"
    """Prompt style."""
    seed: int = 0
    """Draws everything."""

    def __post_init__(self) -> None:
        """Refuse a transfer that nothing would be known of."""
        if self.test is not None and self.test < 1:
            what = "what a transfer gives is measured on them"
            raise UserError(f"expected at least 1 test query, found {self.test}: {what}")


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
