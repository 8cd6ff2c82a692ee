"""Methods side by side: built by name, and measured on the same queries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from laai.engine import Engine
from laai.evaluation import Arm, Evaluation, evaluate_arms
from laai.methods import Setting, build
from laai.models import LanguageModel
from laai.runtime import FewShotDataModule, Trainer, quiet_trainer


def compare(
    model: LanguageModel, data: FewShotDataModule, methods: Iterable[str | Arm], *,
    made: Mapping[str, Any] | None = None, options: Mapping[str, Mapping[str, Any]] | None = None,
    trainer: Trainer | None = None, engine: Engine | None = None,
) -> list[Evaluation]:  # fmt: skip
    """Measure methods on the test examples of `data`; returns the evaluations in order, of which each is a row.

    Args:
        model: with nothing attached.
        data: the task, examples to learn from, and queries.
        methods: names in `laai.methods.METHODS` or in `made`, or arms of one's own.
        made: what is there already and is not made again, see `laai.methods.Setting`.
        options: further arguments by a method's name, see there.
        trainer: shares the queries out to its devices; default: one device, where nothing is written.
        engine: the model's, with what earlier comparisons ran; this one's is kept in it.

    Raises:
        UserError: no such method, one that cannot be built, or no test examples.
    """
    arms = build(methods, Setting(model, data, made or {}, options or {}))
    return evaluate_arms(trainer or quiet_trainer(), model, data, arms, engine)
