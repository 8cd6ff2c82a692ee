"""What is said to predict a transfer, on gains that are known."""

from __future__ import annotations

import json
import sys

import pytest


@pytest.fixture
def prediction(scripts):
    (module,) = scripts("cast_prediction")
    return module


def cell(source, target, exact, gain, helps=True, choice=None, prior=None):
    """Rows of one pair, of four queries each, zero-shot right on one of them."""
    rows = {"zero-shot": ([1, 0, 0, 0], 2.0, None), "few-shot": ([1, 1, 0, 0], 1.0, None)}
    place = {"helps": helps, "gain": gain, "layers": [0, 1], "scale": 1.0}
    rows |= {"cast": (exact, 2.0 - gain, place), "cross-task few-shot": ([0, 0, 0, 0], 2.0, None)}
    own = ("zero-shot", "few-shot", "label prior")
    rows |= {} if prior is None else {"label prior": (prior, 2.0, None)}
    return [
        {"source": None if m in own else source, "target": target, "seed": 0, "method": m, "exact": e, "nll": nll}
        | {"choice": [choice if m == "cast" and choice is not None else 1] * 4, "choice_of_place": place_of}
        | {"choice_accuracy_low": 1.0, "chance": 0.5}
        for m, (e, nll, place_of) in rows.items()
    ]


@pytest.fixture
def files(tmp_path):
    """Gains rise with the cosine and with the development gain; the similarity of states runs against them."""
    names = ["s", "a", "b", "c", "d", "e"]
    matrix = [[0.1 * abs(i - j) for j in range(6)] for i in range(6)]
    against = [[-value for value in row] for row in matrix]
    found = [
        cell(
            "s",
            name,
            [1] * min(i, 4) + [0] * (4 - min(i, 4)),
            0.1 * i,
            helps=i > 1,
            choice=0 if i == 1 else 1,
            prior=[0] * 4 if i < 3 else None,
        )
        for i, name in enumerate(names[1:], 1)
    ]
    (tmp_path / "matrix.json").write_text(json.dumps({"rows": [row for rows in found for row in rows]}))
    vectors = {"names": names, "matrix": matrix, "centred_matrix": [[0.0] * 6] * 6, "similarity": against}
    (tmp_path / "vectors.json").write_text(json.dumps({"parts": {"vectors": [vectors]}}))
    return tmp_path


def test_known_predictors(prediction, files, monkeypatch, capsys):
    arguments = ["--matrix", str(files / "matrix.json"), "--vectors", str(files / "vectors.json")]
    monkeypatch.setattr(sys, "argv", ["cast_prediction.py", *arguments, "--output", str(files / "out.md")])
    prediction.main()
    text = (files / "out.md").read_text()
    assert capsys.readouterr().out.rstrip() == text.rstrip()
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines()}
    assert lines["cosine of the vectors"].endswith("+1.00 (5 pairs) |"), "of log-likelihoods; one source: no interval"
    assert "-1.00" in lines["similarity of zero-shot states"]
    assert "nan" in lines["cosine, less the mean over tasks"], "all alike: there is no order"
    assert lines["refused"].startswith("| refused | 1 |")
    assert lines["refused"].endswith("1 of 1 |"), "the one that loses forced choice"
    assert lines["applied"].endswith("0 of 4 |")
    rise, options = (text.index(f"| cast − {other} |") for other in ("zero-shot", "cross-task few-shot"))
    assert text[rise:].startswith("| cast − zero-shot | +0.450 (")  # 0.25, 0.5, 0.75, 1, 1 against 0.25
    assert text[options:].startswith("| cast − cross-task few-shot | +0.700 (")
    assert lines["cast − label prior"].startswith("| cast − label prior | +0.375 ("), "0.25 and 0.5 against 0"
    assert "(2 pairs)" in lines["cast − label prior"].split(" | ")[1], "two pairs have one"
    saved = "What the rule saves over all pairs, `cast, if it helps` − `cast`: exact match +0.000 (5 pairs)"
    assert saved in text, "the refused one matches as often as zero-shot"
    assert "forced choice +0.200 (5 pairs)" in text, "1 of one pair in five"
    assert lines["a"].startswith("| a | 1 | +0.000 | +0.250 | 0.50 | 1.00 | -1.000 | +0.000"), "what loses is refused"
    assert lines["e"].startswith("| e | 1 | +0.750 | +1.000 | 0.50 | 1.00 | +0.000 | +0.000")
    assert lines["s"].startswith("| s | 5 | 5 | - | - | +0.450 | +0.700 | -0.200 | a -1.00 |")
    assert "the form of a task is not listed: 5." in text
    assert "(a, b, c, d, e; 5 pairs)" in text, "zero-shot is above chance on all of them"
    assert all(told in text for told in ("so does the gain on development examples", "is one draw at"))
    monkeypatch.setattr(sys, "argv", ["cast_prediction.py", "--matrix", str(files / "none.json")])
    with pytest.raises(SystemExit):
        prediction.main()


def test_two_matrices(prediction, files, monkeypatch, capsys):
    """Each has lines of its own, and settings; results of another model are refused."""
    found = json.loads((files / "matrix.json").read_text())
    (files / "other.json").write_text(json.dumps({"samples": 7} | found))
    paths = [
        "--matrix",
        str(files / "matrix.json"),
        str(files / "other.json"),
        "--vectors",
        str(files / "vectors.json"),
    ]
    monkeypatch.setattr(sys, "argv", ["cast_prediction.py", *paths, "--output", str(files / "out.md")])
    prediction.main()
    text = (files / "out.md").read_text()
    assert "- other: 5 pairs, seeds [0]; samples 7" in text
    lines = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()]
    assert lines.count("the same, other") == 3, "two cosines and the gain on development examples"
    assert "cosine, less the mean over tasks, other" in lines
    assert "cosine, less the mean over tasks" not in lines, "each takes off a mean of its own"
    (files / "other.json").write_text(json.dumps({"base_model": "larger"} | found))
    with pytest.raises(SystemExit):
        prediction.main()
    assert "expected results of one model, found matrix: None, other: larger" in capsys.readouterr().err


def test_what_was_not_measured_is_left_out(prediction, files):
    rows = json.loads((files / "matrix.json").read_text())["rows"]
    for row in rows:
        if row["target"] == "a" and row["method"] == "cast":
            row["nll"], row["choice_of_place"]["gain"] = None, None
    cells = prediction.pooled(prediction.completed(rows))
    assert [prediction.gain(c, "nll") is None for c in cells] == [True, False, False, False, False]
    text = prediction.report({"one": prediction.completed(rows)}, prediction.tables([]), {})
    (line,) = [line for line in text.splitlines() if line.startswith("| gain on development examples |")]
    assert line.count("(4 pairs)") == 3


def test_what_tells_sources_of_one_target_apart(prediction):
    """Between targets x and y rise together; within each they run against each other."""
    x, y = [1.0, 2.0, 3.0, 11.0, 12.0, 13.0, 50.0, None], [3.0, 2.0, 1.0, 13.0, 12.0, 11.0, 50.0, 1.0]
    cells = [{"cast": {"source": str(i), "target": t}} for i, t in enumerate("aaabbbcc")]
    a, b, kept = prediction.within_targets(x, y, cells)
    assert (a, b) == ([-1, 0, 1] * 2, [1, 0, -1] * 2)
    assert kept == cells[:6], "a target with one source tells nothing"
