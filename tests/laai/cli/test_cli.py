"""The `laai` command: in this process on the tiny model, and its `--help` in processes of their own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch

import cast
from laai.cli.main import main
from laai.steering.intervention import Intervention
from laai.tasks.loading import builtin_tasks, load_task


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main replaces it


@pytest.fixture
def extracted(tiny_folder, word_file, tmp_path):
    path = tmp_path / "vector.safetensors"
    main(
        ["extract", "--source", str(word_file), "--output", str(path), "--samples", "5", "--shots", "2", "--site",
         "residual", "--positions", "generated", "--seed", "3", "--base_model", str(tiny_folder)]
    )  # fmt: skip
    return path


def test_tasks(capsys, word_file):
    main(["tasks"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in builtin_tasks())
    main(["tasks", "antonym"])
    example = load_task("antonym").examples[0]
    assert f"{example.input} -> {example.output}" in capsys.readouterr().out
    main(["tasks", str(word_file)])
    assert "amber" in capsys.readouterr().out


def test_extract_equals_the_library(extracted, tiny, word_file):
    expected = cast.extract(
        tiny, load_task(word_file), samples=5, shots=2, site="residual", seed=3, progress=False
    )  # fmt: skip
    found = Intervention.load(extracted, tiny)
    assert found.positions == "generated"
    for key, vector in expected.items():
        torch.testing.assert_close(found[key], vector)


def test_generate_shows_both(extracted, tiny, word_file, capsys):
    """The model is the one that the file was made for."""
    shown = []
    for scale in ("0", "40"):
        capsys.readouterr()
        main(["generate", "--intervention", str(extracted), "--task", str(word_file), "--scale", scale, "amber"])
        shown.append(re.findall(r"^with\w*:\s+(.*)$", capsys.readouterr().out, flags=re.M))
    assert shown[0][0] == shown[0][1] == shown[1][0] != shown[1][1]
    ids = torch.tensor([tiny.tokenizer.encode("Q: amber\nA:")])
    out = tiny.llm.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
    assert repr(tiny.tokenizer.decode(out, skip_special_tokens=True).strip()) == shown[0][0]
    capsys.readouterr()
    main(["generate", "--intervention", str(extracted), r"Q: amber\nA:"])
    assert shown[0][0] in capsys.readouterr().out, "a bare prompt with a written new line"


def test_the_style_is_the_one_the_file_was_made_with(extracted, tiny, word_file, capsys, tmp_path):
    vector, shown = Intervention.load(extracted), {}
    for name, facts in (("training", {"training": {"style": "chat"}}), ("cast", {"cast": {"style": "chat"}})):
        made = replace(vector.provenance, **facts)
        path = vector.with_vectors(dict(vector.items()), provenance=made).save(tmp_path / name)
        for option in ([], ["--style", "chat"], ["--style", "plain"]):
            capsys.readouterr()
            main(["generate", "--intervention", str(path), "--task", str(word_file), *option, "amber"])
            shown[name, *option] = capsys.readouterr().out
        assert shown[(name,)] == shown[name, "--style", "chat"] != shown[name, "--style", "plain"]


def test_evaluate_writes_its_rows(extracted, word_file, tmp_path, capsys):
    command = [
        "evaluate",
        "--intervention",
        str(extracted),
        "--task",
        str(word_file),
        "--test",
        "6",
        "--json",
        "r.json",
    ]
    main([*command, "--shots", "3", "--scale", "0"])
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["task"] == "colours"
    zero, few, steered = found["rows"]
    assert [row["method"] for row in found["rows"]] == ["zero-shot", "3-shot", "steered"]
    assert steered["nll"] == pytest.approx(zero["nll"], rel=1e-5)
    assert few["nll"] != pytest.approx(zero["nll"], rel=1e-3)
    main([*command, "--scale", "3"])
    zero_again, steered = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert zero_again["nll"] == pytest.approx(zero["nll"], rel=1e-5)
    assert steered["nll"] != pytest.approx(zero["nll"], rel=1e-3)
    assert "steered" in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["tasks"], ["generate"], ["evaluate"], ["extract"], ["transfer"]])
def test_help_answers_without_heavy_imports(command):
    code = f"""
import sys
from laai.cli import main
try:
    main({[*command, "--help"]})
except SystemExit as stop:
    assert not stop.code
heavy = {{"torch", "transformers", "lightning", "datasets", "numpy"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage: laai" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        "tasks antonyms",
        "tasks nothing/here.json",
        "generate --intervention nothing.safetensors hot",
        "generate --intervention TASK hot",
        "generate --intervention VECTOR --task nothing hot",
        "evaluate --intervention VECTOR --task nothing",
        "evaluate --intervention VECTOR --task TASK --shots 1000",
        "evaluate --intervention VECTOR --task TASK --shots -1",
        "evaluate --intervention VECTOR --task TASK --test 0",
        "evaluate --intervention VECTOR --task TASK --dtype int8",
        "evaluate --intervention VECTOR --task TASK --base_model /no/such/model",
        "extract --source nothing --output x",
        "extract --source TASK --output x --shots 0 --base_model MODEL",
        "extract --source TASK --output x --shots 1000 --base_model MODEL",
        "extract --source TASK --output x --base_model MODEL --devices two",
        "extract --source TASK --output x --base_model MODEL --columns input",
        "extract --source TASK --output x --base_model MODEL --columns input=query",
        "transfer --source TASK nothing --target TASK --base_model MODEL",
        "transfer --source TASK=much --target TASK --base_model MODEL",
        "transfer --source TASK=0 --target TASK --base_model MODEL",
        "transfer --source TASK --target TASK --base_model MODEL --test 1000000 --development 1000",
    ],
)
def test_a_mistake_ends_in_one_line(command, extracted, word_file, tiny_folder, capsys):
    names = {"VECTOR": str(extracted), "TASK": str(word_file), "MODEL": str(tiny_folder)}
    for name, path in names.items():
        command = command.replace(name, path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1


def test_a_file_of_another_model_is_refused(extracted, tmp_path, tiny, capsys):
    vector = Intervention.load(extracted)
    vector.provenance = replace(vector.provenance, config_hash="0" * 16)
    foreign = vector.save(tmp_path / "foreign.safetensors")
    with pytest.raises(SystemExit):
        main(["generate", "--intervention", str(foreign), "hot"])
    assert "error: " in capsys.readouterr().err


def test_columns_of_other_names(extracted, word_file, tmp_path, capsys):
    lines = [json.loads(line) for line in word_file.read_text().splitlines()]
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text("".join(json.dumps({"q": r["input"], "a": r["output"]}) + "\n" for r in lines))
    command = ["evaluate", "--intervention", str(extracted), "--task", str(renamed), "--test", "6"]
    main([*command, "--columns", "input=q", "output=a"])
    assert "steered" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(command)
    assert "no key" in capsys.readouterr().err


def test_transfer_prints_and_writes(word_file, tiny_folder, tmp_path, capsys, tiny):
    command = ["transfer", "--source", f"{word_file}=2", "antonym", "--target", str(word_file), "--test", "5"]
    command += ["--development", "4", "--samples", "5", "--shots", "2", "--base_model", str(tiny_folder), "--always"]
    main([*command, "--output", str(tmp_path / "t.safetensors"), "--json", str(tmp_path / "t.json")])
    out = capsys.readouterr().out
    assert "chosen on 4 examples of the target" in out
    found = json.loads((tmp_path / "t.json").read_text())
    assert [row["method"] for row in found["rows"]][-2:] == ["cast", "random direction"]
    vector = Intervention.load(tmp_path / "t.safetensors", tiny)
    assert vector.select(site="heads").layers == found["choice"]["layers"]
    assert (vector.sites, set(found["label_prior"])) == (["heads", "residual"], {"red", "dark blue"})
    assert "label prior: red" in out
    assert [part["weight"] for part in vector.provenance.cast["combined"]] == pytest.approx([2 / 3, 1 / 3])
    main([*command, "--no_label_prior", "--centre", "antonym", "--output", str(tmp_path / "t.safetensors")])
    assert "label prior" not in capsys.readouterr().out
    bare = Intervention.load(tmp_path / "t.safetensors", tiny)
    assert bare.sites == ["heads"]
    assert [other["source"] for other in bare.provenance.cast["centred_on"]] == ["antonym"]


def test_generate_wants_tokens_before_the_model_is_loaded(extracted, capsys, monkeypatch):
    monkeypatch.setattr("laai.models.load_model", None)
    with pytest.raises(SystemExit):
        main(["generate", "--intervention", str(extracted), "--max_new_tokens", "0", "amber"])
    assert "max_new_tokens must be at least 1, not 0" in capsys.readouterr().err


def test_generate_writes_a_chat_without_a_task(extracted, tiny, capsys):
    main(["generate", "--intervention", str(extracted), "--style", "chat", "--scale", "0", "amber"])
    turns = [{"role": "user", "content": "amber"}]
    text = tiny.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    ids = torch.tensor([tiny.tokenizer.encode(text, add_special_tokens=False)])
    out = tiny.llm.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
    written = capsys.readouterr().out
    assert repr(tiny.tokenizer.decode(out, skip_special_tokens=True).strip()) in written


@pytest.mark.parametrize("in_a_loop", [False, True])
def test_ctrl_c_ends_without_a_traceback(capsys, monkeypatch, in_a_loop):
    def interrupted(*_, **__):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if in_a_loop:
                sys.exit(1)  # as Lightning does
            raise

    monkeypatch.setattr("laai.tasks.load_task", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["tasks", "file.jsonl"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\ninterrupted\n"
