"""Two processes on the CPU learn and measure what one does."""

from __future__ import annotations

import csv
import json
import signal

import pytest
import torch

from laai.steering.intervention import Intervention
from tests.forked import start_two


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


def run_two(folder, arguments, nodes=1, scheduler="torchrun"):
    """Two processes of train.py; returns the folder of the run that they share."""
    runs = start_two(folder, [*arguments, "--trainer.enable_progress_bar", "false"], nodes, scheduler)
    for run in runs:
        code, text = run.end()
        assert code == 0, text
    return max(folder.glob("lightning_logs/version_*"))


def losses(folder):
    """The training loss by step."""
    rows = csv.DictReader((folder / "metrics.csv").open())
    return {int(row["step"]): float(row["train/loss"]) for row in rows if row["train/loss"]}


@pytest.mark.parametrize(
    "options",
    [
        ["--data.num_examples", "6", "--data.test", "7"],
        ["--data.num_examples", "8", "--data.test", "1", "--data.batch_size", "4", "--data.validation", "3"],
    ],
)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_equal_one(run_train, tiny_folder, uneven_file, tmp_path, options, strategy):
    common = ["--model.base_model", str(tiny_folder), "--data.task", str(uneven_file), "--trainer.max_steps", "4"]
    common += ["--trainer.accelerator", "cpu", "--model.l1", "0.05", "--model.optimizer", "torch.optim.SGD"]
    common += ["--model.optimizer.lr", "0.1", *options]
    alone = run_train(*common, "--trainer.devices", "1", tiny=False)
    one, vectors = outcome(alone)
    folder = run_two(tmp_path / "two", [*common, "--trainer.strategy", strategy])
    two, shared = outcome(folder)
    for key, vector in vectors.items():
        torch.testing.assert_close(shared[key], vector, rtol=0, atol=1e-5)
    for a, b in zip(one["rows"], two["rows"], strict=True):
        assert a["n"] == b["n"] == int(options[3])
        for name in set(a) - {"ms_per_query", "nll"}:
            assert a[name] == b[name], name
        assert b["nll"] == pytest.approx(a["nll"], rel=1e-4)
    assert len(losses(alone)) == 4
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-5), "the same loss curve"


@pytest.fixture
def arguments(tiny_folder, uneven_file):
    """Of a run with batches of 4 of 10 examples."""
    options = {
        "model.base_model": tiny_folder, "model.init": "zero", "data.task": uneven_file, "data.num_examples": 10,
        "data.batch_size": 4, "data.test": 3, "trainer.accelerator": "cpu", "trainer.strategy": "ddp",
        "stop_at_loss": 0.0,
    }  # fmt: skip
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_go_on_exactly(arguments, tmp_path, strategy, fault):
    """From the middle of an epoch of two and a half batches, as the run that was never stopped."""
    arguments = [*arguments, "--trainer.strategy", strategy]
    whole = outcome(run_two(tmp_path / "whole", [*arguments, "--trainer.max_steps", "7"]))[1]
    run_two(tmp_path / "parts", [*arguments, "--trainer.max_steps", "2"])
    resumed = run_two(tmp_path / "parts", [*arguments, "--trainer.max_steps", "7", "--ckpt_path", "last"])
    saved = resumed / "checkpoints" / "last.ckpt"
    assert saved.stat().st_size < 40_000
    assert set(torch.load(saved, weights_only=True)["state_dict"]) == {
        f"steered.intervention.vectors.heads_{layer}" for layer in (0, 1)
    }
    for key, vector in outcome(resumed)[1].items():
        assert torch.equal(vector, whole[key])
    fault(f"two processes ({strategy}) resumed", 1, "nothing lost: the bits of an uninterrupted run")


def test_two_nodes(arguments, tmp_path):
    """Two machines of one device each, as torchrun and SLURM start them, are two devices of one machine."""
    arguments = [*arguments, "--trainer.max_steps", "3"]
    ways = [(1, "torchrun"), (2, "torchrun"), (2, "slurm")]
    near, *far = (outcome(run_two(tmp_path / f"{way}{n}", arguments, n, way))[1] for n, way in ways)
    for key, vector in near.items():
        assert all(torch.equal(vector, other[key]) for other in far)


def test_when_one_process_dies_the_other_stops(arguments, tmp_path, fault):
    one, other = start_two(tmp_path, [*arguments, "--trainer.max_steps", "100000"])
    other.signal(signal.SIGKILL, lambda: any(tmp_path.glob("*/*/checkpoints/last.ckpt")))
    code, text = one.end(60)
    assert code == 3, text
    assert "error: another process of this run stopped" in text
    assert "Traceback" not in text
    (saved,) = tmp_path.glob("*/*/checkpoints/last.ckpt")
    assert "state_dict" in torch.load(saved, weights_only=True)
    fault("one of two processes is killed", 1, "the other stops with one line, exit code 3; the checkpoint is whole")


@pytest.mark.parametrize(("which", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_both_processes_stop_when_told(arguments, tmp_path, which, expected, fault):
    runs = start_two(tmp_path, [*arguments, "--trainer.max_steps", "100000"])
    for run in runs:
        run.signal(which, lambda: any(tmp_path.glob("*/*/checkpoints/last.ckpt")))
    codes = [run.end(60)[0] for run in runs]
    assert codes[0] in (expected, 3)  # 3: the other was first
    assert expected in codes
    fault(f"two processes stopped by {signal.Signals(which).name}", 1, "both stop")


def test_a_device_map_is_for_one_process(arguments, tmp_path):
    for run in start_two(tmp_path, [*arguments, "--model.device_map", "cpu"]):
        code, text = run.end(60)
        assert code == 2, text
        assert text.strip().splitlines()[-1].startswith("error: device_map spreads the model over the devices of one")
