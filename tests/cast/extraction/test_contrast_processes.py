"""Extractions that several processes share, of one machine and of two: the same vectors, and errors that all tell."""

from __future__ import annotations

import json
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from laai.cli.main import main
from laai.steering.intervention import Intervention
from tests.forked import torchrun_place


@pytest.mark.parametrize("samples", ["11", "1"])
def test_two_processes_extract_what_one_does(tiny_folder, word_file, tmp_path, capsys, laai_process, samples):
    """Eleven samples, which two devices cannot share evenly; one, which leaves a device with nothing."""
    command = ["extract", "--source", str(word_file), "--base_model", str(tiny_folder), "--samples", samples]
    command += ["--site", "both", "--output"]
    main([*command, str(tmp_path / "1.safetensors")])
    done = laai_process(*command, str(tmp_path / "2.safetensors"), "--devices", "2")
    assert "warning" not in done.stderr
    for said in (capsys.readouterr().out, done.stdout):
        assert said.count("vectors at heads and residual") == 1
        assert said.count("would give a vector of cosine") == (samples != "1"), "of one sample there is no telling"
    one, two = (Intervention.load(tmp_path / f"{devices}.safetensors") for devices in (1, 2))
    for key, vector in one.items():
        torch.testing.assert_close(two[key], vector, rtol=0, atol=1e-5)
    assert not list(tmp_path.glob("*.partial*"))


@pytest.fixture
def on_two_machines(laai_process):
    """A function that runs two commands at once, each told its place as torchrun does, and returns what they wrote."""

    def run(*commands, **options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

        def started(rank):
            environment = address | torchrun_place(rank, 2, port)
            return laai_process(*commands[rank], "--num_nodes", "2", environment=environment, **options)

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(started, (0, 1)))

    return run


def test_two_machines_extract_what_one_does(tiny_folder, word_file, tmp_path, on_two_machines):
    command = ["extract", "--source", str(word_file), "--base_model", str(tiny_folder), "--samples", "11", "--output"]
    paths = [tmp_path / name for name in ("first.safetensors", "second.safetensors")]
    kept = tmp_path / "first.safetensors.partial.0"
    kept.write_text("of a run on one machine")
    first, second = on_two_machines(*([*command, str(path)] for path in paths))
    assert (first.stdout.count("vectors at heads"), second.stdout.count("vectors at heads")) == (1, 0)
    assert not paths[1].exists()
    assert kept.exists(), "it was not looked at"
    main([*command, str(tmp_path / "alone.safetensors")])
    alone, shared = Intervention.load(tmp_path / "alone.safetensors"), Intervention.load(paths[0])
    for key, vector in alone.items():
        torch.testing.assert_close(shared[key], vector, rtol=0, atol=1e-5)


def test_machines_that_read_other_samples_stop(tiny_folder, word_file, tmp_path, on_two_machines):
    """As from another file, or from embeddings that come out otherwise; here from another seed."""
    command = ["extract", "--source", str(word_file), "--base_model", str(tiny_folder), "--samples", "6", "--output"]
    commands = ([*command, str(tmp_path / f"{seed}.safetensors"), "--seed", seed] for seed in "01")
    first, second = on_two_machines(*commands, expected=(2,))
    assert "another process of this run stopped" in first.stderr
    assert "reads other samples, or another model, than the first" in second.stderr
    assert not list(tmp_path.glob("*.safetensors"))


def test_what_fails_on_one_of_two_processes_is_said_in_a_line_by_each(tiny_folder, word_file, tmp_path, laai_process):
    """The last sample alone holds a token whose embedding is not finite; the demonstrations are the same for all."""
    model, task = tmp_path / "overflowing", tmp_path / "colours.jsonl"
    shutil.copytree(tiny_folder, model)
    task.write_text(word_file.read_text() + json.dumps({"input": "§", "output": "red"}) + "\n")
    weights = load_file(model / "model.safetensors")
    token = AutoTokenizer.from_pretrained(model)("§").input_ids[0]
    weights["model.embed_tokens.weight"][token] = float("inf")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    command = ["extract", "--source", str(task), "--base_model", str(model), "--samples", "40", "--shared_shots"]
    command += ["--shots", "2", "--devices", "2", "--output", str(tmp_path / "v.safetensors")]
    stderr = laai_process(*command, expected=(2, -9)).stderr  # -9: Lightning found the other process gone first
    assert "error: the activations of sample" in stderr
    assert "error: another process of this run stopped" in stderr
    assert "Traceback" not in stderr
    assert (tmp_path / "v.safetensors.partial.0").exists(), "what was done is kept"
    assert not (tmp_path / "v.safetensors").exists()
