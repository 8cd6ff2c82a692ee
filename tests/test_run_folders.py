"""Where a run of train.py leaves its files: with any logger, interrupted, and when it is gone on with."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.loggers import Logger

import train
from laai.learn.monitor import Monitor
from laai.steering.intervention import Intervention


class Tracker(Logger):
    """As Weights & Biases' logger: one folder for all runs."""

    name, version, save_dir = "tracker", "7", "."

    def log_metrics(self, *_, **__):
        """Nothing."""

    def log_hyperparams(self, *_, **__):
        """Nothing."""


@pytest.mark.parametrize("logger", ["false", "tests.test_run_folders.Tracker"])
def test_a_run_has_a_folder_of_its_own_with_any_logger(run_train, logger, tmp_path):
    """Else the second run would overwrite the first one's vectors."""
    first, second = (run_train("--trainer.logger", logger, "--data.seed", seed) for seed in ("1", "2"))
    for folder, seed in ((first, 1), (second, 2)):
        assert json.loads((folder / "results.json").read_text())["seed"] == seed
        assert Intervention.load(folder / "intervention.safetensors").provenance.training["seed"] == seed
        assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["seed"] == seed
    assert {path.name for path in tmp_path.iterdir()} == {"lightning_logs"}


def test_going_on_with_other_data_is_refused(run_train, capsys):
    run_train()
    with pytest.raises(SystemExit):
        run_train("--ckpt_path", "last", "--data.seed", "1", "--trainer.max_steps", "5")
    assert "the checkpoint learned from 6 examples of colours (seed 0, plain)" in capsys.readouterr().err


def interrupt(self, trainer, *_):
    """In place of a hook: Ctrl-C after two steps."""
    if trainer.global_step == 2:
        raise KeyboardInterrupt


def test_an_interrupted_run_says_how_to_go_on(run_train, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Monitor, "on_train_batch_start", interrupt)
        with pytest.raises(SystemExit) as stop:
            run_train()
    assert stop.value.code == 130
    said = capsys.readouterr().err
    path = re.search(r"stopped after 2 steps.*--ckpt_path (\S+)", said)[1]
    resumed = run_train("--ckpt_path", path)
    assert Intervention.load(resumed / "intervention.safetensors").provenance.training["steps"] == 3


def test_an_interrupted_run_without_a_logger_keeps_its_vectors(run_train, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(Monitor, "on_train_batch_start", interrupt)
    with pytest.raises(SystemExit) as stop:
        run_train("--trainer.logger", "false")
    assert stop.value.code == 130
    path = tmp_path / "lightning_logs" / "version_0" / "intervention.safetensors"
    assert f"the vectors are in {path.relative_to(tmp_path)}" in capsys.readouterr().err
    assert Intervention.load(path).provenance.training["steps"] == 2


@pytest.mark.parametrize(
    "logger", [[], ["--trainer.logger", "false"], ["--trainer.logger", "tests.test_run_folders.Tracker"]]
)
def test_runs_go_into_the_default_root_dir(run_train, tmp_path, logger):
    common = ["--model.init", "zero", "--trainer.default_root_dir", "runs", *logger]
    first = run_train(*common, runs="runs/lightning_logs")
    second = run_train(*common, "--ckpt_path", "last", "--trainer.max_steps", "5", runs="runs/lightning_logs")
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
    for folder, steps in ((first, 3), (second, 5)):
        learned = Intervention.load(folder / "intervention.safetensors")
        assert learned.provenance.training["steps"] == steps
        assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["default_root_dir"] == "runs"


def test_a_logger_s_own_folder_goes_before_the_default_root_dir(run_train, tmp_path):
    where = ["--trainer.default_root_dir", "runs", "--trainer.logger.save_dir", "own"]
    folder = run_train(*where, "--model.init", "zero", runs="own/lightning_logs")
    assert (folder / "results.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"own"}


@pytest.mark.parametrize("way", [["--ckpt_path", "last"], ["--ckpt_path=last"], ["--config", "last.yaml"]])
def test_other_processes_are_told_which_checkpoint_is_the_last(run_train, tmp_path, monkeypatch, capsys, way):
    """By the arguments that Lightning starts them with; and nothing else that is called `last` is touched."""
    first = run_train("--model.init", "zero")
    (tmp_path / "last.yaml").write_text("ckpt_path: last\n")
    settings = (first / "config.yaml").read_text()
    Path("lightning_logs").rename("last")
    Path("first.yaml").write_text(settings)
    arguments = ["fit", "--config", "first.yaml", "--trainer.logger.name", "last", "--trainer.max_steps", "4", *way]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    train.main()
    checkpoint = "last/version_0/checkpoints/last.ckpt"
    assert sys.argv == ["train.py", *arguments, "--ckpt_path", checkpoint]
    assert f"going on from {checkpoint}" in capsys.readouterr().err
