"""The analysis of CAST vectors: what it says of vectors that are known, and every part on the tiny model."""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
import pytest
import torch

SIZES = ["--samples", "4", "--shots", "2", "--queries", "4", "--development", "4", "--pool", "30", "--seeds", "0", "1"]
SIZES += ["--counts", "1", "4", "--budgets", "3", "--strategies", "random", "k_center"]
PAIRS = ["--pairs", "antonym:synonym", "word-sentiment:country-region"]


@pytest.fixture
def analysis(scripts):
    return scripts("cast_analysis", "analysis_report", "vector_geometry", "transfer_studies")


@pytest.fixture
def run(analysis, tiny_folder, tmp_path, monkeypatch):
    """A function that runs the analysis and returns what it kept."""

    def kept(*arguments):
        path = tmp_path / "analysis.json"
        named = ["--tasks", "antonym", "country-capital", "--base_model", str(tiny_folder), "--json", str(path)]
        monkeypatch.setattr(sys, "argv", ["cast_analysis.py", *SIZES, *PAIRS, *named, *arguments])
        analysis[0].main()
        return json.loads(path.read_text())["parts"]

    return kept


def test_every_part(analysis, run, tmp_path, monkeypatch, capsys):
    parts = analysis[0].PARTS
    found = run()
    assert [len(found[part]) for part in parts] == [1, 8, 8, 28, 2, 2, 1]
    for part in ("strategies", "samples", "variants"):
        assert all(len(row["exact"]) == len(row["zero"]) == 4 for row in found[part])
    (cost,) = found["cost"]
    tokens = {row["method"]: row["prompt_tokens"] for row in cost["rows"]}
    assert tokens["vector"] == tokens["0 shots"] < tokens["1 shots"] < tokens["20 shots"]
    sizes = [row["cache_bytes"] / row["prompt_tokens"] for row in cost["rows"]]
    assert max(sizes) - min(sizes) < 1, "a token's keys and values are as many bytes in every prompt"
    (table,) = [row for row in found["wording"] if row["source"] == "antonym"]
    assert np.array(table["exact"]).shape == (5, 5)
    assert np.allclose(np.diag(table["cosines"]), 1.0, atol=1e-5)
    assert np.array(found["profile"][0]["residual"]["probability"]).shape[1] == 5
    text = capsys.readouterr().out
    assert all(title in text for title in ("Cost of a query", "Wording", "Layers and scales", "at an equal budget"))
    assert (tmp_path / "analysis.md").read_text() in text
    for part in ("vectors", "samples", "profile"):
        assert (tmp_path / f"analysis_{part}.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(analysis[0].laai, "load_model", lambda *_: pytest.fail("all of this is done"))
    assert run() == found
    with pytest.raises(SystemExit):
        run("--queries", "5")


def test_every_variant_is_another_vector(analysis, tiny, monkeypatch):
    studies, seen = analysis[3], {}
    options = argparse.Namespace(samples=4, shots=2, queries=4, development=4, pool=30, data=None)
    options.pairs = ["antonym:synonym", "word-sentiment:country-region", "country-capital:country-language"]
    study = studies.Study(tiny, options)
    monkeypatch.setattr(study, "steered", lambda vector, *_, places: (vector, places))
    for variant in studies.VARIANTS:
        seen[variant] = study.variants("antonym", "synonym", 0, variant)
    vectors = {name: vector for name, (vector, _) in seen.items()}
    plain = vectors["difference"]
    others = [study.centre(source, "synonym", 0) for source in ("antonym", "word-sentiment", "country-capital")]
    for key, vector in plain.items():
        mean = torch.stack([other[key].detach() for other in others]).mean(0)
        middle, rest = vectors["mean of tasks"], vectors["centred"]
        torch.testing.assert_close(middle.scale * middle[key].detach(), mean)
        torch.testing.assert_close(rest[key].detach(), vector.detach() - mean)
        assert not torch.allclose(vectors["few-shot only"][key], vector)
    assert vectors["norm kept"].preserve_norm
    assert vectors["residual"].sites == ["residual"]
    assert seen["all layers"][1] == [(0, 1, 2)]


class Kept:
    """Activations of a task: (samples, width) at two layers."""

    def __init__(self, zero, diff):
        self.zero, self.diff = zero, diff

    def states(self):
        for layer in (0, 3):
            yield ("heads", layer), self.zero[layer], self.diff[layer]


def test_geometry_of_known_vectors(analysis):
    """Two tasks share a direction at layer 0 and have opposite ones, beside a common one, at layer 3."""
    generator = torch.Generator().manual_seed(0)
    shared, own = torch.zeros(64), torch.zeros(64)
    shared[0], own[1] = 1.0, 0.5
    tasks = {}
    for sign, name in ((1, "a"), (-1, "b")):
        noise = {layer: 0.01 * torch.randn(40, 64, generator=generator) for layer in (0, 3)}
        zero = {layer: torch.randn(40, 64, generator=generator) for layer in (0, 3)}
        tasks[name] = Kept(zero, {0: shared + noise[0], 3: shared + sign * own + noise[3]})
    found = analysis[2].compare_tasks(tasks, seed=0)
    layers = found["by_layer"]
    assert found["layers"] == [0, 3]
    assert layers["raw"] == pytest.approx([1.0, 0.75 / 1.25], abs=0.01)
    assert layers["centred"] == pytest.approx([-1.0, -1.0], abs=1e-4), "of two tasks, one is the other's negative"
    assert layers["same"] == pytest.approx([1.0, 1.0], abs=0.01)
    assert abs(layers["signs"][0]) <= 1.0
    assert layers["random"] == pytest.approx([0.0997] * 2, abs=1e-3)
    a, b = (np.array(points) for points in found["points"])
    assert abs(a.mean(0)[0] - b.mean(0)[0]) > 10 * a.std(0)[0], "the first component tells the tasks apart"
    assert np.array(found["similarity"]).shape == (2, 2)


def test_differences_are_over_pairs(analysis):
    report = analysis[1]
    rows = [
        {"source": s, "target": "t", "seed": seed, "budget": 5, "strategy": name, "exact": exact, "gain": sum(exact)}
        for s in ("a", "b")
        for seed in (0, 1)
        for name, exact in (("cast", [1, 1, 0, 0]), ("random", [1, 0, 0, 0]))
    ]
    text = "\n".join(report.strategies(rows))
    assert "| cast | 0.500 | +0.250 (+0.250 to +0.250) | +1.000 (+1.000 to +1.000) |" in text
    assert "2 pairs (a → t, b → t), seeds [0, 1]" in text
