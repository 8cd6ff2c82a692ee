"""learn."""

from laai.learn.effects import layer_effects
from laai.learn.fitting import fit
from laai.learn.interruption import Interruption
from laai.learn.layer_race import profile_layers
from laai.learn.module import LAAIModule
from laai.learn.monitor import Monitor, effect_figure, heat_map, log_effects, profile_figure
from laai.learn.recipe import ADAM, Recipe
from laai.learn.start import SEVERAL, others_of
from laai.learn.steered import SteeredLM
from laai.learn.stopping import StopAtBest, StopAtLoss

__all__ = [
    "ADAM",
    "SEVERAL",
    "Interruption",
    "LAAIModule",
    "Monitor",
    "Recipe",
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
