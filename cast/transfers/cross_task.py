"""CAST from start to end: vectors from source tasks, placed by a few examples, tested beside baselines."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cast.transfers.baselines import BASELINES, arms_of
from cast.transfers.choice import Placement
from cast.transfers.course import Course
from cast.transfers.draws import Sources, TransferSettings, draw_tasks
from laai.compare import compare
from laai.errors import UserError
from laai.evaluation import Evaluation, Scores
from laai.models import LanguageModel
from laai.prompts import Shown
from laai.runtime import Trainer
from laai.steering import Intervention
from laai.tasks import Task


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
    """

    vector: Intervention
    choice: Placement
    chosen_on: str
    refused: bool
    scores: list[Scores]
    evaluations: list[Evaluation]

    @property
    def few_shot(self) -> int | None:
        """How many demonstrations the baseline `few-shot` shows; None where it was not measured."""
        return next((len(e.arm.demonstrations) for e in self.evaluations if e.arm.demonstrations), None)

    @property
    def shown(self) -> Shown | None:
        """What the baseline `cross-task few-shot` shows; None where it was not measured."""
        return next((e.arm.before for e in self.evaluations if e.arm.before), None)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        facts = {"chosen_on": self.chosen_on, "refused": self.refused, "choice": asdict(self.choice)}
        facts["label_prior"] = self.vector.provenance.label_prior
        shown = self.shown and {"source": self.shown.task.name, "examples": len(self.shown.examples)}
        facts |= {"cross_task_few_shot": shown, "few_shot": self.few_shot}
        told = ("base_model", "revision", "config_hash", "cast")
        facts["vector"] = {name: value for name, value in self.vector.provenance.to_header().items() if name in told}
        return facts | {"rows": [evaluation.as_row() for evaluation in self.evaluations]}


def transfer(
    model: LanguageModel, source: Sources, target: Task | str, *, trainer: Trainer | None = None,
    partial: Path | None = None, progress: bool = True, **options: Any,
) -> Transfer:  # fmt: skip
    """Steer a poorly-resourced target by vectors of well-resourced source tasks, and measure it (CAST, 2507.13236).

    Args:
        source: a task, several, or weights by task; several vectors are combined as their weighted mean.
        target: the task to be steered.
        trainer: a Lightning trainer for extraction and tests, whose devices share them; all else runs in each of its
            processes, where the model is. Default: tests on one device, extraction where the model is.
        partial: where to keep extractions, so that a run with the same settings goes on from there after an
            interruption; what is chosen and measured after them is done again. See `discard_all`.
        options: those of `cast.transfers.draws.TransferSettings`, and further arguments of `cast.extract`: strategy,
            kind, shared_shots, …

    Raises:
        UserError: a task cannot be read, is too small or is given twice, no test query, an unknown baseline, a model
            that overflows on all examples that the placement is chosen on, or what `cast.extract` raises.
    """
    named = {field.name for field in fields(TransferSettings)} & options.keys()
    settings = TransferSettings(**{name: options.pop(name) for name in named})
    baselines = BASELINES if settings.baselines is None else settings.baselines
    if unknown := sorted(set(baselines) - set(BASELINES)):
        raise UserError(f"baselines must be among {', '.join(BASELINES)}, not {unknown[0]!r}")
    drawn = draw_tasks(model, source, target, settings)
    options["progress"] = progress and (trainer is None or trainer.is_global_zero)
    course = Course(model, drawn, settings, partial, trainer, options)
    evaluations = compare(model, drawn.data, arms_of(course, baselines), trainer=trainer)
    scores = [e.scores for e in evaluations if e.scores is not None]
    chosen_on = "target" if settings.development else "source"
    return Transfer(course.steering, course.placement, chosen_on, course.refused, scores, evaluations)
