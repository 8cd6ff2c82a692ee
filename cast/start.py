"""The `cast` start of LAAI: a Lightning callback, through which `laai` stays free of `cast`."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from cast.cross_task import without
from cast.extraction import extract, extract_own
from cast.mixing import combined
from laai.errors import UserError
from laai.intervention import Intervention
from laai.module import LAAIModule
from laai.tasks import Task, load_task

BUILT_IN = ("antonym", "country-language", "present-past", "word-sentiment", "english-french")
"""Of these, the first four that a run does not learn itself start it from a single example."""


class CastStart(pl.Callback):
    """Give a `LAAIModule` its CAST vectors: from its own training examples, or from other tasks.

    The run's test and validation inputs are left out of other tasks, which may share them or be the same one.

    Args:
        samples: source samples, of other tasks in all.
        shots: demonstrations in each few-shot prompt, for other tasks.
        shared_shots: the same demonstrations for all samples, run once.
    """

    def __init__(self, samples: int = 50, shots: int = 5, shared_shots: bool = False) -> None:
        self.samples, self.shots, self.shared_shots = samples, shots, shared_shots
        self._sources: list[Task] = []
        self.vector: Intervention | None = None
        """The extracted vector at scale 1, on all layers that have the site."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Offer the start to the module; nothing is extracted before it asks, but sources must be there now.

        Raises:
            UserError: a source task cannot be read, or none is named.
        """
        if not isinstance(pl_module, LAAIModule):
            return
        source, data = pl_module.source, pl_module.data
        if not source:
            raise UserError("expected source as auto, own, or the names of tasks; found none")
        pl_module.cast_start, self.vector = self.extract, None
        names = [source] if isinstance(source, str) else source
        if source == "auto" and data.num_examples == 1:
            names = [name for name in BUILT_IN if name != data.task.name][:4]
        self._sources = [] if names in (["own"], ["auto"]) else [load_task(name) for name in names]

    def extract(self, module: LAAIModule) -> Intervention:
        """The CAST vector for this run, extracted once.

        Raises:
            UserError: too few examples to extract from, those of the run's test and validation apart.
        """
        if self.vector is None:
            data, model = module.data, module.language_model
            options: dict[str, Any] = {"site": module.site, "positions": module.positions}
            if not self._sources:
                self.vector = extract_own(model, module.template, data.splits.train, **options)
            else:
                count = len(self._sources)
                options |= {"samples": max(2, self.samples // count), "shots": self.shots, "style": data.style}
                options |= {"shared_shots": self.shared_shots, "seed": data.seed}
                held_out = {example.input for example in (*data.splits.test, *data.splits.validation)}
                vectors = [extract(model, without(source, held_out), **options) for source in self._sources]
                self.vector = combined(vectors, [1 / count] * count)
        return self.vector
