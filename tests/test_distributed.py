"""Two processes on the CPU learn and measure what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from laai.intervention import Intervention

ROOT = Path(__file__).parents[1]


@pytest.fixture
def uneven_file(tmp_path):
    """Answers of unequal length, so that the processes' batches have unequal numbers of tokens; some have choices."""
    path, rows = tmp_path / "uneven.jsonl", []
    for i in range(24):
        answer = ("red", "very dark blue and grey", "green stone")[i % 3]
        row = {"input": f"word {i}", "output": answer}
        rows.append(row | ({"choices": ["red", "very dark blue and grey"]} if i % 3 < 2 else {}))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def outcome(folder):
    return json.loads((folder / "results.json").read_text()), Intervention.load(folder / "intervention.safetensors")


def run_apart(folder, *arguments):
    """train.py in a process of its own, which starts the other one; returns the run's folder."""
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("lightning_logs/version_*")  # the processes share one
    return made


@pytest.mark.parametrize(
    "options",
    [
        ["--data.num_examples", "6", "--data.test", "7"],
        ["--data.num_examples", "8", "--data.test", "1", "--data.batch_size", "4", "--data.validation", "3"],
    ],
)
def test_two_processes_equal_one(run_train, tiny_folder, uneven_file, tmp_path, options):
    common = ["--model.base_model", str(tiny_folder), "--data.task", str(uneven_file), "--trainer.max_steps", "4"]
    common += ["--trainer.accelerator", "cpu", "--model.l1", "0.05", "--model.optimizer", "torch.optim.SGD"]
    common += ["--model.optimizer.lr", "0.1", *options]
    one, vectors = outcome(run_train(*common, tiny=False))
    two, shared = outcome(run_apart(tmp_path / "two", *common, "--trainer.devices", "2", "--trainer.strategy", "ddp"))
    for key, vector in vectors.items():
        torch.testing.assert_close(shared[key], vector, rtol=0, atol=1e-5)
    for a, b in zip(one["rows"], two["rows"], strict=True):
        assert a["n"] == b["n"] == int(options[3])
        for name in set(a) - {"ms_per_query", "nll"}:
            assert a[name] == b[name], name
        assert b["nll"] == pytest.approx(a["nll"], rel=1e-4)
