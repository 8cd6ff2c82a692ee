"""learn."""

from laai.learn.cast_start import SEVERAL, CastStart, others_of
from laai.learn.effects import layer_effects
from laai.learn.figures import effect_figure, heat_map, profile_figure
from laai.learn.fitting import fit
from laai.learn.interruption import Interruption
from laai.learn.layer_race import profile_layers
from laai.learn.module import LAAIModule
from laai.learn.monitor import Monitor, log_effects
from laai.learn.steered import SteeredLM
from laai.learn.stopping import StopAtBest, StopAtLoss

__all__ = [
    "SEVERAL",
    "CastStart",
    "Interruption",
    "LAAIModule",
    "Monitor",
    "SteeredLM",
    "StopAtBest",
    "StopAtLoss",
    "effect_figure",
    "fit",
    "heat_map",
    "layer_effects",
    "log_effects",
    "others_of",
    "profile_figure",
    "profile_layers",
]
