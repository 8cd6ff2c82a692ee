"""Runs that are killed, interrupted and starved: nothing that was saved is lost, and going on changes no bit."""

from __future__ import annotations

import json
import pickle
import random
import re
import signal
import time

import pytest
import torch

from laai.steering.intervention import Intervention
from tests.forked import start


@pytest.fixture
def arguments(tiny_folder, word_file):
    """Of a run on the tiny model, with batches of 4 of 10 examples, so that epochs have a middle."""
    options = {
        "model.base_model": tiny_folder, "model.init": "zero", "data.task": word_file, "data.num_examples": 10,
        "data.batch_size": 4, "data.test": 4, "trainer.accelerator": "cpu", "trainer.devices": 1,
        "trainer.max_steps": 60, "trainer.enable_progress_bar": "false", "stop_at_loss": 0.0,
    }  # fmt: skip
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def vectors(folder):
    runs = sorted(folder.glob("lightning_logs/version_*"), key=lambda path: int(path.name[8:]))
    return Intervention.load(runs[-1] / "intervention.safetensors")


def assert_all_readable(folder):
    """Whatever a run left is whole."""
    for path in folder.rglob("*.ckpt"):
        assert "state_dict" in torch.load(path, weights_only=True)
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())
    for path in folder.rglob("*.safetensors"):
        Intervention.load(path)


def test_killed_twenty_times(tmp_path, arguments, fault):
    """SIGKILL at random moments, each time going on from the newest checkpoint: the uninterrupted run's bits."""
    for name in ("first", "whole"):  # the first waits for the server of all runs
        began = time.monotonic()
        code, text = start(tmp_path / name, arguments).end()
        assert code == 0, text
    whole, seconds = vectors(tmp_path / "whole"), time.monotonic() - began
    rng, killed, resumed, finished = random.Random(0), 0, 0, 0
    folder = tmp_path / "0"
    while killed < 20 or not finished:
        resume = ["--ckpt_path", "last"] if list(folder.glob("*/*/checkpoints/last.ckpt")) else []
        run, end = start(folder, arguments + resume), time.monotonic() + rng.uniform(0.2, 1) * seconds
        if killed < 20:
            run.signal(signal.SIGKILL, lambda end=end: time.monotonic() > end)
        code, text = run.end()
        assert code in (0, -signal.SIGKILL), text
        assert_all_readable(folder)
        killed, resumed = killed + (code != 0), resumed + bool(resume)
        if code == 0:
            for key, vector in vectors(folder).items():
                assert torch.equal(vector, whole[key])
            finished, folder = finished + 1, tmp_path / str(finished + 1)
    assert resumed >= 5
    fault("killed (SIGKILL) at a random moment, then resumed", killed, "nothing lost: the bits of an uninterrupted run")


@pytest.mark.parametrize(("which", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(tmp_path, arguments, which, expected, fault):
    arguments = [*arguments, "--trainer.max_steps", "100000"]
    run = start(tmp_path, arguments)
    run.signal(which, lambda: any(tmp_path.glob("*/*/checkpoints/last.ckpt")))
    code, text = run.end()
    assert code == expected, text
    (saved,) = tmp_path.glob("*/*/checkpoints/last.ckpt")
    assert "the same command with --ckpt_path" in text
    assert saved.name in text
    assert "Traceback" not in text
    assert vectors(tmp_path).provenance.training["steps"] > 0
    assert_all_readable(tmp_path)
    fault(f"stopped by {signal.Signals(which).name}", 1, f"vectors and checkpoint kept, exit code {expected}")


def test_a_full_disk(tmp_path, arguments, fault):
    """No file may grow beyond a few kB: the first checkpoint does not fit, and none is left half-written."""
    code, text = start(tmp_path, arguments, largest_file=5000).end()
    assert code == 2, text
    assert "cannot write" in text
    assert "Traceback" not in text
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("*.tmp"))
    fault("disk full while a checkpoint is written", 1, "no half-written file; one line, exit code 2")


def test_no_place_for_logs_is_said_at_the_start(tmp_path, arguments, fault):
    (tmp_path / "lightning_logs").write_text("a file")
    code, text = start(tmp_path, [*arguments, "--model.base_model", "/nowhere/at/all"]).end()
    assert code == 2
    assert text.startswith("error: expected a folder for runs at lightning_logs"), text
    assert text.count("\n") == 1
    fault("the log folder cannot be written", 1, "said before the model is loaded; one line, exit code 2")


def test_two_runs_in_one_folder_do_not_mix(tmp_path, arguments, fault):
    runs = [start(tmp_path, [*arguments, "--data.seed", str(seed)]) for seed in (0, 1)]
    assert [run.end()[0] for run in runs] == [0, 0]
    folders = sorted(tmp_path.glob("lightning_logs/version_*"))
    assert [folder.name for folder in folders] == ["version_0", "version_1"]
    seeds = set()
    for folder in folders:
        found = json.loads((folder / "results.json").read_text())
        assert f"seed: {found['seed']}\n" in (folder / "config.yaml").read_text()
        assert Intervention.load(folder / "intervention.safetensors").provenance.training["seed"] == found["seed"]
        assert (folder / "metrics.csv").read_text().count("\n") > 50
        seeds.add(found["seed"])
    assert seeds == {0, 1}
    fault("two runs started at once in one folder", 1, "a folder each, nothing mixed")


def test_a_loss_that_is_not_finite(tmp_path, arguments, fault):
    """Half precision overflows after one step that is far too long."""
    options = ["--model.dtype", "float16", "--model.optimizer.lr", "1e6"]
    code, text = start(tmp_path, arguments + options).end()
    assert code == 2, text
    line = text.strip().splitlines()[-1]
    assert re.match("error: expected a finite loss, found one that is not at step 2, on '[a-z]+': lower", line), line
    assert "Traceback" not in text
    assert all(bool(v.isfinite().all()) for _, v in vectors(tmp_path).items())
    fault("a loss that is not finite", 1, "the last finite vectors are kept; step and example named, exit code 2")


class Harmful:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def damage(kind, path, tmp_path):
    """Make a file that is no checkpoint of this run."""
    whole = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "noise":
        path.write_bytes(random.Random(0).randbytes(3000))
    elif kind == "an intervention":
        path.write_bytes(next(tmp_path.rglob("intervention.safetensors")).read_bytes())
    elif kind == "code":
        path.write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    elif kind == "code in a checkpoint":
        torch.save(torch.load(path, weights_only=True) | {"extra": Harmful(tmp_path / "harm")}, path)
    elif kind == "of another program":
        torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6"}, path)
    else:
        path.unlink()


@pytest.mark.parametrize(
    "kind",
    [
        *("truncated", "empty", "noise", "an intervention", "code", "code in a checkpoint", "of another program"),
        "missing",
    ],
)
def test_a_bad_checkpoint_gives_one_line(tmp_path, run_train, capsys, fault, kind):
    folder = run_train()
    path = folder / "checkpoints" / "last.ckpt"
    damage(kind, path, tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run_train("--ckpt_path", str(path))
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: expected a checkpoint"), error
    assert error.count("\n") == 1
    assert not (tmp_path / "harm").exists()
    fault(f"a checkpoint file: {kind}")


def test_last_needs_a_run(run_train, capsys):
    with pytest.raises(SystemExit) as end:
        run_train("--ckpt_path", "last")
    assert end.value.code == 2
    assert "expected a run with a checkpoint below lightning_logs, found none" in capsys.readouterr().err
