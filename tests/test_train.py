"""The command line of train.py on the tiny model: the files a run leaves, and what they are worth."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

import laai
import train
from laai import cli
from laai.steering.intervention import Intervention

ROW = {
    "method", "exact_match", "exact_match_low", "exact_match_high", "choice_accuracy", "choice_accuracy_low",
    "choice_accuracy_high", "choice_accuracy_mean", "nll",
    "n", "prompt_tokens", "ms_per_query",
}  # fmt: skip


def results(folder):
    return json.loads((folder / "results.json").read_text())


def timeless(rows):
    return [{name: value for name, value in row.items() if name != "ms_per_query"} for row in rows]


def assert_same_rows(a, b):
    for one, other in zip(timeless(a), timeless(b), strict=True):
        assert one.pop("method", None) == other.pop("method", None)
        assert one == pytest.approx(other, rel=1e-4, abs=1e-4)


def test_files_of_a_run(run_train, tiny, tiny_folder, capsys):
    folder = run_train("--data.seed", "4", "--model.init", "zero")
    found = results(folder)
    assert set(found) == {"task", "base_model", "seed", "num_examples", "rows", "seconds", "peak_megabytes"}
    facts = (found["task"], found["base_model"], found["seed"], found["num_examples"])
    assert facts == ("colours", str(tiny_folder), 4, 6)
    assert [row["method"] for row in found["rows"]] == ["zero-shot", "few-shot", "cast", "laai"]
    for row in found["rows"]:
        assert set(row) == ROW
        assert row["n"] == 7
        assert 0 <= row["exact_match_low"] <= row["exact_match"] <= row["exact_match_high"] <= 1
    tokens = [row["prompt_tokens"] for row in found["rows"]]
    assert tokens[1] > 4 * tokens[0]
    assert tokens[0] == tokens[2] == tokens[3]
    nll = {row["method"]: row["nll"] for row in found["rows"]}
    assert nll["laai"] < nll["zero-shot"]
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert 50 < found["peak_megabytes"]["fit"] <= found["peak_megabytes"]["test"]
    learned = Intervention.load(folder / "intervention.safetensors", tiny)
    assert learned.provenance.training["steps"] == 3
    assert learned.provenance.metrics["nll"] == nll["laai"]
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("zero-shot", "few-shot", "cast", "laai", str(folder.name)))
    assert list(folder.glob("events.out.tfevents.*"))


def test_the_artefact_gives_its_numbers_again(run_train, word_file, tmp_path):
    trained = results(run_train("--model.site", "residual", "--model.layers", "1", "--model.positions", "generated"))
    path = next(tmp_path.glob("lightning_logs/version_*/intervention.safetensors"))
    cli.main(
        ["evaluate", "--intervention", str(path), "--task", str(word_file), "--test", "7", "--shots", "6", "--json",
         "rows.json"]
    )  # fmt: skip
    again = json.loads((tmp_path / "rows.json").read_text())["rows"]
    by_name = {row.pop("method"): row for row in trained["rows"]}
    names = [row.pop("method") for row in again]
    assert names == ["zero-shot", "6-shot", "steered"]
    assert_same_rows(again, [by_name["zero-shot"], by_name["few-shot"], by_name["laai"]])


def test_the_saved_configuration_gives_the_numbers_again(run_train):
    first = run_train("--model.layers", "[0,2]", "--model.l1", "0.01", "--data.batch_size", "4", "--data.seed", "1")
    config = yaml.safe_load((first / "config.yaml").read_text())
    assert config["model"]["layers"] == [0, 2]
    assert config["data"]["batch_size"] == 4
    second = run_train("--config", str(first / "config.yaml"), tiny=False)
    assert_same_rows(results(first)["rows"], results(second)["rows"])
    a, b = (Intervention.load(folder / "intervention.safetensors") for folder in (first, second))
    for key, vector in a.items():
        assert torch.equal(vector, b[key])


def test_print_config(run_train, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--data.num_examples", "20", "--print_config"])
    assert not stop.value.code
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["data"]["num_examples"] == 20
    assert shown["trainer"]["max_steps"] >= 1
    assert {"samples", "shots"} <= set(shown["cast"])
    assert "optimizer" not in shown, "the optimiser is an option of the model alone"


@pytest.mark.parametrize(
    "wrong",
    [
        ["--data.task", "antonyms"],
        ["--data.task", "nothing/here.jsonl"],
        ["--data.num_examples", "1000"],
        ["--data.num_examples", "0"],
        ["--data.test", "0"],
        ["--model.site", "heart"],
        ["--model.layers", "7"],
        ["--model.layers", "[0,3]"],
        ["--model.base_model", "/no/such/model"],
        ["--model.init", "no-such-file.safetensors"],
        ["--model.source", "no-such-task"],
        ["--model.l1", "-1"],
        ["--trainer.max_steps", "many"],
        ["--ckpt_path", "no-such-file.ckpt"],
        ["--config", "no-such-file.yaml"],
        ["predict"],
        ["validate"],
    ],
)
def test_a_mistake_ends_in_a_message_and_no_traceback(run_train, capsys, wrong):
    with pytest.raises(SystemExit) as stop:
        train.main(wrong) if wrong[0] in ("predict", "validate") else run_train(*wrong)
    code, err = stop.value.code, capsys.readouterr().err
    message = code if isinstance(code, str) else err.strip().splitlines()[-1]
    assert code == 2
    assert "error" in message
    assert "\n" not in message.strip()
    assert "Traceback" not in err


def test_one_example_one_query(run_train):
    """From zero there is nothing to extract from, and no row of CAST's; by default other tasks are the start."""
    one = ["--data.num_examples", "1", "--data.test", "1"]
    rows = results(run_train(*one, "--model.init", "zero"))["rows"]
    assert [row["method"] for row in rows] == ["zero-shot", "few-shot", "laai"]
    assert [row["n"] for row in rows] == [1, 1, 1]
    rows = results(run_train(*one, "--cast.samples", "8", "--cast.shots", "1"))["rows"]
    assert [row["method"] for row in rows] == ["zero-shot", "few-shot", "cast", "laai"]


def test_a_small_task_is_tested_on_what_is_left(run_train, tmp_path):
    lines = [json.dumps({"input": f"word {i}", "output": "ab"[i % 2]}) for i in range(9)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    rows = results(run_train("--data.task", "mine.jsonl", "--data.test", "100"))["rows"]
    assert [row["n"] for row in rows] == [3] * 4
    assert rows[0]["choice_accuracy"] is None


def test_a_csv_file_is_a_task_and_not_settings(run_train, tmp_path):
    (tmp_path / "mine.csv").write_text("input,output\n" + "".join(f"word {i},{'ab'[i % 2]}\n" for i in range(9)))
    folder = run_train("--data.task", "mine.csv")
    assert results(folder)["task"] == "mine"
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["task"] == "mine.csv"


def test_a_validation_before_the_first_step(run_train):
    rows = results(run_train("--trainer.num_sanity_val_steps", "1", "--data.validation", "3", "--model.init", "zero"))
    assert [row["n"] for row in rows["rows"]] == [7] * 4


@pytest.mark.parametrize("validation", [0, 4])
def test_the_library_learns_what_the_command_learns(run_train, tiny, word_file, validation):
    folder = run_train("--trainer.max_steps", "30", "--data.test", "100", "--data.validation", str(validation))
    learned = laai.fit(tiny, str(word_file), 6, validation=validation)
    found = Intervention.load(folder / "intervention.safetensors", tiny)
    assert found.layers == learned.layers
    for key, vector in learned.items():
        assert torch.equal(vector, found[key])
    training = [vectors.provenance.training | {"examples": None} for vectors in (found, learned)]
    assert training[0] == training[1]
    assert training[0]["init"] == "cast"


def test_laai_fit_is_the_same_command(run_train, tmp_path):
    first = run_train("--model.init", "zero")
    cli.main(["fit", "--config", str(first / "config.yaml")])
    a, b = (
        Intervention.load(tmp_path / "lightning_logs" / f"version_{n}" / "intervention.safetensors") for n in (0, 1)
    )
    assert all(torch.equal(vector, b[key]) for key, vector in a.items())


def test_validation_stops_early_and_the_checkpoint_is_tested(run_train, tiny, tmp_path, capsys):
    """With a rate far too high the loss grows, so the best vectors are those of the first step."""
    options = ["--model.optimizer", "torch.optim.Adam", "--model.optimizer.lr", "1", "--data.validation", "4"]
    folder = run_train(*options, "--patience", "2", "--trainer.max_steps", "40", "--model.init", "zero")
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert 3 <= checkpoint["global_step"] < 40
    stopper = next(v for k, v in checkpoint["callbacks"].items() if k.startswith("StopAtBest"))
    learned = Intervention.load(folder / "intervention.safetensors", tiny)
    for (site, layer), vector in learned.items():
        assert torch.equal(vector, stopper["best"][f"steered.intervention.vectors.{site}_{layer}"])

    other = run_train("--model.init", "zero", "--model.layers", "2", "--model.site", "residual")
    path = str(other / "checkpoints" / "last.ckpt")
    capsys.readouterr()
    shared = yaml.safe_load((other / "config.yaml").read_text())
    train.main(["test", "--config", str(other / "config.yaml"), "--ckpt_path", path])
    shown = capsys.readouterr().out
    assert shared["model"]["layers"] == 2
    nll = next(row for row in results(other)["rows"] if row["method"] == "laai")["nll"]
    assert float(re.search(r"test/nll\D+([0-9.]+)", shown)[1]) == pytest.approx(nll, abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.enable_progress_bar", "false"],
        ["--trainer.enable_checkpointing", "false"],
        ["--data.style", "chat"],
        ["--model.dtype", "bfloat16"],
        ["--model.schedule", "cosine"],
        ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "0.02"],
    ],
)
def test_options_that_need_care(run_train, options):
    rows = results(run_train("--model.init", "zero", "--model.distill", "0", *options))["rows"]
    assert rows[-1]["nll"] < rows[0]["nll"]


@pytest.mark.parametrize("cache", ["off", "9000"])
def test_the_prefix_cache_changes_no_result(run_train, cache):
    common = ("--data.batch_size", "3", "--trainer.max_steps", "6", "--data.validation", "3")
    found, expected = (results(run_train(*common, "--model.prefix_cache", budget)) for budget in (cache, "auto"))
    for a, b in zip(found["rows"], expected["rows"], strict=True):
        assert a["exact_match"] == b["exact_match"]
        assert a["nll"] == pytest.approx(b["nll"], rel=1e-4)


def test_a_negative_prefix_cache_is_refused(run_train, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_train("--model.prefix_cache", "-5")
    assert stopped.value.code == 2
    assert "prefix_cache" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["debug_fast", "debug_overfit"])
def test_presets(tiny_folder, word_file, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    preset = Path(__file__).parents[1] / "experiments" / "configs" / f"{name}.yaml"
    where = ["--model.base_model", str(tiny_folder), "--data.task", str(word_file), "--trainer.accelerator", "cpu"]
    train.main(["--config", str(preset), *where])
    assert "laai" in capsys.readouterr().out
    losses = list(tmp_path.glob("lightning_logs/version_0/metrics.csv"))
    if name == "debug_fast":
        assert not list(tmp_path.iterdir()), "no files"
    else:
        rows = [float(row["train/loss"]) for row in csv.DictReader(losses[0].open()) if row["train/loss"]]
        assert len(rows) == 100
        assert rows[-1] < rows[0] - 1
