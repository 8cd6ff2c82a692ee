"""Learn additive activation vectors for a frozen language model from a few labelled examples.

import laai, cast

model = laai.load_model("default")
task = laai.load_task("antonym")
start = 0.5 * cast.extract(model, source=laai.load_task("synonym"), samples=50, shots=5)
vector = laai.fit(model, task, num_examples=10, init=start)
with vector.on(model):
    model.llm.generate(...)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laai.errors import UserError
    from laai.evaluation import measure
    from laai.learn import LAAIModule, Recipe, fit
    from laai.models import LanguageModel, load_model
    from laai.prompts import Template
    from laai.steering import Intervention
    from laai.tasks import Example, Task, builtin_tasks, load_task

_HOMES = {
    "Example": "laai.tasks",
    "Intervention": "laai.steering",
    "LAAIModule": "laai.learn",
    "LanguageModel": "laai.models",
    "Recipe": "laai.learn",
    "Task": "laai.tasks",
    "Template": "laai.prompts",
    "UserError": "laai.errors",
    "builtin_tasks": "laai.tasks",
    "fit": "laai.learn",
    "load_model": "laai.models",
    "load_task": "laai.tasks",
    "measure": "laai.evaluation",
}
__all__ = [
    "Example",
    "Intervention",
    "LAAIModule",
    "LanguageModel",
    "Recipe",
    "Task",
    "Template",
    "UserError",
    "builtin_tasks",
    "fit",
    "load_model",
    "load_task",
    "measure",
]


def __getattr__(name: str) -> Any:
    """Import on first use: torch and transformers take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'laai' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
