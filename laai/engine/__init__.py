"""engine."""

from laai.engine.engine import Batches, Engine, Read
from laai.engine.forward import answer_logits, answer_nll, mean_nll, token_divergence, token_nll
from laai.engine.frozen import FrozenBatch
from laai.engine.greedy import write
from laai.engine.prefix import position_options
from laai.engine.skipping import unchanged_layers
from laai.engine.started import Started
from laai.engine.steered import Steered
from laai.engine.sweep import SweepScores

__all__ = [
    "Batches",
    "Engine",
    "FrozenBatch",
    "Read",
    "Started",
    "Steered",
    "SweepScores",
    "answer_logits",
    "answer_nll",
    "mean_nll",
    "position_options",
    "token_divergence",
    "token_nll",
    "unchanged_layers",
    "write",
]
