"""Zero-shot and few-shot prompting (arXiv 2005.14165): a query alone, and behind all training examples."""

from __future__ import annotations

from laai.evaluation import Arm
from laai.methods.registry import Setting, register


@register("zero-shot")
def zero_shot(setting: Setting) -> Arm:
    """The model alone."""
    return Arm("zero-shot")


@register("few-shot")
def few_shot(setting: Setting) -> Arm:
    """The training examples before every query."""
    return Arm("few-shot", demonstrations=setting.data.splits.train)
