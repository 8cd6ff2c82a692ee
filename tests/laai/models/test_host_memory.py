"""Memory limits of containers and batch jobs, from files as the kernel writes them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from laai.models import memory as host_memory
from laai.models.memory import free_memory, left_of_limits


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_the_unified_hierarchy(tmp_path):
    """The limit of the group and that of the one around it; file pages that can be dropped count as free."""
    (tmp_path / "cgroup").write_text("0::/pod/job\n")
    group(tmp_path / "fs/pod/job", memory__max=1000, memory__current=700, memory__stat="anon 500\ninactive_file 150")
    group(tmp_path / "fs/pod", memory__max=5000, memory__current=4800)
    group(tmp_path / "fs", memory__max="max", memory__current=9000)
    assert left_of_limits(tmp_path / "cgroup", tmp_path / "fs") == [450, 200]


def test_the_older_hierarchy_seen_from_inside(tmp_path):
    """The group's path is the host's; inside the container only the root of the mount is there."""
    (tmp_path / "cgroup").write_text("5:devices:/\n4:cpu,memory:/docker/abc\n")
    files = {"memory__limit_in_bytes": 800, "memory__usage_in_bytes": 300, "memory__stat": "total_inactive_file 40"}
    group(tmp_path / "fs/memory", **files)
    group(tmp_path / "fs", memory__limit_in_bytes=1, memory__usage_in_bytes=0)  # above the hierarchy's root
    assert left_of_limits(tmp_path / "cgroup", tmp_path / "fs") == [540]


def test_no_cgroups(tmp_path):
    assert left_of_limits(tmp_path / "none", tmp_path) == []


@pytest.mark.parametrize(("limits", "free"), [([], 1000), ([5000, 300], 300), ([-20], 0)])
def test_what_is_free_is_the_least_of_them(monkeypatch, limits, free):
    monkeypatch.setattr(host_memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(host_memory, "left_of_limits", lambda: limits)
    assert free_memory() == free
