"""Methods compared on the tiny model: what is measured, kept, gone on from, and drawn."""

from __future__ import annotations

import json

import pytest

from laai.methods import Setting


@pytest.fixture
def run(scripts, tiny_folder, word_file, tmp_path, monkeypatch):
    """A function that runs the study and returns its rows."""
    monkeypatch.setattr("laai.methods.laai.fit", lambda model, *_, init, **__: init)
    (study,) = scripts("compare_methods")

    def rows(*arguments):
        path = tmp_path / "methods.json"
        named = ["--tasks", str(word_file), "--seeds", "0", "--num_examples", "4", "--test", "5"]
        named += ["--base_model", str(tiny_folder), "--json", str(path), "--plot", str(tmp_path / "methods.png")]
        study.main([*named, *arguments])
        return json.loads(path.read_text())["rows"]

    return rows


def test_methods_are_measured_once_on_the_same_queries(run, tmp_path, monkeypatch, capsys):
    rows = run()
    assert [row["method"] for row in rows] == ["zero-shot", "few-shot", "cast", "laai"]
    assert all(len(row["exact"]) == row["n"] == 5 and "choice" not in row for row in rows)
    out = capsys.readouterr().out
    assert "| **mean** |" in out
    assert "LAAI / few-shot: - (" in out, "of a model that is never right there is no ratio"
    assert (tmp_path / "methods.png").read_bytes().startswith(b"\x89PNG")
    more = run("--methods", "zero-shot", "cast-ridge")
    assert more[:4] == rows
    assert [row["method"] for row in more[4:]] == ["cast-ridge"]
    monkeypatch.setattr(Setting, "arm", lambda *_: pytest.fail("all of this is done"))
    assert run("--methods", "few-shot", "laai") == more
    with pytest.raises(SystemExit):
        run("--test", "4")
    assert "other settings" in capsys.readouterr().err
