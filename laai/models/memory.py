"""Memory that is free here, less where a container or a batch job has a limit (Linux cgroups), and a run's peak."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import psutil
import torch

MEMBERSHIP = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")
UNIFIED = ("memory.max", "memory.current", "inactive_file")
LEGACY = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
"""Files of a limit and of what is used, and the line of `memory.stat` with what the kernel would give back first."""


def free_memory() -> int:
    """Bytes that this process can still take before the machine or its own limit runs out."""
    return max(0, min([psutil.virtual_memory().available, *left_of_limits()]))


def left_of_limits(membership: Path = MEMBERSHIP, mount: Path = MOUNT) -> list[int]:
    """Bytes left of each limit of this process's group and the groups around it; none where there are no cgroups."""
    found: list[int] = []
    for line in _lines(membership):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (mount / "memory", LEGACY) if controllers else (mount, UNIFIED)
        group = root / path.lstrip("/")  # in a container it may be the host's name for it, and only the root is there
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            found += _left(folder, *names)
    return found


def _left(folder: Path, limit: str, used: str, reclaimable: str) -> list[int]:
    """What one group has left; nothing to say where it has no limit."""
    try:
        total, taken = int((folder / limit).read_text()), int((folder / used).read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return []
    stat = dict(line.split(maxsplit=1) for line in _lines(folder / "memory.stat"))
    return [total - taken + int(stat.get(reclaimable, 0))]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def peak_megabytes(device: torch.device) -> float:
    """The most memory that this process has held so far: allocated on a CUDA device, else resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
