"""The wheel: everything that the source has is in it, and what it installs learns, on two devices too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from laai.steering.intervention import Intervention

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built by what is installed: setuptools comes with torch."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("laai", "cast"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", ".", "./source"]
    subprocess.run(command, cwd=folder, check=True, timeout=300)
    return next(folder.glob("*.whl"))


def test_every_room_table_and_marker_is_in_it(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    source = {str(path.relative_to(ROOT)) for name in ("laai", "cast") for path in (ROOT / name).rglob("*.*")}
    assert inside == {name for name in source if "__pycache__" not in name}
    assert {"laai/py.typed", "cast/py.typed", "laai/cli/train.py", "laai/tasks/tables/antonym.json"} <= inside


def test_what_it_installs_learns_on_two_devices(wheel, tiny_folder, word_file, tmp_path):
    """In an environment of its own that sees this one's other packages; Lightning starts the second process itself."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True, timeout=120)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    python = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "-q", "--python", python, "install", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, timeout=120)
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))  # its own .pth files are not read
    command = [python.with_name("laai"), "fit", "--model.base_model", tiny_folder, "--data.task", word_file]
    command += [
        "--data.test",
        "4",
        "--trainer.accelerator",
        "cpu",
        "--trainer.devices",
        "2",
        "--trainer.max_steps",
        "2",
    ]
    done = subprocess.run(
        list(map(str, command)), cwd=tmp_path, env=environment, timeout=300, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "run folder: lightning_logs/version_0" in done.stdout
    learned = Intervention.load(tmp_path / "lightning_logs" / "version_0" / "intervention.safetensors")
    assert learned.provenance.training["steps"] == 2
