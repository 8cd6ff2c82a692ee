"""Forwards of one frozen model in which nothing is run twice that no vector can change.

`Engine` is the room: of a language model with whatever vectors are attached, it gives logits, generations, activations
and sweeps, and answers in every case, by whole prompts if it must. Below it lie the model, the prompts and the hooks;
above it measuring, extraction and learning say what to run, and none of them knows how a prefix is kept.
"""

from laai.engine.engine import Batches, Engine
from laai.engine.forward import answer_logits, answer_nll, mean_nll, token_divergence, token_nll, write
from laai.engine.frozen import FrozenBatch
from laai.engine.prefix import position_options, rows_of, run_prefix
from laai.engine.skipping import unchanged_layers

__all__ = [
    "Batches", "Engine", "FrozenBatch", "answer_logits", "answer_nll", "mean_nll", "position_options", "rows_of",
    "run_prefix", "token_divergence", "token_nll", "unchanged_layers", "write",
]  # fmt: skip
