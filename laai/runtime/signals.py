"""SIGTERM in Lightning's test and predict loops, which would take note of it and go on."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import lightning.pytorch as pl


def heed_sigterm(trainer: pl.Trainer) -> None:
    """From here on SIGTERM exits with code 143, through all `finally` blocks; where others handle it, they do so still.

    Lightning puts the former handler back when its loop ends.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if not type(signal.getsignal(signal.SIGTERM)).__module__.startswith("lightning."):
        return

    def stop(signum: int, frame: Any) -> None:
        signal.signal(signum, signal.SIG_IGN)  # the way out is not to be interrupted
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signum)
        sys.exit(128 + signum)

    signal.signal(signal.SIGTERM, stop)
