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
def run(settings, tiny_folder, word_file, tmp_path, monkeypatch):
    """A function that runs the transfers and returns the rows that it kept."""

    def kept(*arguments):
        path = tmp_path / "settings.json"
        pairs = [f"country-region:{word_file}", f"country-region+antonym:{word_file}"]
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
        for source in ("country-region", "country-region+antonym")
        for development in (6, 0)
    }
    for source in ("country-region", "country-region+antonym"):
        labelled, without = (
            {r["method"]: r for r in rows if (r["source"], r["development"]) == (source, n)} for n in (6, 0)
        )
        assert {"zero-shot", "cast", "cast, if it helps", "random direction"} <= labelled.keys()
        assert "label prior" not in without, "it takes queries of the target to find"
        assert "label prior" in labelled
        for found in (labelled, without):
            assert all(len(row["exact"]) == 4 for row in found.values())
            assert (
                found["cast, if it helps"]["exact"] == found["cast" if found["cast"]["helps"] else "zero-shot"]["exact"]
            )
    text = capsys.readouterr().out
    assert text.count("## One source") == text.count("## Several sources") == 2
    changes = [line for line in text.splitlines() if " − one source, 6 labelled examples of the target | " in line]
    assert len(changes) == 3
    assert all(line.count("(1 pair)") == 2 for line in changes), "the same target, in both measures"
    assert "| country-region + antonym → " in text
    more = run("--by_layer", "--developments", "6")
    assert more[: len(rows)] == rows
    assert {(r["source"], r["development"], r["by_layer"]) for r in more[len(rows) :]} == {
        ("country-region", 6, True),
        ("country-region+antonym", 6, True),
    }
    assert "## One source, 6 labelled examples of the target, scale by layer" in capsys.readouterr().out

    def fail(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(settings.cast, "transfer", fail)
    assert run() == more
    assert (tmp_path / "settings.md").read_text() in capsys.readouterr().out
    assert run("--samples", "3", "--report") == more, "a report runs nothing, and takes the file's own settings"
    with pytest.raises(SystemExit):
        run("--samples", "3")
    assert "other settings" in capsys.readouterr().err


def test_vectors_of_all_settings_are_of_as_many_samples_of_the_same_examples(settings, run, monkeypatch):
    """What is chosen on where there is no label of the target is no sample where there is one either."""
    made, transfer = [], settings.cast.transfer

    def noting(model, sources, target, *, development, samples, **options):
        pool = {e.input for e in sources[0].examples}
        if not development:
            pool -= {e.input for e in settings.source_development(sources[0], 0)}
        made.append((development, len(sources), samples, pool))
        return transfer(model, sources, target, development=development, samples=samples, **options)

    monkeypatch.setattr(settings.cast, "transfer", noting)
    run()
    assert [one[:3] for one in made] == [(6, 1, 4), (0, 1, 4), (6, 2, 2), (0, 2, 2)]
    assert made[0][3] == made[1][3] == made[2][3] == made[3][3]


def test_pairs_that_are_none(run, capsys):
    with pytest.raises(SystemExit):
        run("--pairs", "antonym")
    assert "--pairs must be SOURCE[+SOURCE...]:TARGET, found 'antonym'" in capsys.readouterr().err
