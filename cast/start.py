"""The `cast` start of LAAI: a Lightning callback, through which `laai` stays free of `cast`."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from cast.cross_task import without
from cast.extraction import extract, extract_own
from laai.intervention import Intervention
from laai.module import LAAIModule
from laai.tasks import Task, load_task


class CastStart(pl.Callback):
    """Give a `LAAIModule` its CAST vectors: from its own training examples, or from another task.

    The run's test and validation inputs are left out of another task, which may share them or be the same one.

    Args:
        samples: source samples, for another task.
        shots: demonstrations in each few-shot prompt, for another task.
        shared_shots: the same demonstrations for all samples, run once.
    """

    def __init__(self, samples: int = 50, shots: int = 5, shared_shots: bool = False) -> None:
        self.samples, self.shots, self.shared_shots = samples, shots, shared_shots
        self._source: Task | None = None
        self.vector: Intervention | None = None
        """The extracted vector at scale 1, on all layers that have the site."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Offer the start to the module; nothing is extracted before it asks, but a source must be there now.

        Raises:
            UserError: the source task cannot be read.
        """
        if isinstance(pl_module, LAAIModule):
            pl_module.cast_start, self.vector = self.extract, None
            self._source = None if pl_module.source == "own" else load_task(pl_module.source)

    def extract(self, module: LAAIModule) -> Intervention:
        """The CAST vector for this run, extracted once.

        Raises:
            UserError: too few examples to extract from, those of the run's test and validation apart.
        """
        if self.vector is None:
            data, model = module.data, module.language_model
            options: dict[str, Any] = {"site": module.site, "positions": module.positions}
            if self._source is None:
                self.vector = extract_own(model, module.template, data.splits.train, **options)
            else:
                options |= {"samples": self.samples, "shots": self.shots, "shared_shots": self.shared_shots}
                options |= {"style": data.style, "seed": data.seed}
                held_out = {example.input for example in (*data.splits.test, *data.splits.validation)}
                self.vector = extract(model, without(self._source, held_out), **options)
        return self.vector
