"""Who hears SIGTERM: Lightning puts its own handler first in each loop, and waits in it for other processes."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from laai.learn.interruption import Interruption


@pytest.fixture(autouse=True)
def own_handlers():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("start", ["fit", "sanity_check", "train", "validation", "test"])
def test_whatever_starts_ends_at_once(start):
    heard, told = [], []
    signal.signal(signal.SIGTERM, lambda *_: heard.append("Lightning"))
    launcher = SimpleNamespace(kill=told.append)
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))
    getattr(Interruption(), f"on_{start}_start")(trainer, None)
    with pytest.raises(SIGTERMException):
        signal.raise_signal(signal.SIGTERM)
    assert (heard, told) == ([], [signal.SIGTERM]), "the processes that this one started are told"
    signal.raise_signal(signal.SIGTERM)  # ignored: the shutdown is not to be interrupted
