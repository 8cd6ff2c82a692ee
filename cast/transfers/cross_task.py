"""CAST from start to end: vectors from source tasks, layers and scale from a few examples, a test beside baselines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from cast.extraction import (
    centred,
    combined,
    discard,
    extract,
    files_of,
    label_prior,
    of_equal_norm,
    own_seed,
    with_label_prior,
)
from cast.transfers.choice import FEWEST, SCALES, Choice
from cast.transfers.place import choose_place
from laai.errors import UserError
from laai.evaluation import Arm, Evaluation, Scores, evaluate_arms
from laai.models import LanguageModel
from laai.prompts import Shown, Template, demonstrations_of, fitting, fitting_own
from laai.runtime import FewShotDataModule, quiet_trainer
from laai.steering import Intervention
from laai.tasks import Example, Task, load_task, without
from laai.vocabulary import SITES, Site, Style

SOURCE_DEVELOPMENT = 20
"""Source examples that layers and scale are chosen on where there are none of the target; a third of them at most."""


BASELINES = ("zero-shot", "cross-task few-shot", "few-shot", "label prior", "random direction", "random samples")


Sources = Task | str | Mapping[str, float] | Mapping[Task, float] | Sequence[Task | str]
"""A task, several, or weights by task."""


@dataclass(frozen=True)
class Transfer:
    """What a transfer gave.

    Attributes:
        vector: the combined vector at its chosen layers and scale, applied or not; its provenance has `refused` too.
        choice: where and how strongly, and the evidence for it.
        chosen_on: what the choice was made on: `target` or `source`.
        refused: the vector was not expected to help, or there is none (scale 0): the row `cast` is the model alone.
        scores: one row for each method.
        evaluations: what each method answered, in the order of `scores`.
        shown: what the baseline `cross-task few-shot` shows; None where it was not measured.
    """

    vector: Intervention
    choice: Choice
    chosen_on: str
    refused: bool
    scores: list[Scores]
    evaluations: list[Evaluation]
    shown: Shown | None = None

    @property
    def few_shot(self) -> int | None:
        """How many demonstrations the baseline `few-shot` shows; None where it was not measured."""
        shown = [len(e.arm.demonstrations) for e in self.evaluations if e.arm.demonstrations]
        return shown[0] if shown else None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        facts = {"chosen_on": self.chosen_on, "refused": self.refused, "choice": asdict(self.choice)}
        facts["label_prior"] = self.vector.provenance.label_prior
        shown = self.shown and {"source": self.shown.task.name, "examples": len(self.shown.examples)}
        facts["cross_task_few_shot"] = shown
        facts["few_shot"] = self.few_shot
        told = ("base_model", "revision", "config_hash", "cast")
        facts["vector"] = {name: value for name, value in self.vector.provenance.to_header().items() if name in told}
        pairs = zip(self.scores, self.evaluations, strict=True)
        return facts | {"rows": [scores.as_json() | evaluation.answers for scores, evaluation in pairs]}


def transfer(
    model: LanguageModel,
    source: Sources,
    target: Task | str,
    *,
    development: int = 20,
    test: int | None = 100,
    samples: int = 50,
    shots: int = 5,
    scales: Sequence[float] = SCALES,
    site: Site | Sequence[Site] = SITES,
    refuse: bool = True,
    calibrate: bool = True,
    by_layer: bool = False,
    centre: Sequence[Task | str] = (),
    baselines: Sequence[str] = BASELINES,
    style: Style = "plain",
    seed: int = 0,
    trainer: pl.Trainer | None = None,
    partial: Path | None = None,
    progress: bool = True,
    **options: Any,
) -> Transfer:
    """Steer a poorly-resourced target by vectors of well-resourced source tasks, and measure it (CAST, 2507.13236).

    Args:
        model: the language model.
        source: a task, several, or weights by task; several vectors are combined as their weighted mean.
        target: the task to be steered.
        development: labelled target examples on which layers and scale are chosen; 0 to choose them on some examples
            of the source that were no samples (`SOURCE_DEVELOPMENT` of the first, if there are several). No vector is
            expected to help on fewer than `cast.transfers.choice.FEWEST`.
        test: target queries at most, at least 1; None for all.
        samples: samples of each source, and the examples that the baseline `cross-task few-shot` shows of the source
            with the largest weight (the first of several), as far as they fit: see `fitting`.
        shots: demonstrations in few-shot prompts: those of the extraction, and those of the baseline `few-shot`, as far
            as they fit.
        scales: strengths to choose from.
        site: `heads`, `residual`, or both, of which the choice takes one.
        refuse: leave the model as it is where the vector is not expected to help (`Choice.helps`).
        calibrate: add the `label_prior` that makes labels equally likely over the development examples, to the vector
            and to the controls, where all examples of the target have the same labels. The baseline `label prior` is
            that of the model without a vector.
        by_layer: look for a scale for each sixth of the depth too, see `scale_by_layer`; at `heads` alone.
        centre: tasks whose mean vector is taken off, see `centred`.
        baselines: which of `BASELINES` to measure beside it.
        style: prompt style.
        seed: draws everything.
        trainer: a Lightning trainer for extraction and tests, whose devices share them; all else runs in each of its
            processes, where the model is. Default: tests on one device, extraction where the model is.
        partial: where to keep extractions, so that a run with the same settings goes on from there after an
            interruption; what is chosen and measured after them is done again. See `discard_all`.
        progress: show progress bars.
        options: further arguments of `cast.extract`: strategy, kind, shared_shots, …

    Raises:
        UserError: a task cannot be read, is too small or is given twice, no test query, an unknown baseline, a model
            that overflows on all examples that the choice is made on, a trainer whose precision would convert it, or
            partial files of other extractions.
    """
    if test is not None and test < 1:
        raise UserError(f"expected at least 1 test query, found {test}: what a transfer gives is measured on them")
    unknown = sorted(set(baselines) - set(BASELINES))
    if unknown:
        raise UserError(f"baselines must be among {', '.join(BASELINES)}, not {unknown[0]!r}")
    data = FewShotDataModule(target, shots, seed=seed, validation=development, test=test, style=style)
    seen = {example.input for example in (*data.splits.test, *data.splits.validation)}
    weights = distinct([(without(task, seen), weight) for task, weight in weighted(source)])
    template, examples = data.template(model.tokenizer), data.splits.validation
    everyone = (*data.task.examples, *data.splits.test)  # a few may have the same options by chance
    calibrate = calibrate and development > 0 and len({e.choices for e in everyone}) == 1
    if not development:
        first = next(iter(weights))
        examples = source_development(first, seed)
        template = Template(model.tokenizer, first, style)
        seen |= {example.input for example in examples}
        weights = distinct([(without(task, seen), weight) for task, weight in weights.items()])
    progress = progress and (trainer is None or trainer.is_global_zero)
    options |= {"samples": samples, "shots": shots, "style": style, "seed": seed, "progress": progress}
    options |= {"site": site, "trainer": trainer}
    numbers = itertools.count()

    def extracted(task: Task, **changes: Any) -> Intervention:
        kept = None if partial is None else numbered(partial, next(numbers))
        return extract(model, task, partial=kept, **(options | changes))

    def chosen(vector: Intervention) -> Choice:
        how: dict[str, Any] = {"calibrate": calibrate, "by_layer": by_layer, "scales": scales, "progress": progress}
        found = choose_place(model, vector, template, examples, **how)
        return found if trainer is None else trainer.strategy.broadcast(found)  # all processes test the same

    middle = [extracted(without(one, seen)) for one, _ in weighted(centre)] if centre else []

    def made(**changes: Any) -> Intervention:
        found = combined([extracted(task, **changes) for task in weights], list(weights.values()))
        return centred(found, middle) if middle else found

    def unfit(choice: Choice) -> bool:
        return not choice.scale or (refuse and not choice.helps)

    vector = made()
    choice = chosen(vector)
    refused = unfit(choice)

    def finished(bare: Intervention) -> Intervention:
        return with_label_prior(model, bare, template, examples) if calibrate else bare

    steering = finished(choice.of(vector))
    steering.provenance = replace(steering.provenance.having_seen(e.input for e in examples), refused=refused)
    methods = [Arm("cast", None if refused else steering)]
    if "label prior" in baselines and calibrate:
        prior = label_prior(model, Intervention.zeros(model, "residual", [0]), template, examples)
        methods = ([] if prior is None else [Arm("label prior", prior)]) + methods
    if "random direction" in baselines and choice.scale:
        draw = own_seed(seed, data.task.name, *(task.name for task in weights))
        methods.append(Arm("random direction", finished(of_equal_norm(model, choice.of(vector), draw))))
    if "random samples" in baselines and options.get("strategy", "random") != "random":
        other = made(strategy="random", encoder=None)
        place = chosen(other)
        methods.append(Arm("random samples", None if unfit(place) else finished(place.of(other))))
    own = data.template(model.tokenizer)
    if "few-shot" in baselines and (fits := fitting_own(model, own, data.splits.train, data.splits.test)):
        methods.insert(0, Arm("few-shot", demonstrations=fits))
    shown = None
    if "cross-task few-shot" in baselines:
        heaviest = max(weights, key=lambda task: weights[task])
        offered = demonstrations_of(heaviest, min(samples, len(heaviest.examples)), seed)
        shown = fitting(model, own, offered, data.splits.test)
    if shown is not None:
        methods.insert(0, Arm("cross-task few-shot", before=shown))
    if "zero-shot" in baselines:
        methods.insert(0, Arm("zero-shot"))
    tester = trainer or quiet_trainer()
    evaluations = evaluate_arms(tester, model, data, methods)
    scores = [e.scores for e in evaluations if e.scores is not None]
    return Transfer(steering, choice, "target" if development else "source", refused, scores, evaluations, shown)


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


def numbered(partial: Path, number: int) -> Path:
    """Where the extraction of this number keeps what it has done."""
    return partial.with_name(f"{partial.name}-{number}")


def discard_all(partial: Path) -> None:
    """Delete what `transfer` keeps; for its callers, once what it found is saved."""
    for number in itertools.takewhile(lambda n: files_of(numbered(partial, n)), itertools.count()):
        discard(numbered(partial, number))
