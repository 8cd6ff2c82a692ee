"""A transfer up to its test: vectors of the source tasks, where they go, and what is applied."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cast.extraction import centred, combined, discard, extract, files_of, with_label_prior
from cast.transfers.choice import Placement
from cast.transfers.draws import Drawn, TransferSettings
from cast.transfers.search import choose_placement
from laai.models import LanguageModel
from laai.runtime import Trainer
from laai.steering import Intervention
from laai.tasks import Task


class Course:
    """One transfer on its way; each extraction is kept under a number of its own.

    Attributes:
        vector: of the sources, whole, at scale 1.
        placement: where it goes, and how strongly.
        steering: the placed vector with its label prior, where one goes with it; its provenance has `refused` too.
        refused: it is not applied.
        selected: samples are not drawn at random.
    """

    def __init__(
        self, model: LanguageModel, drawn: Drawn, settings: TransferSettings, partial: Path | None,
        trainer: Trainer | None, options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.model, self.drawn, self.settings = model, drawn, settings
        self._partial, self._trainer, self._numbers = partial, trainer, itertools.count()
        self._options = {name: getattr(settings, name) for name in ("samples", "shots", "style", "seed", "site")}
        self._options |= options
        self.selected = self._options.get("strategy", "random") != "random"
        self._centre = [self._extracted(task) for task in drawn.centre]
        self.vector = self._combined()
        self.placement = self._placed(self.vector)
        self.refused = not self._fits(self.placement)
        self.steering = self.finished(self.placement.of(self.vector))
        known = self.steering.provenance.having_seen(e.input for e in drawn.examples)
        self.steering.provenance = replace(known, refused=self.refused)

    def finished(self, vector: Intervention) -> Intervention:
        """A vector as it is applied: with its label prior, where one goes with it."""
        drawn = self.drawn
        return with_label_prior(self.model, vector, drawn.template, drawn.examples) if drawn.calibrates else vector

    def of_random_samples(self) -> Intervention | None:
        """What would be applied of samples that are drawn at random, at a placement of its own; None for nothing."""
        vector = self._combined(strategy="random", encoder=None)
        placement = self._placed(vector)
        return self.finished(placement.of(vector)) if self._fits(placement) else None

    def _combined(self, **changes: Any) -> Intervention:
        sources = self.drawn.sources
        found = combined([self._extracted(task, **changes) for task in sources], list(sources.values()))
        return centred(found, self._centre) if self._centre else found

    def _extracted(self, task: Task, **changes: Any) -> Intervention:
        kept = None if self._partial is None else numbered(self._partial, next(self._numbers))
        return extract(self.model, task, trainer=self._trainer, partial=kept, **(self._options | changes))

    def _placed(self, vector: Intervention) -> Placement:
        drawn, settings, progress = self.drawn, self.settings, self._options["progress"]
        found = choose_placement(
            self.model, vector, drawn.template, drawn.examples,
            calibrate=drawn.calibrates, by_layer=settings.by_layer, scales=settings.scales, progress=progress,
        )  # fmt: skip
        return found if self._trainer is None else self._trainer.strategy.broadcast(found)  # all test the same

    def _fits(self, placement: Placement) -> bool:
        return bool(placement.scale) and (placement.helps or not self.settings.refuse)


def numbered(partial: Path, number: int) -> Path:
    """Where the extraction of this number keeps what it has done."""
    return partial.with_name(f"{partial.name}-{number}")


def discard_all(partial: Path) -> None:
    """Delete what `transfer` keeps; for its callers, once what it found is saved."""
    for number in itertools.takewhile(lambda n: files_of(numbered(partial, n)), itertools.count()):
        discard(numbered(partial, number))
