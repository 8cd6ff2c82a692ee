"""Peak memory, by what the operating system counts."""

from __future__ import annotations

import psutil
import torch

from laai.models.memory import peak_megabytes


def test_it_covers_what_was_held_and_freed():
    before = peak_megabytes(torch.device("cpu"))
    assert before >= 0.9 * psutil.Process().memory_info().rss / 1e6
    held = torch.ones(int(before * 1e6) // 4 + 25_000_000)  # more than there ever was
    del held
    assert peak_megabytes(torch.device("cpu")) >= before + 90
