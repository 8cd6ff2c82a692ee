"""The transfer matrix from its command line: cells, what is resumed, the report."""

from __future__ import annotations

import csv
import json
import sys

import pytest


@pytest.fixture
def matrix(scripts):
    return scripts("cast_transfer", "transfer_report")


@pytest.fixture
def folder(tmp_path):
    """Three tasks as folders, two of them with choices."""
    for name, options in (("one", ("stone", "plant")), ("two", ("red", "dark blue")), ("three", None)):
        outputs, more = options or ("up", "down"), {"choices": options} if options else {}
        rows = [{"input": f"{name} {i}", "output": outputs[i % 2]} | more for i in range(30)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(matrix, monkeypatch, tiny_folder, folder, *more):
    arguments = ["--sources", "one", "two", "--targets", "two", "three", "--data", str(folder), "--samples", "4"]
    arguments += ["--shots", "2", "--queries", "5", "--development", "4", "--select", "k_center", "--longest", "300"]
    arguments += ["--base_model", str(tiny_folder), "--json", str(folder / "out.json"), *more]
    monkeypatch.setattr(sys, "argv", ["cast_transfer.py", *arguments])
    matrix[0].main()
    return json.loads((folder / "out.json").read_text())


def test_the_matrix(matrix, monkeypatch, tiny_folder, folder, capsys):
    cast_transfer, cast_report = matrix
    found = run(matrix, monkeypatch, tiny_folder, folder)
    cells = cast_report.completed(found["rows"])
    assert [(c["cast"]["source"], c["cast"]["target"]) for c in cells] == [
        ("one", "two"),
        ("one", "three"),
        ("two", "three"),
    ]
    for cell in cells:
        labelled = cell["cast"]["target"] == "two"
        gains = {site: cell[f"cast, {site} only"]["choice_of_place"]["gain"] for site in ("heads", "residual")}
        chosen = cell["cast"]["choice_of_place"]
        assert chosen["gain"] == gains[chosen["site"]] == max(gains.values())
        assert cell[f"cast, {chosen['site']} only"]["exact"] == cell["cast"]["exact"]
        whole = {"cross-task few-shot, none left out"}
        assert set(cell) == (set(cast_report.METHODS) | whole) - (set() if labelled else {"label prior"})
        assert {len(row["exact"]) for row in cell.values()} == {5}
        assert (cell["cast"]["choice"][0] is None) == (cell["cast"]["target"] == "three")
        assert cell["cross-task few-shot"]["prompt_tokens"] > cell["zero-shot"]["prompt_tokens"]
    assert sum(row["source"] is None for row in found["rows"]) == 7, "a target's own methods run once"
    all_labels = [c["few-shot, more labels"]["prompt_tokens"] - c["few-shot"]["prompt_tokens"] for c in cells]
    assert min(all_labels) > 0, "they show the development examples too"
    assert [c["cross-task few-shot"]["shown"] for c in cells] == [4, 4, 4]
    assert {c["few-shot, more labels"]["shown"] + c["few-shot, more labels"]["left_out"] for c in cells} == {2 + 4}
    out = capsys.readouterr().out
    assert "one → three" in out
    assert "| cast − cross-task few-shot, none left out |" in out
    lines = list(csv.DictReader((folder / "out.csv").read_text().splitlines()))
    assert len(lines) == 3 * len(cast_report.METHODS) - 2
    assert (folder / "out.png").stat().st_size > 1000

    def fail(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(cast_transfer.Matrix, "cell", fail)
    assert run(matrix, monkeypatch, tiny_folder, folder) == found
    assert run(matrix, monkeypatch, tiny_folder, folder, "--samples", "3", "--report") == found, "settings of the file"
    assert "samples 4" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(matrix, monkeypatch, tiny_folder, folder, "--samples", "3")
    assert "other settings" in capsys.readouterr().err


def test_what_cannot_be_run(matrix, monkeypatch, tiny_folder, folder, capsys):
    for arguments, told in ((["--samples", "1"], "--samples must be 2 or more"), (["--sources", "none"], "error: ")):
        with pytest.raises(SystemExit) as refused:
            run(matrix, monkeypatch, tiny_folder, folder, *arguments)
        assert refused.value.code == 2
        found = capsys.readouterr().err
        assert told in found
        assert "Traceback" not in found


def test_a_report_of_nothing(matrix, monkeypatch, tiny_folder, folder, capsys):
    with pytest.raises(SystemExit):
        run(matrix, monkeypatch, tiny_folder, folder, "--report")
    assert "out.json is not there: nothing to report" in capsys.readouterr().err


def test_a_prompt_that_is_too_long_is_left_out(matrix, monkeypatch, tiny_folder, folder, capsys):
    controls = ["--skip", "random direction", "random samples", "each site"]
    found = run(matrix, monkeypatch, tiny_folder, folder, "--targets", "two", "--longest", "10", *controls)
    assert {row["method"] for row in found["rows"]} == {"zero-shot", "few-shot", "label prior", "cast"}
    assert "one -> two: no cross-task prompt, 2 demonstrations are over --longest 10" in capsys.readouterr().out


def test_what_a_cell_has_is_not_measured_again(matrix, monkeypatch, tiny_folder, folder):
    study, _ = matrix
    found = run(matrix, monkeypatch, tiny_folder, folder, "--targets", "two")
    steered = ("cast", "random direction", "random samples", "cast, heads only", "cast, residual only")
    cut = [row for row in found["rows"] if row["method"] not in steered]
    (folder / "out.json").write_text(json.dumps(found | {"rows": cut}))
    compared, compare = [], study.compare

    def noting(model, data, arms, **options):
        compared.extend(arm.name for arm in arms)
        return compare(model, data, arms, **options)

    monkeypatch.setattr(study, "compare", noting)
    again = run(matrix, monkeypatch, tiny_folder, folder, "--targets", "two")
    assert [name for name in compared if " only" not in name] == ["cast", "random direction", "random samples"]
    assert len(compared) == 4, "the site that was chosen is not measured twice"

    def results(rows):
        return {row["method"]: (row["exact"], row["choice"], row["nll"]) for row in rows}

    assert results(again["rows"]) == results(found["rows"])


def test_rows_of_another_file_of_hub_tasks_do_not_mix(matrix, monkeypatch, tiny_folder, folder, capsys):
    """Nor do those of one that was changed; the file names tasks by any name, here by their folders."""
    hub = folder / "hub.json"
    tasks = {name: {"task": str(folder / name), "columns": {}} for name in ("one", "two", "three")}
    hub.write_text(json.dumps(tasks))
    few = ["--skip", "cross-task few-shot", "random direction", "random samples", "each site", "--hub", str(hub)]
    found = run(matrix, monkeypatch, tiny_folder, folder, "--targets", "two", *few)
    assert run(matrix, monkeypatch, tiny_folder, folder, "--targets", "two", *few) == found
    hub.write_text(json.dumps(tasks | {"two": tasks["two"] | {"instruction": "Choose."}}))
    for given in (few, few[:-2]):
        with pytest.raises(SystemExit):
            run(matrix, monkeypatch, tiny_folder, folder, "--targets", "two", *given)
        assert "other settings" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(matrix, monkeypatch, tiny_folder, folder, "--hub", str(folder / "none.json"))
    assert "expected --hub as a file that can be read" in capsys.readouterr().err


def test_no_label_prior_where_options_are_alike_by_chance(matrix, monkeypatch, tiny_folder, folder):
    """One example of many has other options: the few that are drawn may not show it."""
    path = folder / "two" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert "label prior" in methods(run(matrix, monkeypatch, tiny_folder, folder, "--targets", "two"))
    (folder / "out.json").unlink()
    rows[0]["choices"] = ["red", "dark blue", "green"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "label prior" not in methods(run(matrix, monkeypatch, tiny_folder, folder, "--targets", "two"))


def methods(found):
    return {row["method"] for row in found["rows"]}
