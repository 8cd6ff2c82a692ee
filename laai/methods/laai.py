"""LAAI (arXiv 2502.06115): vectors learned by gradient descent from the training examples; starts and layers vary."""

from __future__ import annotations

from functools import partial
from typing import Any

from laai.evaluation import Arm
from laai.learn import fit
from laai.methods.registry import Setting, register

START_SCALE = 0.5
"""How much of the own CAST vector learning starts from."""


def learned(setting: Setting, **changes: Any) -> Arm:
    """By the default recipe from half the own CAST vector, from zero where there is one example.

    `Setting.options["laai"]` and `changes` are arguments of `laai.fit`.
    """
    data = setting.data
    options: dict[str, Any] = {"seed": data.seed, "style": data.style} | dict(setting.options.get("laai", {})) | changes
    if "init" not in options:
        options["init"] = START_SCALE * setting.own if data.num_examples > 1 else "zero"
    return Arm("laai", fit(setting.model, data.task, data.num_examples, **options))


register("laai")(learned)
register("laai-zero")(partial(learned, init="zero"))
register("laai-all")(partial(learned, layers="all"))
