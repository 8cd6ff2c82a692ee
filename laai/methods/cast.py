"""CAST (arXiv 2507.13236): the task's own CAST vector, at the scale that makes the training answers likeliest."""

from __future__ import annotations

from cast.extraction import best_scale
from laai.evaluation import Arm
from laai.methods.registry import Setting, register


@register("cast")
def cast(setting: Setting) -> Arm:
    """On all layers of `Setting.own`."""
    return Arm("cast", best_scale(setting.model, setting.own, setting.prompts) * setting.own)
