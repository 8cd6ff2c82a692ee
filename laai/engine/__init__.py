"""engine."""

from laai.engine.activations import last_token_statistics
from laai.engine.agreement import find_way
from laai.engine.beginnings import SharedPrefix, common_length, share_prefix
from laai.engine.engine import PrefixEngine
from laai.engine.forward import answer_logits, answer_nll, mean_nll, token_divergence, token_nll
from laai.engine.frozen import FrozenBatch
from laai.engine.prefix import (
    NoPrefixError,
    Prefix,
    PrefixRow,
    check_length,
    position_options,
    prefix_of,
    rows_of,
    run_prefix,
    stack_rows,
)
from laai.engine.recompute import recomputing
from laai.engine.skipping import unchanged_layers
from laai.engine.started import Reuse, Started, started_batches
from laai.engine.store import PrefixStore, prefix_keys
from laai.engine.sweep import choose_way, freeze, sweep

__all__ = [
    "FrozenBatch",
    "NoPrefixError",
    "Prefix",
    "PrefixEngine",
    "PrefixRow",
    "PrefixStore",
    "Reuse",
    "SharedPrefix",
    "Started",
    "answer_logits",
    "answer_nll",
    "check_length",
    "choose_way",
    "common_length",
    "find_way",
    "freeze",
    "last_token_statistics",
    "mean_nll",
    "position_options",
    "prefix_keys",
    "prefix_of",
    "recomputing",
    "rows_of",
    "run_prefix",
    "share_prefix",
    "stack_rows",
    "started_batches",
    "sweep",
    "token_divergence",
    "token_nll",
    "unchanged_layers",
]
