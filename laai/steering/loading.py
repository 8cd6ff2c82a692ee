"""Reading whatever steers a model from its file."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from laai.models import LanguageModel
from laai.steering.intervention import Intervention
from laai.steering.ridge import RidgeMap
from laai.steering.steering import Steering, load_one_of


def load(path: str | Path, model: nn.Module | LanguageModel | None = None) -> Steering:
    """Read an intervention or a ridge map, whichever the file holds; with `model`, refuse one that does not fit it.

    Raises:
        UserError: no such file, not one of ours, damaged, or made for another model.
    """
    found: Steering = load_one_of([Intervention, RidgeMap], path, model)
    return found
