"""Random directions as long as LAAI's vectors (arXiv 2502.06115): what any push of that length does."""

from __future__ import annotations

from typing import Any

from cast.extraction import of_equal_norm
from laai.evaluation import Arm
from laai.methods.registry import Setting, register


@register("random")
def random(setting: Setting) -> Arm:
    """At the sites, layers, positions and norms of what `laai` learned; drawn by the data's seed."""
    learned: Any = setting.arm("laai")
    return Arm("random", of_equal_norm(setting.model, learned.steering, setting.data.seed))
