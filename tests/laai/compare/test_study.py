"""A study: what it runs, in which groups, what it keeps when it is stopped, what it says."""

from __future__ import annotations

import json

import pytest

from laai.compare import Study
from laai.errors import UserError


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of colours by seed, and what it ran: `broken` colours cannot be measured."""
    ran = []
    monkeypatch.setattr("laai.compare.study.load_model", lambda name: ran.append(name) or name)

    def runner(model, options):
        def run(group, cells, rows):
            ran.append((group, [cell["colour"] for cell in cells], len(rows)))
            if any(cell["colour"] == "broken" for cell in cells):
                raise UserError("expected a colour, found a broken one")
            return [cell | {"exact": [1]} for cell in cells]

        return run

    made = Study(
        about="About.",
        arguments=lambda parser: parser.add_argument("--colours", nargs="+", default=["red", "blue"]),
        seeds=(0, 1),
        facts=("base_model",),
        cells=lambda o: [{"seed": seed, "colour": colour} for seed in o.seeds for colour in o.colours],
        together=("seed",),
        runner=runner,
        report=lambda rows, facts, options: f"{len(rows)} rows of {facts['base_model']}",
        results=tmp_path / "rows.json",
    )
    return made, ran


def test_what_is_missing_is_run_in_groups_and_kept(study, tmp_path, capsys):
    made, ran = study
    made.main(["--colours", "red"])
    made.main([])
    made.main([])
    assert ran == [
        "default",
        *[({"seed": 0}, ["red"], 0), ({"seed": 1}, ["red"], 1)],
        "default",
        *[({"seed": 0}, ["blue"], 2), ({"seed": 1}, ["blue"], 3)],
    ], "the model is loaded only where something is missing"
    kept = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["seed"], row["colour"]) for row in kept["rows"]] == [(0, "red"), (1, "red"), (0, "blue"), (1, "blue")]
    assert (tmp_path / "rows.md").read_text() == "4 rows of default"
    out = capsys.readouterr().out
    assert "2/2  seed 1: 0 s" in out
    assert out.endswith("4 rows of default\n")


def test_a_mistake_ends_in_one_line_and_what_was_finished_stays(study, tmp_path, capsys):
    made, _ = study
    made.main(["--colours", "red", "--seeds", "0"])
    with pytest.raises(SystemExit) as refused:
        made.main(["--colours", "red", "broken"])
    assert refused.value.code == 2
    assert capsys.readouterr().err == "error: expected a colour, found a broken one\n"
    assert len(json.loads((tmp_path / "rows.json").read_text())["rows"]) == 1
    with pytest.raises(SystemExit):
        made.main(["--base_model", "other"])
    assert "other settings" in capsys.readouterr().err


def test_a_report_runs_nothing(study, capsys):
    made, ran = study
    made.main(["--seeds", "0"])
    ran.clear()
    made.main(["--report", "--base_model", "other"])
    assert ran == []
    assert capsys.readouterr().out.endswith("2 rows of default\n"), "the settings are the file's"
