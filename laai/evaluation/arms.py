"""Arms side by side: the same examples, prompts and metrics for each, through Lightning's test loop."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from laai.engine import Engine
from laai.errors import UserError
from laai.evaluation.measuring import Measured, measure
from laai.evaluation.scores import Scores, TaskMetrics
from laai.models import LanguageModel
from laai.prompts import Shown, answer_limit
from laai.runtime import FewShotDataModule, heed_sigterm
from laai.steering import Attachment, Steering
from laai.tasks import Example


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison: what makes the frozen model do the task. Vectors, demonstrations, both, or neither.

    Attributes:
        name: for tables.
        steering: what is attached.
        demonstrations: of the task, shown before each query.
        before: demonstrations of another task, shown before those.
    """

    name: str
    steering: Steering | None = None
    demonstrations: tuple[Example, ...] = ()
    before: Shown | None = None


class Evaluation(pl.LightningModule):
    """One arm under Lightning's test loop, which shares the examples out to the devices.

    After the loop: `scores` and `answers` (see `TaskMetrics`) over all devices, and `measured`, this device's examples.
    """

    def __init__(
        self, language_model: LanguageModel, data: FewShotDataModule, arm: Arm, engine: Engine | None = None
    ) -> None:
        super().__init__()
        self._engine = engine
        self.llm: nn.Module
        language_model.held_by(self)
        self.arm, self._data, self._language_model = arm, data, language_model
        self.template = replace(data.template(language_model.tokenizer), before=arm.before)
        self.metrics = TaskMetrics()
        self.measured: list[Measured] = []
        self.scores: Scores | None = None
        self.answers: dict[str, list[int | None]] = {}
        self._limit = answer_limit(self.template, data.splits.test)
        self._attachment: Attachment | None = None

    def configure_model(self) -> None:
        """Nothing to do; sharding strategies ask for it."""

    def on_test_start(self) -> None:
        """Hook the vectors in."""
        heed_sigterm(self.trainer)
        if self.arm.steering is not None:
            self._attachment = self.arm.steering.attach(self._language_model)

    def test_step(self, rows: Tensor) -> None:
        """Measure the test examples numbered `rows`."""
        examples = self._data.splits.test
        measured = measure(
            self._language_model,
            self.template,
            [(row, examples[row]) for row in rows.tolist()],
            self.arm.demonstrations,
            max_new_tokens=self._limit,
            batch_size=self._data.eval_batch_size,
            engine=self._engine,
        )
        self.measured += measured
        self.metrics.update(measured)

    def on_test_epoch_end(self) -> None:
        """Gather the scores of all devices."""
        self.scores, self.answers = self.metrics.compute(self.arm.name), self.metrics.answers()

    def as_row(self) -> dict[str, Any]:
        """Scores and answers over all devices as plain JSON values, once the loop is over."""
        return ({} if self.scores is None else self.scores.as_json()) | self.answers

    def detach(self) -> None:
        """Unhook the vectors."""
        if self._attachment is not None:
            self._attachment.detach()
            self._attachment = None
        self._engine = None  # what it keeps is not kept by results


def evaluate_arms(
    trainer: pl.Trainer,
    language_model: LanguageModel,
    data: FewShotDataModule,
    arms: Sequence[Arm],
    engine: Engine | None = None,
) -> list[Evaluation]:
    """Measure each arm on the test examples of `data`; returns the evaluations in order.

    Whatever vectors are attached to the model stay attached: detach them first for a clean comparison.

    Prompts that arms have in common are run once, and kept in the model's `engine`, for later comparisons too.

    Raises:
        UserError: no test examples.
    """
    if not data.splits.test:
        raise UserError("there are no test examples to compare on; ask for some by test")
    done, engine = [], engine or Engine(language_model)
    for arm in arms:
        evaluation = Evaluation(language_model, data, arm, engine)
        logging.getLogger("laai").info("testing %s", arm.name)
        try:
            trainer.test(evaluation, dataloaders=data.test_dataloader(), verbose=False)
        finally:
            evaluation.detach()  # Lightning's own teardown hooks do not run after an exception
        done.append(evaluation)
    return done
