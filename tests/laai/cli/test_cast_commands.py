"""`laai extract` and `laai transfer`: slips end in a line before a model is loaded, and no work is lost."""

from __future__ import annotations

import dataclasses
import json
import warnings

import datasets
import pytest
import torch

from cast.extraction.contrast import Contrast
from cast.transfers import course
from cast.transfers.choice import Placement
from cast.transfers.report import refusal
from laai.cli.main import main
from laai.errors import UserError
from laai.files import check_output
from laai.steering.intervention import Intervention
from tests.forked import torchrun_place


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main replaces it


@pytest.fixture
def no_model(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("laai.models.load_model", fail)


@pytest.fixture
def extraction(word_file, tiny_folder):
    command = ["extract", "--source", str(word_file), "--base_model", str(tiny_folder), "--output", "v.safetensors"]
    return [*command, "--samples", "4", "--shots", "2"]


@pytest.fixture
def a_transfer(word_file, tiny_folder):
    command = ["transfer", "--source", "antonym", "--target", str(word_file), "--base_model", str(tiny_folder)]
    return [*command, "--test", "5", "--development", "6", "--samples", "4", "--shots", "2"]


def refused(capsys, command):
    """What a command that the user has to correct says, in one line."""
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--devices", "0"], "--devices as a number from 1 on, or auto, found '0'"),
        (["--devices", "many"], "found 'many'"),
        (["--devices", "9999"], "found"),
        (["--num_nodes", "0"], "expected --num_nodes as a number from 1 on, found 0"),
        (["--encoder", "x"], "the strategy random compares no samples: choose another, or leave out the encoder x"),
        (["--precision", "abc"], "--precision abc: Precision 'abc' is invalid"),
        (["--precision", "bf16-true"], r"found bf16-true, which would convert it for good: load the model with that"),
        (["--output", "folder"], "expected --output as a file to write, found the folder folder"),
        (["--output", "file/v.safetensors"], "expected --output as a file that can be written"),
        (["--output", 250 * "v"], "File name too long"),
    ],
)
def test_slips_in_extract_are_told_before_the_model_loads(capsys, no_model, extraction, tmp_path, options, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert said in refused(capsys, [*extraction, *options])


def test_machines_that_do_not_add_up_are_told_before_the_model_loads(capsys, no_model, extraction, monkeypatch):
    place = torchrun_place(0, 2, "29500") | {"WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    line = refused(capsys, [*extraction, "--num_nodes", "2"])
    assert "found --devices 1 --num_nodes 2 --precision 32-true: " in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--test", "0"], "expected --test as at least 1, found 0"),
        (["--output", "folder"], "expected --output as a file to write, found the folder folder"),
        (["--json", "folder"], "expected --json as a file to write"),
        (["--output", "one", "--json", "./one"], "expected --output and --json as two files, found one twice"),
        (["--output", 232 * "v"], "File name too long"),
        (["--source", "antonym", "antonym"], "expected each source once, found 'antonym' twice"),
        (["--source", "antonym=1", "antonym=2"], "expected each source once, found 'antonym' twice"),
        (["--source", "file.jsonl", "./file.jsonl"], "expected each task once, found 'file' twice"),
        (["--centre", "antonym", "antonym"], "expected each task once"),
        (["--source", "antonym=inf"], "each with a weight above 0, found antonym=inf"),
        (["--devices", "0"], "--devices as a number from 1 on, or auto, found '0'"),
        (["--encoder", "x"], "the strategy random compares no samples"),
        (["--precision", "bf16-true"], "found bf16-true, which would convert it for good"),
        (["--columns", "input"], "expected --columns as FIELD=COLUMN, such as input=text, found 'input'"),
        (["--target_columns", "input="], "expected --target_columns as FIELD=COLUMN"),
        (["--columns", "input=q", "--target", "synonym"], "found built-in tasks alone"),
        (["--target_columns", "input=q", "--target", "synonym"], "built in and takes no columns"),
    ],
)
def test_slips_in_transfer_are_told_before_the_model_loads(
    capsys, no_model, a_transfer, word_file, tmp_path, options, said
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.jsonl").write_text(word_file.read_text())
    assert said in refused(capsys, [*a_transfer, *options])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--development", "0", "--target", "country-region"], True),
        (["--development", "0", "--target", "country-region", "--no_label_prior"], False),
        (["--development", "0", "--target", "country-region", "--preserve_norm"], False),
        (["--development", "0", "--target", "country-region", "--positions", "generated"], False),
        (["--development", "0", "--target", "synonym"], False),
        (["--target", "country-region"], False),
    ],
)
def test_without_development_examples_there_is_no_label_prior_and_the_output_says_so(capsys, a_transfer, options, told):
    main([*a_transfer, *options])
    assert ("label prior: none" in capsys.readouterr().out) == told


def test_a_check_leaves_nothing_behind(tmp_path):
    assert check_output(str(tmp_path / "new" / "v.safetensors")) == tmp_path / "new" / "v.safetensors"
    assert not list(tmp_path.iterdir())


def test_a_vector_that_cannot_be_saved_is_not_extracted_twice(capsys, extraction, tmp_path, monkeypatch):
    ran, run, save = [], Contrast.run, Intervention.save
    monkeypatch.setattr(Contrast, "run", lambda self, pairs: (ran.append(pairs), run(self, pairs)))

    def full(self, path):
        raise UserError(f"cannot write {path}: no space left on device")

    monkeypatch.setattr(Intervention, "save", full)
    assert "no space left" in refused(capsys, extraction)
    assert [path.name for path in tmp_path.iterdir()] == ["v.safetensors.partial.0"]
    monkeypatch.setattr(Intervention, "save", save)
    main(extraction)
    assert len(ran) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["v.safetensors"]


@pytest.mark.parametrize("option", ["--output", "--json"])
def test_an_interrupted_transfer_goes_on(a_transfer, tmp_path, power_cut, option):
    """Two sources and the random samples: four extractions, of which the second is stopped, then the last."""
    command = [*a_transfer, "--source", "antonym", "synonym", "--select", "k_center", "--always"]
    main([*command, "--output", "whole.safetensors", "--json", "whole.json"])
    for done in (1, 3):
        power_cut.after(done)
        with pytest.raises(RuntimeError, match="power cut"):
            main([*command, option, "v.file"])
        assert sorted(path.name for path in tmp_path.glob("v.*")) == [f"v.file.partial-{n}.0" for n in range(done)]
    power_cut.after(100)
    main([*command, option, "v.file"])
    assert len(power_cut.ran) == 4, "nothing is run twice"
    assert [path.name for path in tmp_path.glob("v.*")] == ["v.file"]
    if option == "--json":
        one, two = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "v.file"))
        assert [row["nll"] for row in two["rows"]] == pytest.approx([row["nll"] for row in one["rows"]], abs=1e-6)
        return
    before = Intervention.load("whole.safetensors")
    for key, vector in Intervention.load("v.file").items():
        torch.testing.assert_close(vector, before[key], rtol=0, atol=1e-6)


def test_a_transfer_says_what_it_read_and_what_it_gained(capsys, a_transfer, tmp_path, monkeypatch):
    real = course.choose_placement
    monkeypatch.setattr(course, "choose_placement", lambda *a, **k: dataclasses.replace(real(*a, **k), scale=1.0))
    main([*a_transfer, "--from_selected", "--always", "--json", "v.json"])
    out = " ".join(capsys.readouterr().out.split())
    assert ": 4 source samples, 4 labels" in out
    found = json.loads((tmp_path / "v.json").read_text())
    assert {name: found["vector"]["cast"][name] for name in ("samples", "labels", "seed")} == {
        "samples": 4,
        "labels": 4,
        "seed": 0,
    }
    rows = {row["method"]: row for row in found["rows"]}
    assert all(sum(row["exact"]) / 5 == pytest.approx(row["exact_match"]) for row in rows.values())
    assert all(sum(row["choice"]) / 5 == pytest.approx(row["choice_accuracy"]) for row in rows.values())
    for name in ("zero-shot", "few-shot", "random direction"):
        gains = [sum(rows["cast"][what]) / 5 - sum(rows[name][what]) / 5 for what in ("exact", "choice")]
        line = out[out.index(f"cast - {name}: ") :]
        assert f"exact match {gains[0]:+.2f} (" in line.split(" cast - ")[0].split(", forced")[0]
        assert f"forced choice {gains[1]:+.2f} (" in line


def test_no_vector_is_neither_applied_nor_written(capsys, a_transfer, tmp_path, monkeypatch):
    """Not with --always either: what would be left of it is a label prior."""
    real, nothing = course.choose_placement, {"helps": False, "scale": 0.0}
    monkeypatch.setattr(course, "choose_placement", lambda *a, **k: dataclasses.replace(real(*a, **k), **nothing))
    main([*a_transfer, "--always", "--output", "v.safetensors", "--json", "v.json"])
    out = capsys.readouterr().out
    assert "not written: there is no vector" in out
    assert "\nlabel prior: " not in out
    assert not (tmp_path / "v.safetensors").exists()
    rows = {row["method"]: row for row in json.loads((tmp_path / "v.json").read_text())["rows"]}
    assert rows["cast"]["nll"] == rows["zero-shot"]["nll"] != rows["label prior"]["nll"]
    assert "random direction" not in rows


@pytest.mark.parametrize("always", [False, True])
def test_a_refused_vector_is_not_written(capsys, a_transfer, tmp_path, monkeypatch, always):
    real = course.choose_placement
    unhelpful = {"helps": False, "scale": 1.0}
    monkeypatch.setattr(course, "choose_placement", lambda *a, **k: dataclasses.replace(real(*a, **k), **unhelpful))
    main([*a_transfer, "--output", "v.safetensors", "--json", "v.json", *(["--always"] if always else [])])
    out = capsys.readouterr().out
    assert ("not applied and not written: " in out) is not always
    assert (tmp_path / "v.safetensors").exists() is always
    assert json.loads((tmp_path / "v.json").read_text())["refused"] is not always
    if always:
        assert Intervention.load("v.safetensors").provenance.refused is False


def test_columns_of_other_names(capsys, a_transfer, word_task, word_file, tmp_path):
    """Built-in tasks among the sources take none; the target may have its own."""
    rows = {"word": [e.input for e in word_task.examples], "colour": [e.output for e in word_task.examples]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    capsys.readouterr()
    hub, columns = f"hf:{tmp_path}/saved", ["--columns", "input=word", "output=colour"]
    main([*a_transfer, "--source", "antonym", f"{hub}=2", "--target", hub, "--centre", hub, *columns])
    out = capsys.readouterr().out
    assert f"cross-task few-shot: 4 examples of {hub[4:].replace('/', '-')}\n" in out
    own = ["--target_columns", "input=input", "output=output", "--json", "v.json"]
    main([*a_transfer, "--source", hub, *columns, *own])
    assert json.loads((tmp_path / "v.json").read_text())["target"] == str(word_file)


def test_two_processes_transfer_what_one_does(a_transfer, tmp_path, capsys, monkeypatch, laai_process):
    """Two sources, so that the processes meet several times; five queries, which they cannot share evenly."""
    monkeypatch.setenv("LAAI_CACHE", str(tmp_path / "cache"))
    command = [*a_transfer, "--source", "antonym", "synonym", "--select", "k_center", "--always", "--devices"]
    written = [
        [str(n), "--output", str(tmp_path / f"{n}.safetensors"), "--json", str(tmp_path / f"{n}.json")] for n in (1, 2)
    ]
    main([*command, *written[0]])
    done = laai_process(*command, *written[1])
    assert "predict returned" not in done.stderr
    for said in (capsys.readouterr().out, done.stdout):
        assert said.count("cross-task few-shot: 4 examples of antonym") == 1
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    vectors = [Intervention.load(tmp_path / f"{n}.safetensors") for n in (1, 2)]
    assert [two["choice"][name] for name in ("layers", "scale")] == [
        one["choice"][name] for name in ("layers", "scale")
    ]
    assert [row["method"] for row in two["rows"]] == [row["method"] for row in one["rows"]]
    for before, after in zip(one["rows"], two["rows"], strict=True):
        for name in ("n", "exact_match", "choice_accuracy", "nll", "prompt_tokens"):
            assert after[name] == pytest.approx(before[name], abs=1e-4)
    for key, vector in vectors[0].items():
        torch.testing.assert_close(vectors[1][key], vector, rtol=0, atol=1e-4)


def test_what_a_refusal_says():
    weak, none = (Placement((0,), scale, False, 0.0, 0.0, 0.0, None, 9) for scale in (1.0, 0.0))
    assert refusal(weak, wanted=True).endswith("(--always does both)")
    assert refusal(weak, wanted=False).startswith("not applied: ")
    few = dataclasses.replace(weak, examples=4)
    assert "fewer than 5 examples are not believed; give --development more" in refusal(few, wanted=True)
    assert (refusal(none, wanted=True), refusal(none, wanted=False)) == ("not written: there is no vector", "")
