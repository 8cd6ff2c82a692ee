"""The study of starts on the tiny model: every start is learned from, what is done is kept, differences are paired."""

from __future__ import annotations

import argparse
import json
import sys

import pytest

from laai.tasks.loading import load_task


@pytest.fixture
def study(scripts):
    return scripts("laai_starts", "starts_report")


@pytest.fixture
def run(study, tiny_folder, tmp_path, monkeypatch):
    """A function that runs the study and returns its rows."""

    def rows(*arguments):
        path = tmp_path / "starts.json"
        named = ["--tasks", "antonym", "--seeds", "0", "--queries", "3", "--base_model", str(tiny_folder)]
        monkeypatch.setattr(sys, "argv", ["laai_starts.py", *named, "--json", str(path), *arguments])
        study[0].main()
        return json.loads(path.read_text())["rows"]

    return rows


def test_every_start(run, study, tmp_path, monkeypatch, capsys):
    starts = ["zero", "random", "own", "own:1", "one", "mean", "selected", "similar", "blend", "prior"]
    options = ["--sizes", "1", "2", "--at_steps", "2", "--starts", *starts]
    monkeypatch.setattr(study[0], "STEPS", 3)
    rows = run(*options)
    found = {(row["size"], row["start"]) for row in rows if row["at_step"] is None}
    alone = {"zero", "random", "one", "mean", "selected"}
    assert found == {(1, s) for s in alone} | {(2, s) for s in starts}, "one example has no vector of its own"
    assert {row["at_step"] for row in rows} == {None, 2}
    assert all(len(row["exact"]) == 3 and row["nll"] > 0 for row in rows)
    ends = [row["nll"] for row in rows if row["at_step"] is None and row["size"] == 2]
    assert len(set(ends)) == len(ends), "each start leads elsewhere"
    assert "| own:1 |" in capsys.readouterr().out
    assert (tmp_path / "starts.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("laai.compare.study.load_model", lambda *_: pytest.fail("all of this is done"))
    assert run(*options) == rows
    for other in (["--queries", "4"], ["--distill", "0"]):
        with pytest.raises(SystemExit):
            run(*options, *other)
    told = {(row["size"], row["start"]) for row in rows if row.get("untested_inputs")}
    of_others = {(n, s) for n in (1, 2) for s in ("one", "mean", "selected")}
    assert told == of_others | {(1, "random"), (2, "similar"), (2, "blend")}


def test_learning_by_the_likelihood_alone(run, study, tmp_path, monkeypatch):
    monkeypatch.setattr(study[0], "STEPS", 3)
    seen, module = [], study[0].LAAIModule
    monkeypatch.setattr(study[0], "LAAIModule", lambda *a, **o: (seen.append(m := module(*a, **o)), m)[1])
    run("--sizes", "2", "--starts", "zero", "prior", "--distill", "0")
    assert [m.recipe.distill for m in seen] == [0.0, 0.0]
    assert not (tmp_path / "starts.png").exists(), "one number of examples makes no curve"
    assert [m.recipe.prior for m in seen] == ["zero", "start"]
    with pytest.raises(SystemExit):
        run("--sizes", "2", "--starts", "zero")


def test_other_tasks_show_nothing_that_is_tested(study, tiny, monkeypatch):
    """antonym and word-sentiment ask about the same words, capital-country about others."""
    module, _ = study
    options = argparse.Namespace(queries=100, sizes=[2, 10], site="heads")
    extracted, vectors = [], {}
    monkeypatch.setattr(module.cast, "extract", lambda model, source, **_: extracted.append(source))
    cells = [module.Draw(tiny, task, 0, options, vectors) for task in ("antonym", "present-past")]
    for cell in cells:
        tested = {e.input for e in cell.examples(10).splits.test}
        whole = {e.input for e in load_task("word-sentiment").examples}
        assert tested & whole, "there is something to leave out"
        cell.other("word-sentiment")
        assert {e.input for e in extracted[-1].examples} == whole - tested
        cell.other("capital-country")
    assert [source.name for source in extracted] == ["word-sentiment", "capital-country", "word-sentiment"]


def test_rows_of_vectors_that_may_show_what_is_tested_are_told(study):
    _, report = study
    row = {"task": "t", "seed": 0, "size": 2, "at_step": None, "steps": 3, "exact": [1, 0], "nll": 1.0}
    old = [row | {"start": start} for start in ("zero", "mean", "one:1", "own", "random")]
    assert "2 rows of starts from other tasks were made when" in report.report(old, {}, None)
    assert "were made when" not in report.report([r | {"untested_inputs": True} for r in old], {}, None)


@pytest.mark.parametrize("script", ["laai_starts", "compare_methods"])
def test_bad_input_ends_in_one_line(scripts, tiny_folder, tmp_path, monkeypatch, capsys, script):
    arguments = ["--tasks", "no-such-task", "--base_model", str(tiny_folder), "--json", str(tmp_path / "none.json")]
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
    with pytest.raises(SystemExit) as refused:
        scripts(script)[0].main()
    assert refused.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
