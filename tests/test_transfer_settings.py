"""Transfers with and without labels, from one source and several: what is kept, resumed and reported."""

from __future__ import annotations

import json
import sys

import pytest


@pytest.fixture
def settings(scripts):
    (found,) = scripts("transfer_settings")
    return found


@pytest.fixture
def run(settings, tiny_folder, tmp_path, monkeypatch):
    """A function that runs the transfers and returns the rows that it kept."""

    def kept(*arguments):
        path = tmp_path / "settings.json"
        pairs = ["word-sentiment:country-region", "word-sentiment+antonym:country-region"]
        sizes = ["--developments", "6", "0", "--samples", "4", "--shots", "2", "--queries", "4", "--pool", "30"]
        given = ["--pairs", *pairs, *sizes, "--seeds", "0", "--base_model", str(tiny_folder), "--json", str(path)]
        monkeypatch.setattr(sys, "argv", ["transfer_settings.py", *given, *arguments])
        settings.main()
        return json.loads(path.read_text())["rows"]

    return kept


def test_every_setting(settings, run, tmp_path, monkeypatch, capsys):
    rows = run()
    assert {(r["source"], r["development"], r["chosen_on"]) for r in rows} == {
        (source, development, "target" if development else "source")
        for source in ("word-sentiment", "word-sentiment+antonym")
        for development in (6, 0)
    }
    for source in ("word-sentiment", "word-sentiment+antonym"):
        labelled, without = (
            {r["method"]: r for r in rows if (r["source"], r["development"]) == (source, n)} for n in (6, 0)
        )
        assert {"zero-shot", "cast", "cast, if it helps", "random direction"} <= labelled.keys()
        assert "label prior" not in without, "it takes queries of the target to find"
        for found in (labelled, without):
            assert all(len(row["exact"]) == 4 for row in found.values())
            assert (
                found["cast, if it helps"]["exact"] == found["cast" if found["cast"]["helps"] else "zero-shot"]["exact"]
            )
    text = capsys.readouterr().out
    assert text.count("## One source") == text.count("## Several sources") == 2
    assert "| word-sentiment + antonym → country-region | 0 |" in text
    assert (tmp_path / "settings.md").read_text() in text

    def fail(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(settings.cast, "transfer", fail)
    assert run() == rows
    assert run("--samples", "3", "--report") == rows, "a report runs nothing, and takes the file's own settings"
    with pytest.raises(SystemExit):
        run("--samples", "3")
    assert "other settings" in capsys.readouterr().err


def test_pairs_that_are_none(run, capsys):
    with pytest.raises(SystemExit):
        run("--pairs", "antonym")
    assert "--pairs must be SOURCE[+SOURCE...]:TARGET, found 'antonym'" in capsys.readouterr().err
