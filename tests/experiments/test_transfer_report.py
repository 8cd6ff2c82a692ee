"""The report of the transfer matrix: what is counted once, differences with intervals, the rule that refuses."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest


@pytest.fixture
def report(scripts):
    return scripts("transfer_report")[0]


@pytest.fixture
def of(scripts):
    """What makes cells of rows, and numbers of cells."""
    return scripts("transfer_cells")[0]


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


def test_a_prompt_that_shows_fewer_is_told_apart(report):
    """Only where the prompt has room for all examples does it show as many as the vector has samples."""
    place = {"helps": True, "layers": [0, 1], "scale": 1.0}
    row = {"target": "t", "choice": [None], "nll": 1.0, "prompt_tokens": 5, "choice_of_place": None, "left_out": 0}
    rows = [row | {"source": None, "method": "zero-shot", "seed": seed, "exact": [0]} for seed in (0, 1)]
    for source, seed, left_out, right in (("a", 0, 0, 0), ("a", 1, 0, 0), ("b", 0, 0, 1), ("b", 1, 2, 1)):
        about = row | {"source": source, "seed": seed}
        rows.append(about | {"method": "cast", "exact": [1], "choice_of_place": place})
        rows.append(about | {"method": "cross-task few-shot", "exact": [right], "left_out": left_out})
    text = report.report(rows, {})
    assert "| cast − cross-task few-shot | +0.500 (2 pairs) |" in text
    assert "| cast − cross-task few-shot, none left out | +1.000 (1 pair) |" in text


def test_rows_without_a_likelihood_are_left_out(report):
    place = {"helps": True, "layers": [0, 1], "scale": 1.0}
    row = {"target": "t", "seed": 0, "exact": [1, 0], "choice": [None] * 2, "prompt_tokens": 5, "choice_of_place": None}
    rows = [row | {"source": None, "method": "zero-shot", "nll": 3.0}]
    found = (("a", None), ("b", 2.0))
    rows += [row | {"source": s, "method": "cast", "nll": nll, "choice_of_place": place} for s, nll in found]
    text = report.report(rows, {})
    assert "| cast | 0.500 | - | - | 2.00 | 5 |" in text
    assert "so does the gain on development examples" in text
    assert "one draw at the layers, scale and norms that were chosen for CAST" in text
    alone = report.report(rows[:2], {})
    assert "| cast | 0.500 | - | - | - | 5 |" in alone


def test_a_pair_counts_once_whatever_seeds_it_has(report, of):
    last = seeds_of("a", "u", {0: [0, 0]})
    rows = seeds_of("a", "t", {0: [1, 1], 1: [0, 0, 0, 1]}, prompted=[1]) + last
    cells = of.completed(rows)
    both, one = of.pooled(cells)
    assert len(cells) == 3
    assert (both["cast"]["seed"], one["cast"]["seed"]) == ((0, 1), (0,))
    assert both["cast"]["exact"] == [1, 1, 0, 0, 0, 1]
    assert (both["cast"]["n"], both["cast"]["prompt_tokens"], both["cast"]["calibrated"]) == (6, 5.5, [None] * 6)
    assert 0 < both["cast"]["choice_accuracy_low"] < 0.5
    assert "cross-task few-shot" not in both, "one seed has none"
    gain = of.paired([both, one], "cast", "zero-shot", "exact")
    assert (gain.mean, gain.n) == (0.25, 2), "half of one pair, none of the other"
    text = report.report(rows, {})
    assert "2 pairs of tasks (seeds [0, 1])" in text
    assert "| 1 | 1 | +0.250 (1 pair) | +0.250 (1 pair) | - | - | +0.000 (1 pair)" in text, "seed by seed"
    assert "in 0 of 3 pairs and seeds." in text
    assert "0-1, 1; 0-2, 1 |" in text, "places by seed"
    assert "Seed by seed" not in report.report(last, {})


def test_cells_of_one_target_and_seed_share_their_queries(of):
    """Whatever other seeds a pair has: two sources that act alike tell no more than one."""
    rows = [r for s in "ab" for r in seeds_of(s, "t", {1: [0, 1, 1, 0], 0: [1, 0, 1, 1]})]
    rows += seeds_of("c", "t", {0: [1, 0, 1, 1]})

    def width(sources):
        cells = of.pooled(of.completed([r for r in rows if r["source"] in (*sources, None)]))
        found = of.paired(cells, "cast", "zero-shot", "exact")
        return found.high - found.low

    assert width("ab") == width("a") > 0
    assert of.pooled(of.completed(rows))[0]["cast"]["exact"] == [1, 0, 1, 1, 0, 1, 1, 0], "in the order of seeds"


def test_intervals_need_three_sources_and_targets(of):
    rows = [r for s in "abc" for t in "tuv" for r in seeds_of(s, t, {0: [1, 0]})]
    cells = of.pooled(of.completed(rows))
    assert " to " in of.difference(cells, "cast", "zero-shot", "exact")
    two = [cell for cell in cells if cell["cast"]["target"] != "v"]
    assert of.difference(two, "cast", "zero-shot", "exact") == "+0.500 (6 pairs)"
    assert of.difference(two, "cast", "few-shot", "exact") == "-"


def test_forced_choice_where_there_is_knowledge(report):
    """Only targets count whose zero-shot forced choice is above chance by its interval."""

    def cell(target, low, choice):
        zero = {"method": "zero-shot", "choice_accuracy_low": low, "choice": [1, 1, 0, 0]}
        cast = {"method": "cast", "source": "s", "target": target, "seed": 0, "chance": 0.25, "choice": choice}
        return {"zero-shot": zero, "cast": cast, "cast, if it helps": cast}

    known, unknown = cell("known", 0.3, [1, 1, 1, 0]), cell("unknown", 0.2, [0, 0, 0, 0])
    text = "\n".join(report.where_the_model_knows([known, unknown]))
    assert "(known; 1 pairs)" in text
    assert "| cast − zero-shot | +0.250" in text
    assert "selected by the queries that are scored here" in text
    assert "on no target" in report.where_the_model_knows([unknown])[0]


def test_decoding_held_to_options_answers_what_forced_choice_counts(report):

    def row(exact, choice):
        return {"source": "s", "target": "t", "seed": 0, "exact": exact, "choice": choice}

    options = {"zero-shot": row([0, 0, 0, 0], [1, 1, 1, 0]), "cast": row([1, 0, 1, 0], [1, 1, 1, 1])}
    free = {"zero-shot": row([0, 0, 0, 0], [None] * 4), "cast": row([1, 1, 1, 1], [None] * 4)}
    lines = report.held_to_options([options, free])
    table = {line.split(" | ")[0]: line.split(" | ")[1:] for line in lines if line.startswith("| ")}
    assert table["| zero-shot"][:3] == ["1", "0.750", "0.500"], "over pairs with options alone"
    assert table["| zero-shot"][3].startswith("-0.250 (")
    assert table["| cast"][:3] == ["1", "1.000", "0.500"]
    assert "| label prior" not in table
    lines = report.held_to_options([options | {"label prior": row([0, 0, 0, 0], [1, 0, 0, 0])}, options])
    assert next(line for line in lines if line.startswith("| label prior | 1 | 0.250 | 0.500 |"))
    assert lines[-1].startswith("The vector adds +0.750 (")
    assert "No target has options" in report.held_to_options([free])[0]


def test_the_refusal_rule_and_paired_intervals(of):

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
    good, bad = of.completed(rows)
    assert good["cast, if it helps"]["exact"] == [1, 1, 1, 1]
    assert bad["cast, if it helps"]["exact"] == [0, 0, 1, 1]
    both = of.paired([good, bad], "cast", "zero-shot", "exact")
    assert (both.mean, both.n) == (0.0, 2)
    assert both.low < 0 < both.high
    only = of.paired([good], "cast", "zero-shot", "exact")
    rng = np.random.default_rng(1)
    means = rng.choice([1, 1, 0, 0], size=(20_000, 4)).mean(axis=1)
    assert only.low == pytest.approx(np.quantile(means, 0.025), abs=0.01)
    assert np.isnan(of.paired([good], "cast", "zero-shot", "choice").mean)


def test_intervals_do_not_shrink_with_repeated_sources(of):
    """Ten sources that act alike on two targets tell no more than one: the targets differ."""

    def cell(source, target, exact):
        row = {"source": source, "target": target, "seed": 0, "exact": exact}
        return {"cast": row, "zero-shot": row | {"exact": [0] * 4}}

    def width(sources):
        cells = [cell(s, t, e) for s in map(str, range(sources)) for t, e in (("x", [1] * 4), ("y", [0] * 4))]
        found = of.paired(cells, "cast", "zero-shot", "exact")
        assert found.mean == 0.5
        return found.high - found.low

    assert width(10) == pytest.approx(width(1), abs=0.01) == pytest.approx(1.0)


def test_a_report_is_of_the_settings_and_seeds_of_its_file(scripts, monkeypatch, tmp_path):
    """Whatever settings the command line names; of a file without one there is nothing to say of it."""
    (cast_transfer,) = scripts("cast_transfer")
    rows, path = seeds_of("one", "two", {0: [1, 1], 1: [0, 1]}), tmp_path / "out.json"
    path.write_text(json.dumps({"base_model": "tiny", "pool": 30, "rows": rows}))
    given = ["--sources", "one", "--targets", "two", "--pool", "99", "--site", "heads", "--report", "--json", str(path)]
    for more, told in (([], "(seeds [0, 1])"), (["--seeds", "1"], "(seeds [1])")):
        monkeypatch.setattr(sys, "argv", ["cast_transfer.py", *given, *more])
        cast_transfer.main()
        text = (tmp_path / "out.md").read_text()
        assert f"{told}; base_model tiny, pool 30.\n" in text
