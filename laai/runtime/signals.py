"""SIGTERM, of which Lightning's loops would take note and go on."""

from __future__ import annotations

import signal
import threading
from typing import Any

import lightning.pytorch as pl


def on_sigterm(trainer: pl.Trainer, end: type[SystemExit]) -> None:
    """From here on SIGTERM raises `end` with code 143, through all `finally` blocks, and ends the launched processes.

    Lightning puts the former handler back when its loop ends.
    """

    def stop(signum: int, frame: Any) -> None:
        signal.signal(signum, signal.SIG_IGN)  # the way out is not to be interrupted
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signum)
        raise end(128 + signum)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


def heed_sigterm(trainer: pl.Trainer) -> None:
    """Exit at SIGTERM, in test and predict loops too; where others handle it, they do so still."""
    if type(signal.getsignal(signal.SIGTERM)).__module__.startswith("lightning."):
        on_sigterm(trainer, SystemExit)
