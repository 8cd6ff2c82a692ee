"""What the README shows works: its Python runs, its commands parse, and its files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import train
from laai import cli

ROOT = Path(__file__).parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "experiments" / "results" / "README.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for language, block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if language == "bash" and line.startswith(("python train.py", "laai "))
]

STUDIES = sorted(
    {
        tuple(shlex.split(command))
        for path in (README, RESULTS)
        for command in re.findall(r"python (experiments/[\w/]+\.py[^`\n]*)", path.read_text(encoding="utf-8"))
    }
)


def test_the_python_examples_run_one_after_the_other(default_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in [block for language, block in BLOCKS if language == "python"]:
        exec(compile(code, str(README), "exec"), names)
    assert names["scores"].nll.shape == (30, 3, 20)
    assert "Q: hot\nA:" in capsys.readouterr().out
    assert (tmp_path / "antonym.safetensors").stat().st_size < 100_000


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] == "python"], ids=" ".join)
def test_train_commands_parse(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_examples.jsonl").write_text('{"input": "a", "output": "b"}\n{"input": "c", "output": "d"}\n')
    arguments = command[2:] if "--help" in command else [*command[2:], "--print_config"]
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    assert not stop.value.code
    assert "num_examples" in capsys.readouterr().out


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] == "laai"], ids=" ".join)
def test_laai_commands_exist_with_these_options(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command[1], "--help"])
    assert stop.value.code == 0
    help_text = capsys.readouterr().out
    assert all(word in help_text for word in command if word.startswith("--"))


@pytest.mark.parametrize("command", STUDIES, ids=" ".join)
def test_studies_exist_with_these_options(command, scripts, monkeypatch, capsys):
    (script,) = scripts(Path(command[0]).stem)
    monkeypatch.setattr("sys.argv", [command[0], "--help"])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code == 0
    help_text = capsys.readouterr().out
    assert all(word in help_text for word in command if word.startswith("--"))


@pytest.mark.parametrize("path", [README, RESULTS], ids=["README", "results"])
def test_linked_files_exist(path):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_every_result_says_what_made_it():
    """Each file of results that is no part of another is linked where its command stands."""
    text = RESULTS.read_text(encoding="utf-8")
    made = {path.stem for path in RESULTS.parent.glob("*.json")} | {path.stem for path in RESULTS.parent.glob("*.md")}
    assert [stem for stem in sorted(made - {"README"}) if f"({stem}." not in text] == []


def test_the_test_command_is_marked():
    assert re.search(r"<!-- test command -->\n```bash\n[^\n]*pytest[^\n]*\n```", README.read_text(encoding="utf-8"))


def test_nothing_is_said_twice():
    """A slip of an edit can repeat whole sections."""
    lines = [line for line in README.read_text(encoding="utf-8").splitlines() if len(line) > 40]
    assert not {line for line in lines if lines.count(line) > 1}
