"""The analysis of CAST vectors: what it says of vectors that are known, and every part on the tiny model."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

from cast.transfers.choice import Placement
from laai.errors import UserError
from laai.steering.ridge import RidgeMap

SIZES = ["--samples", "4", "--shots", "2", "--queries", "4", "--development", "4", "--pool", "30", "--seeds", "0"]
SIZES += ["--counts", "2", "4", "--budgets", "3", "--strategies", "random", "k_center"]
SIZES += ["--variants", "difference", "centred", "ridge", "scale by layer"]
PAIRS = ["--pairs", "antonym:synonym", "word-sentiment:country-region"]


@pytest.fixture
def analysis(scripts):
    return scripts("cast_analysis", "analysis_report", "vector_geometry", "analysis_parts")


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
    monkeypatch.setattr(analysis[3], "WORDINGS", ("{}", "Task: {}", ""))
    found = run()
    assert [len(found[part]) for part in parts] == [1, 4, 4, 8, 2, 2, 1]
    for part in ("strategies", "samples", "variants"):
        assert all(len(row["exact"]) == len(row["zero"]) == 4 for row in found[part])
    (cost,) = found["cost"]
    tokens = {row["method"]: row["prompt_tokens"] for row in cost["rows"]}
    assert tokens["vector"] == tokens["0 shots"] < tokens["1 shots"] < tokens["20 shots"]
    sizes = [row["cache_bytes"] / row["prompt_tokens"] for row in cost["rows"]]
    assert max(sizes) - min(sizes) < 1, "a token's keys and values are as many bytes in every prompt"
    (table,) = [row for row in found["wording"] if row["source"] == "antonym"]
    assert np.array(table["exact"]).shape == (3, 3)
    assert np.allclose(np.diag(table["cosines"]), 1.0, atol=1e-5)
    assert np.array(found["profile"][0]["residual"]["probability"]).shape[1] == 5
    text = capsys.readouterr().out
    assert all(title in text for title in ("Cost of a query", "Wording", "Layers and scales", "at an equal budget"))
    assert (tmp_path / "analysis.md").read_text() in text
    for part in ("vectors", "samples", "profile"):
        assert (tmp_path / f"analysis_{part}.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("laai.compare.study.load_model", lambda *_: pytest.fail("all of this is done"))
    assert run() == found
    with pytest.raises(SystemExit):
        run("--queries", "5")


def test_every_variant_is_another_vector(analysis, tiny, monkeypatch):
    studies, tried = analysis[3], []
    options = argparse.Namespace(samples=4, shots=2, queries=4, development=4, pool=30, data=None)
    options.pairs = ["antonym:synonym", "word-sentiment:country-region", "country-capital:country-language"]
    study = studies.Parts(tiny, options)
    here = Placement((0, 1, 2), 1.0, True, 0.1, 0.0, 0.2, None, 4)
    monkeypatch.setattr(study, "choice", lambda *given: tried.append(given[-1]) or here)
    monkeypatch.setattr(study, "under", lambda steering, *_, choices: {"steering": steering})
    parted = dataclasses.replace(here, layers=(0, 2), factors=(1.0, 0.5))
    monkeypatch.setattr(studies, "scale_by_layer", lambda *given: parted if given[-1] is here else None)
    vectors, placed, sources = {}, {}, {}
    for variant in studies.VARIANTS:
        row = study.variants("antonym", "synonym", 0, variant)
        vectors[variant], placed[variant], sources[variant] = row["steering"], tried[-1], row.get("sources")
    named = ["antonym", "word-sentiment", "country-capital"]
    assert {v: s for v, s in sources.items() if s} == {"centred": named, "mean of tasks": named}
    plain = vectors["difference"]
    others = [study.centre(source, "synonym", 0) for source in named]
    for key, vector in plain.items():
        mean = torch.stack([other[key].detach() for other in others]).mean(0)
        middle, rest = vectors["mean of tasks"], vectors["centred"]
        torch.testing.assert_close(middle.scale * middle[key].detach(), mean)
        torch.testing.assert_close(rest[key].detach(), vector.detach() - mean)
        assert not torch.allclose(vectors["few-shot only"][key], vector)
    assert vectors["norm kept"].preserve_norm
    assert vectors["residual"].sites == ["residual"]
    assert placed["all layers"] == [(0, 1, 2)]
    assert len(tried) == len(studies.VARIANTS) - 3, "four variants share one search"
    assert vectors["generated"].positions == "generated"
    assert vectors["scale by layer"].layers == [0, 2]
    torch.testing.assert_close(vectors["scale by layer"]["heads", 2].detach(), 0.5 * plain["heads", 2].detach())
    assert isinstance(vectors["ridge"], RidgeMap)
    for key, one in vectors["ridge"].maps.items():
        torch.testing.assert_close(one.mean, plain[key].detach(), rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("labels", [2, 4, 20])
def test_samples_see_as_many_labels_as_they_say(analysis, tiny, monkeypatch, labels):
    """On a table that --pool does not thin: the vector and the prompt have the same examples, by seed."""
    options = argparse.Namespace(samples=4, shots=4, queries=4, development=4, pool=1000, data=None)
    study, seen = analysis[3].Parts(tiny, options), []
    monkeypatch.setattr(study, "vector", lambda pool, drawn: seen.append(drawn))
    monkeypatch.setattr(study, "steered", lambda *_: {})
    monkeypatch.setattr(study, "measured", lambda template, *_: seen.append(template.before.examples) or [])
    for seed, count in ((0, labels), (1, labels), (0, 30)):
        study.samples("country-capital", "singular-plural", seed, count)
    drawn, prompted, other, _, more, _ = seen
    assert len(drawn.samples) == len({e.input for e in drawn.samples}) == labels
    assert tuple(drawn.samples) == prompted == tuple(more.samples[:labels])
    assert {e for shown in drawn.demonstrations for e in shown} <= set(drawn.samples)
    assert {len(shown) for shown in drawn.demonstrations} == {min(4, labels - 1)}
    assert drawn.samples[:2] != other.samples[:2], "seeds begin with other examples"
    with pytest.raises(UserError, match="--counts 400: country-capital has 184"):
        study.samples("country-capital", "singular-plural", 0, 400)


@pytest.mark.parametrize("labelled", [True, False])
def test_labels_get_their_prior(analysis, tiny, tmp_path, labelled):
    """Labels that begin with tokens of their own, in a task's file with choices."""
    labels, path = ["red", "blue", "stone"], tmp_path / "labelled.jsonl"
    choices = {"choices": labels} if labelled else {}
    rows = [{"input": f"number {i}", "output": labels[i % 3]} | choices for i in range(20)]
    path.write_text("\n".join(map(json.dumps, rows)))
    options = argparse.Namespace(samples=4, shots=2, queries=4, development=6, pool=20, data=None)
    study = analysis[3].Parts(tiny, options)
    assert study.samples("antonym", str(path), 0, 4)["place"]["label_prior"] == labelled


def test_what_cannot_be_analysed(run, capsys):
    with pytest.raises(SystemExit) as refused:
        run("--counts", "1", "4")
    assert refused.value.code == 2
    assert "--counts must be 2 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--pairs", "antonym:synonym", "antonym")
    assert "SOURCE:TARGET, found 'antonym'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as refused:
        run("--parts", "samples", "--pairs", "no-such-task:synonym")
    assert refused.value.code == 2
    assert capsys.readouterr().err.startswith("error: "), "in one line, without a traceback"


def test_a_single_source_has_no_centre(analysis, run, capsys):
    options = ["--parts", "variants", "--pairs", PAIRS[1], "--variants", *analysis[3].VARIANTS]
    variants = [row["variant"] for row in run(*options)["variants"]]
    assert variants == [v for v in analysis[3].VARIANTS if v not in ("centred", "mean of tasks")]
    assert "left out for antonym:synonym" in capsys.readouterr().out
    options = argparse.Namespace(seeds=[0], pairs=["a:b", "b:c"], variants=analysis[3].VARIANTS)
    centred = [key["target"] for key in analysis[0].keys("variants", options) if key["variant"] == "centred"]
    assert centred == ["c"], "of b, only the source a is left"


def rows_of(sources, **more):
    """Rows of two seeds, right on two of four queries, zero-shot on one."""
    row = {"target": "t", "exact": [1, 1, 0, 0], "zero": [1, 0, 0, 0], "gain": 0.5, "place": {"label_prior": False}}
    return [row | {"source": s, "seed": seed} | more for s in sources for seed in (0, 1)]


@pytest.mark.parametrize(("sources", "shown"), [("abcd", "4 pairs"), ("abcde", "+0.250 to +0.250; 5 pairs")])
def test_intervals_are_over_five_pairs_or_more(analysis, sources, shown):
    """Seeds of a pair are no pairs of their own; a gain that was not measured is left out."""
    rows = rows_of(sources, budget=5, strategy="cast")
    rows += rows_of(sources, budget=5, strategy="random", exact=[1, 0, 0, 0], gain=None)
    text = "\n".join(analysis[1].strategies(rows))
    assert f"| cast | 0.500 | +0.250 ({shown}) | - |" in text
    assert f"{len(sources)} pairs (a → t, b → t," in text
    assert "seeds [0, 1]" in text
    assert "of each pair's mean over its seeds" in text


def test_rows_over_fewer_pairs_say_so(analysis):
    rows = rows_of("abcde", variant="difference") + rows_of("abc", variant="centred")
    rows += rows_of("abcde", variant="residual")[:-1]
    text = "\n".join(analysis[1].variants(rows))
    assert "| difference | 0.500 |  | +0.250 (+0.250 to +0.250; 5 pairs) |" in text
    assert "| centred | 0.500 (3 of 5 pairs) | +0.000 (3 pairs) | +0.250 (3 pairs) |" in text
    assert "| residual | 0.500 (9 of 10 pairs and seeds) |" in text
    rows = rows_of("abcde", variant="difference", choice=None)
    rows += rows_of("abcde", variant="ridge", choice=[1, 1, 1, 0], zero_choice=[1, 1, 0, 0])
    text = "\n".join(analysis[1].variants(rows))
    assert "0.750 | - | +0.250 (+0.250 to +0.250; 5 pairs) |" in text, "no options, no forced choice to compare with"


def test_variants_without_a_label_prior_are_compared_with_a_vector_without_one(analysis):
    """A pair without options has no prior to take off; one whose prior was not taken off is compared with nothing."""
    rows = rows_of("ac", variant="difference", place={"label_prior": True}) + rows_of("b", variant="difference")
    rows += rows_of("a", variant="no label prior", exact=[1, 0, 0, 0]) + rows_of("c", variant="norm kept")
    rows += rows_of("a", variant="ridge", exact=[1, 1, 1, 0]) + rows_of("b", variant="norm kept", exact=[1, 1, 1, 0])
    text = "\n".join(analysis[1].variants(rows))
    assert "| no label prior | 0.250 (1 of 3 pairs) | -0.250 (1 pair) |" in text
    assert "| ridge | 0.750 (1 of 3 pairs) | +0.500 (1 pair) |" in text
    assert "| norm kept | 0.625 (2 of 3 pairs) | +0.250 (1 pair) |" in text
    assert "a difference that has none either: `ridge`, `norm kept`" in text


def test_samples_of_other_numbers_of_labels_are_not_reported(analysis, tmp_path):
    def reported(rows):
        shown = analysis[0].shown([row | {"part": "samples"} for row in rows])
        return analysis[1].report(shown, {}, tmp_path / "x.json")

    old = rows_of("abcde", count=1, prompted=[1, 0, 0, 0])
    assert "source samples" not in reported(old)
    new = rows_of("abcde", labels=2, prompted=[0, 0, 0, 0]) + rows_of("ab", labels=5, prompted=[0, 0, 0, 0])
    text = reported(old + new)
    assert "| cross-task few-shot | 0.000 | 0.000 (2 of 5 pairs) |" in text
    assert "| CAST − cross-task few-shot | +0.500 (+0.500 to +0.500; 5 pairs) | +0.500 (2 pairs) |" in text
    assert all(line in text for line in ("| a → t | 0.50 / 0.00 | 0.50 / 0.00 |", "| e → t | 0.50 / 0.00 | - |"))


def test_the_null_of_centred_vectors(analysis):
    """Directions that are drawn independently and centred have the mean cosine that the report names."""
    generator = torch.Generator().manual_seed(0)
    noise = {name: {layer: torch.randn(6, 4096, generator=generator) for layer in (0, 3)} for name in "abcde"}
    found = analysis[2].compare_tasks({name: Kept(own, own) for name, own in noise.items()}, seed=0)
    assert found["by_layer"]["centred"] == pytest.approx([-1 / 4] * 2, abs=0.01)
    text = "\n".join(analysis[1].vectors([found | {"seed": 0}]))
    assert "forces, −1/4 | -0.25 | -0.25 | -0.25 |" in text
    assert "random\ndirections is 0" in text
