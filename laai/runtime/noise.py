"""Warnings that tell a user of this project nothing."""

from __future__ import annotations

import logging
import warnings

_NOISE = (
    ".*does not have many workers.*",  # a few short prompts need none
    ".*module.s. in eval mode at the start.*",  # a frozen model belongs there
    ".*across ranks is zero.*",  # no validation examples, the default
    ".*LeafSpec.*",  # Lightning's own use of torch
    ".*Experiment logs directory.*",  # two loggers share it
    ".*predict returned None.*",  # an extraction sums up what it reads
)


def ignore_noise() -> None:
    """Filter them out; inside `warnings.catch_warnings`, for that block alone."""
    for pattern in _NOISE:
        warnings.filterwarnings("ignore", message=pattern)
    # On import it tells of a missing kernel for 4-bit layers, which passes no gradient and is kept off anyhow.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def ignore_chatter() -> None:
    """The warnings, and what Lightning says of devices and products whenever a trainer is made; for commands."""
    ignore_noise()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
