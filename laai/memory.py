"""Peak memory of a run."""

from __future__ import annotations

import resource
import sys

import torch


def peak_megabytes(device: torch.device) -> float:
    """The most memory that this process has held so far: allocated on a CUDA device, else resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
