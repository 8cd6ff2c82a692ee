"""The transfer matrix from its command line: cells, what is resumed, the report."""

from __future__ import annotations

import csv
import json
import sys

import numpy as np
import pytest


@pytest.fixture
def matrix(scripts):
    return scripts("cast_transfer", "cast_report", "transfer_matrix")


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
    cast_transfer, cast_report, _ = matrix
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


def test_a_prompt_that_shows_fewer_is_told_apart(matrix):
    """Only where the prompt has room for all examples does it show as many as the vector has samples."""
    _, cast_report, _ = matrix
    place = {"helps": True, "layers": [0, 1], "scale": 1.0}
    row = {"target": "t", "choice": [None], "nll": 1.0, "prompt_tokens": 5, "choice_of_place": None, "left_out": 0}
    rows = [row | {"source": None, "method": "zero-shot", "seed": seed, "exact": [0]} for seed in (0, 1)]
    for source, seed, left_out, right in (("a", 0, 0, 0), ("a", 1, 0, 0), ("b", 0, 0, 1), ("b", 1, 2, 1)):
        about = row | {"source": source, "seed": seed}
        rows.append(about | {"method": "cast", "exact": [1], "choice_of_place": place})
        rows.append(about | {"method": "cross-task few-shot", "exact": [right], "left_out": left_out})
    text = cast_report.report(cast_report.completed(rows), {})
    assert "| cast − cross-task few-shot | +0.500 (2 pairs) |" in text
    assert "| cast − cross-task few-shot, none left out | +1.000 (1 pair) |" in text


def test_a_prompt_that_is_too_long_is_left_out(matrix, monkeypatch, tiny_folder, folder, capsys):
    controls = ["--skip", "random direction", "random samples", "each site"]
    found = run(matrix, monkeypatch, tiny_folder, folder, "--targets", "two", "--longest", "10", *controls)
    assert {row["method"] for row in found["rows"]} == {"zero-shot", "few-shot", "label prior", "cast"}
    assert "one -> two: no cross-task prompt, 2 demonstrations are over --longest 10" in capsys.readouterr().out


def test_rows_without_a_likelihood_are_left_out(matrix):
    _, cast_report, _ = matrix
    place = {"helps": True, "layers": [0, 1], "scale": 1.0}
    row = {"target": "t", "seed": 0, "exact": [1, 0], "choice": [None] * 2, "prompt_tokens": 5, "choice_of_place": None}
    rows = [row | {"source": None, "method": "zero-shot", "nll": 3.0}]
    found = (("a", None), ("b", 2.0))
    rows += [row | {"source": s, "method": "cast", "nll": nll, "choice_of_place": place} for s, nll in found]
    text = cast_report.report(cast_report.completed(rows), {})
    assert "| cast | 0.500 | - | - | 2.00 | 5 |" in text
    assert "so does the gain on development examples" in text
    assert "one draw at the layers, scale and norms that were chosen for CAST" in text
    alone = cast_report.report(cast_report.completed(rows[:2]), {})
    assert "| cast | 0.500 | - | - | - | 5 |" in alone


def test_what_a_cell_has_is_not_measured_again(matrix, monkeypatch, tiny_folder, folder):
    *_, transfer_matrix = matrix
    found = run(matrix, monkeypatch, tiny_folder, folder, "--targets", "two")
    steered = ("cast", "random direction", "random samples", "cast, heads only", "cast, residual only")
    cut = [row for row in found["rows"] if row["method"] not in steered]
    (folder / "out.json").write_text(json.dumps(found | {"rows": cut}))
    compared, compare = [], transfer_matrix.compare

    def noting(trainer, model, data, methods, **options):
        compared.extend(method.name for method in methods)
        return compare(trainer, model, data, methods, **options)

    monkeypatch.setattr(transfer_matrix, "compare", noting)
    again = run(matrix, monkeypatch, tiny_folder, folder, "--targets", "two")
    assert [name for name in compared if " only" not in name] == ["cast", "random direction", "random samples"]
    assert len(compared) == 4, "the site that was chosen is not measured twice"

    def results(rows):
        return {row["method"]: (row["exact"], row["choice"], row["nll"]) for row in rows}

    assert results(again["rows"]) == results(found["rows"])


def seeds_of(source, target, by_seed, prompted=()):
    """Rows of a pair: forced choice and exact match of the vector by seed, with zero-shot wrong on all queries."""
    rows = []
    for seed, right in by_seed.items():
        place = {"helps": True, "layers": [0, seed + 1], "scale": 1.0, "gain": 0.1 * seed}
        row = {"target": target, "seed": seed, "prompt_tokens": 5 + seed, "nll": 1.0, "chance": 0.5, "n": len(right)}
        zero = [0] * len(right)
        rows.append(row | {"source": None, "method": "zero-shot", "exact": zero, "choice": zero})
        rows.append(
            row | {"source": source, "method": "cast", "exact": right, "choice": right, "choice_of_place": place}
        )
        if seed in prompted:
            rows.append(row | {"source": source, "method": "cross-task few-shot", "exact": right, "choice": right})
    return rows


def test_a_pair_counts_once_whatever_seeds_it_has(matrix):
    _, report, _ = matrix
    rows = seeds_of("a", "t", {0: [1, 1], 1: [0, 0, 0, 1]}, prompted=[1]) + seeds_of("a", "u", {0: [0, 0]})
    cells = report.completed(rows)
    both, one = report.pooled(cells)
    assert len(cells) == 3
    assert (both["cast"]["seed"], one["cast"]["seed"]) == ((0, 1), (0,))
    assert both["cast"]["exact"] == [1, 1, 0, 0, 0, 1]
    assert (both["cast"]["n"], both["cast"]["prompt_tokens"], both["cast"]["calibrated"]) == (6, 5.5, [None] * 6)
    assert 0 < both["cast"]["choice_accuracy_low"] < 0.5
    assert "cross-task few-shot" not in both, "one seed has none"
    gain = report.paired([both, one], "cast", "zero-shot", "exact")
    assert (gain.mean, gain.pairs) == (0.25, 2), "half of one pair, none of the other"
    text = report.report(cells, {})
    assert "2 pairs of tasks (seeds [0, 1])" in text
    assert "| 1 | 1 | +0.250 (1 pair) | +0.250 (1 pair) | - | - | +0.000 (1 pair)" in text, "seed by seed"
    assert "in 0 of 3 pairs and seeds." in text
    assert "0-1, 1; 0-2, 1 |" in text, "places by seed"
    assert "Seed by seed" not in report.report(cells[-1:], {})


def test_cells_of_one_target_and_seed_share_their_queries(matrix):
    """Whatever other seeds a pair has: two sources that act alike tell no more than one."""
    _, report, _ = matrix
    rows = [r for s in "ab" for r in seeds_of(s, "t", {1: [0, 1, 1, 0], 0: [1, 0, 1, 1]})]
    rows += seeds_of("c", "t", {0: [1, 0, 1, 1]})

    def width(sources):
        cells = report.pooled(report.completed([r for r in rows if r["source"] in (*sources, None)]))
        found = report.paired(cells, "cast", "zero-shot", "exact")
        return found.high - found.low

    assert width("ab") == width("a") > 0
    assert report.pooled(report.completed(rows))[0]["cast"]["exact"] == [1, 0, 1, 1, 0, 1, 1, 0], (
        "in the order of seeds"
    )


def test_intervals_need_three_sources_and_targets(matrix):
    _, report, _ = matrix
    rows = [r for s in "abc" for t in "tuv" for r in seeds_of(s, t, {0: [1, 0]})]
    cells = report.pooled(report.completed(rows))
    assert " to " in report.with_interval(report.paired(cells, "cast", "zero-shot", "exact"))
    two = [cell for cell in cells if cell["cast"]["target"] != "v"]
    assert report.with_interval(report.paired(two, "cast", "zero-shot", "exact")) == "+0.500 (6 pairs)"


def test_a_report_is_of_all_seeds_that_there_are(matrix, monkeypatch, folder):
    rows = seeds_of("one", "two", {0: [1, 1], 1: [0, 1]})
    names = ("base_model", "pool", "samples", "shots", "queries", "development", "select", "site", "longest")
    values = ("tiny", 200, 4, 2, 5, 4, "cast", "both", 300)
    found = dict(zip(names, values, strict=True)) | {"skip": None, "label_prior": True, "rows": rows}
    (folder / "out.json").write_text(json.dumps(found))
    for more, told in (([], "(seeds [0, 1])"), (["--seeds", "1"], "(seeds [1])")):
        run(matrix, monkeypatch, "tiny", folder, "--select", "cast", "--report", *more)
        assert told in (folder / "out.md").read_text()


def test_forced_choice_where_there_is_knowledge(matrix):
    """Only targets count whose zero-shot forced choice is above chance by its interval."""
    _, cast_report, _ = matrix

    def cell(target, low, choice):
        zero = {"method": "zero-shot", "choice_accuracy_low": low, "choice": [1, 1, 0, 0]}
        cast = {"method": "cast", "source": "s", "target": target, "seed": 0, "chance": 0.25, "choice": choice}
        return {"zero-shot": zero, "cast": cast, "cast, if it helps": cast}

    known, unknown = cell("known", 0.3, [1, 1, 1, 0]), cell("unknown", 0.2, [0, 0, 0, 0])
    text = "\n".join(cast_report.where_the_model_knows([known, unknown]))
    assert "(known; 1 pairs)" in text
    assert "| cast − zero-shot | +0.250" in text
    assert "selected by the queries that are scored here" in text
    assert "on no target" in cast_report.where_the_model_knows([unknown])[0]


def test_decoding_held_to_options_answers_what_forced_choice_counts(matrix):
    _, cast_report, _ = matrix

    def row(exact, choice):
        return {"source": "s", "target": "t", "seed": 0, "exact": exact, "choice": choice}

    options = {"zero-shot": row([0, 0, 0, 0], [1, 1, 1, 0]), "cast": row([1, 0, 1, 0], [1, 1, 1, 1])}
    free = {"zero-shot": row([0, 0, 0, 0], [None] * 4), "cast": row([1, 1, 1, 1], [None] * 4)}
    lines = cast_report.held_to_options([options, free])
    table = {line.split(" | ")[0]: line.split(" | ")[1:] for line in lines if line.startswith("| ")}
    assert table["| zero-shot"][:3] == ["1", "0.750", "0.500"], "over pairs with options alone"
    assert table["| zero-shot"][3].startswith("-0.250 (")
    assert table["| cast"][:3] == ["1", "1.000", "0.500"]
    assert "| label prior" not in table
    lines = cast_report.held_to_options([options | {"label prior": row([0, 0, 0, 0], [1, 0, 0, 0])}, options])
    assert next(line for line in lines if line.startswith("| label prior | 1 | 0.250 | 0.500 |"))
    assert lines[-1].startswith("The vector adds +0.750 (")
    assert "No target has options" in cast_report.held_to_options([free])[0]


def test_the_refusal_rule_and_paired_intervals(matrix):
    _, cast_report, _ = matrix

    def row(source, method, exact, helps=None):
        place = {"helps": helps, "layers": [0], "scale": 1.0}
        made = {
            "source": source,
            "target": "t",
            "seed": 0,
            "method": method,
            "exact": exact,
            "choice": [None] * len(exact),
        }
        return made | ({"choice_of_place": place} if helps is not None else {})

    rows = [row(None, "zero-shot", [0, 0, 1, 1]), row(None, "few-shot", [1, 1, 1, 1])]
    rows += [row("a", "cast", [1, 1, 1, 1], True), row("b", "cast", [0, 0, 0, 0], False)]
    good, bad = cast_report.completed(rows)
    assert good["cast, if it helps"]["exact"] == [1, 1, 1, 1]
    assert bad["cast, if it helps"]["exact"] == [0, 0, 1, 1]
    both = cast_report.paired([good, bad], "cast", "zero-shot", "exact")
    assert (both.mean, both.pairs) == (0.0, 2)
    assert both.low < 0 < both.high
    only = cast_report.paired([good], "cast", "zero-shot", "exact")
    rng = np.random.default_rng(1)
    means = rng.choice([1, 1, 0, 0], size=(20_000, 4)).mean(axis=1)
    assert only.low == pytest.approx(np.quantile(means, 0.025), abs=0.01)
    assert np.isnan(cast_report.paired([good], "cast", "zero-shot", "choice").mean)


def test_pairs_that_share_a_source_or_target_are_drawn_together(scripts):
    (crossed,) = scripts("crossed_bootstrap")
    pairs = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("b", "z")]
    weights = crossed.crossed_weights(pairs, np.random.default_rng(0), 4000)
    assert (weights[:, 0] * weights[:, 3] == weights[:, 1] * weights[:, 2]).all(), "products of a row and a column"
    assert weights.mean(axis=0) == pytest.approx([1.0] * 5, abs=0.06)
    alone = crossed.crossed_weights([("a", "x")], np.random.default_rng(0), 5)
    assert (alone == 1).all()


def test_intervals_do_not_shrink_with_repeated_sources(matrix):
    """Ten sources that act alike on two targets tell no more than one: the targets differ."""
    _, cast_report, _ = matrix

    def cell(source, target, exact):
        row = {"source": source, "target": target, "seed": 0, "exact": exact}
        return {"cast": row, "zero-shot": row | {"exact": [0] * 4}}

    def width(sources):
        cells = [cell(s, t, e) for s in map(str, range(sources)) for t, e in (("x", [1] * 4), ("y", [0] * 4))]
        found = cast_report.paired(cells, "cast", "zero-shot", "exact")
        assert found.mean == 0.5
        return found.high - found.low

    assert width(10) == pytest.approx(width(1), abs=0.01) == pytest.approx(1.0)
