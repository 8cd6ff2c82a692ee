"""LAAI: vectors learned by gradient descent from a few labelled examples.

A `Recipe` says how, `prepare` settles what is known before the first step, `LAAIModule` takes the steps under
Lightning, callbacks stop, watch and interrupt it, and `fit` is all of that in one call.
"""

from laai.learn.effects import layer_effects
from laai.learn.fitting import fit
from laai.learn.interruption import Interruption
from laai.learn.layer_race import profile_layers
from laai.learn.module import LAAIModule
from laai.learn.monitor import Monitor, log_effects
from laai.learn.recipe import ADAM, Recipe
from laai.learn.start import SEVERAL, others_of
from laai.learn.steered import SteeredLM
from laai.learn.stopping import StopAtBest, StopAtLoss

__all__ = [
    "ADAM", "SEVERAL", "Interruption", "LAAIModule", "Monitor", "Recipe", "SteeredLM", "StopAtBest", "StopAtLoss",
    "fit", "layer_effects", "log_effects", "others_of", "profile_layers",
]  # fmt: skip
