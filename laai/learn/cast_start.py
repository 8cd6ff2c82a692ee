"""The `cast` start of LAAI: a Lightning callback, through which `laai` stays free of `cast`."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from cast.extraction import combined, extract, extract_own
from laai.errors import UserError
from laai.learn.module import LAAIModule
from laai.steering import Intervention
from laai.tasks import Task, excluding, load_task, without

SEVERAL = (
    *("antonym", "capital-country", "country-capital", "country-language"),
    *("english-french", "present-past", "singular-plural", "word-sentiment"),
)
"""Built-in tasks, of which the next four start a run with a single example."""


def others_of(name: str) -> list[str]:
    """The built-in tasks of `SEVERAL` that come after this one, around to the one before it."""
    at = SEVERAL.index(name) if name in SEVERAL else 0
    return [task for task in SEVERAL[at:] + SEVERAL[:at] if task != name]


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
        self._held_out: set[str] = set()
        self.vector: Intervention | None = None
        """The extracted vector at scale 1, on all layers that have the site."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Offer the start to the module; nothing is extracted before it asks, but sources must be there now.

        Raises:
            UserError: a source task cannot be read, none is named, or one twice.
        """
        if not isinstance(pl_module, LAAIModule):
            return
        data, pl_module.cast_start, self.vector = pl_module.data, self.extract, None
        names = [pl_module.source] if isinstance(pl_module.source, str) else pl_module.source
        if not names or len(set(names)) < len(names):
            raise UserError(f"expected source as auto, own, or tasks by name, each once; found {names}")
        self._held_out = {example.input for example in (*data.splits.test, *data.splits.validation)}
        if names == ["auto"] and data.num_examples == 1:
            tasks = [load_task(name) for name in others_of(data.task.name)]
            left = [task for task in tasks if len(excluding(task.examples, self._held_out)) > self.shots]
            self._sources = left[:4]
        else:
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
                samples = min(self.samples, max(1, self.samples // count))  # 0 stays 0, which is refused
                options |= {"samples": samples, "shots": self.shots, "style": data.style}
                options |= {"shared_shots": self.shared_shots, "seed": data.seed}
                vectors = [extract(model, without(source, self._held_out), **options) for source in self._sources]
                self.vector = combined(vectors, [1 / count] * count)
        return self.vector
