"""CAST, Cross-task Activation Steering Transfer: contrastive vectors and where to add them.

Not to be confused with Conditional Activation Steering (arXiv 2409.05907), which shares the acronym.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cast.extraction import CastStart, best_scale, centred, extract, extract_from, extract_own, with_label_prior
    from cast.transfers import transfer

_HOMES = {
    "CastStart": "cast.extraction",
    "best_scale": "cast.extraction",
    "centred": "cast.extraction",
    "extract": "cast.extraction",
    "extract_from": "cast.extraction",
    "extract_own": "cast.extraction",
    "transfer": "cast.transfers",
    "with_label_prior": "cast.extraction",
}
__all__ = [
    "CastStart", "best_scale", "centred", "extract", "extract_from", "extract_own", "transfer", "with_label_prior",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use: torch and transformers take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cast' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
