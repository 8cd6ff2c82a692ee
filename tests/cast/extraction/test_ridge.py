"""Input-dependent vectors: the regression by hand, what is added to which token, files."""

from __future__ import annotations

import pytest
import torch

from cast.extraction.ridge import fit_ridge, ridge
from cast.extraction.samples import draw
from cast.extraction.vectors import contrast_of
from laai.errors import UserError
from laai.evaluation.arms import Method, compare
from laai.prompts.templates import Template
from laai.steering.intervention import Intervention
from laai.steering.ridge import RidgeMap


@pytest.fixture(scope="module")
def contrast(tiny, word_task):
    drawn = draw(word_task.examples, 12, 3, seed=0)
    template = Template(tiny.tokenizer, word_task)
    return contrast_of(tiny, template, *drawn, site="residual", keep=True, progress=False)


def test_the_regression_by_hand():
    generator = torch.Generator().manual_seed(0)
    states, effects = (torch.randn(15, width, generator=generator, dtype=torch.float64) for width in (4, 6))
    x, y = states - states.mean(0), effects - effects.mean(0)
    strength = 0.5 * float(x.square().sum(1).mean())
    by_hand = torch.linalg.solve(x.T @ x + strength * torch.eye(4, dtype=torch.float64), x.T @ y)
    found = ridge(states.float(), effects.float(), [0.5])
    torch.testing.assert_close((found.left @ found.right).double(), by_hand, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.mean.double(), effects.mean(0), rtol=1e-5, atol=1e-6)
    query = torch.randn(3, 2, 4, generator=generator)
    expected = effects.mean(0) + (query.double() - states.mean(0)) @ by_hand
    torch.testing.assert_close(found(query).double(), expected, rtol=1e-3, atol=1e-4)


def test_explained_is_what_leaving_out_one_by_one_gives():
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(20, 5, generator=generator)
    effects = states @ torch.randn(5, 3, generator=generator) + 0.3 * torch.randn(20, 3, generator=generator)
    unit = float((states - states.mean(0)).square().sum(1).mean())
    error = total = 0.0
    for i in range(20):
        rest = torch.arange(20) != i
        x, y = states[rest] - states[rest].mean(0), effects[rest] - effects[rest].mean(0)
        weights = torch.linalg.solve(x.T @ x + 0.1 * unit * torch.eye(5), x.T @ y)
        predicted = effects[rest].mean(0) + (states[i] - states[rest].mean(0)) @ weights
        error += float((effects[i] - predicted).square().sum())
        total += float((effects[i] - effects[rest].mean(0)).square().sum())
    found = ridge(states, effects, [0.1])
    assert found.explained == pytest.approx(1 - error / total, abs=0.02)
    assert found.explained > 0.5
    noise = ridge(states, torch.randn(20, 3, generator=generator), [1e-6, 1e6])
    assert noise.explained == pytest.approx(0.0, abs=0.05), "the large penalty, which is the mean alone"


def test_only_steered_tokens_move_and_by_their_own_effect(tiny, contrast):
    whole = fit_ridge(contrast, tiny)
    assert whole.layers == [0, 1, 2]
    part = 0.5 * whole.select([1])
    ids = torch.tensor([tiny.tokenizer.encode("Name the colour.\n\nQ: amber\nA:")])
    states = []
    for maps in (None, part):
        outputs = []
        handle = tiny.llm.model.layers[1].register_forward_hook(lambda _, __, out, to=outputs: to.append(out))
        try:
            if maps is None:
                tiny.llm(ids)
            else:
                with maps.on(tiny):
                    tiny.llm(ids)
        finally:
            handle.remove()
        (out,) = outputs
        states.append((out[0] if isinstance(out, tuple) else out)[0].detach())
    before, after = states
    assert torch.equal(before[:-1], after[:-1])
    torch.testing.assert_close(after[-1] - before[-1], 0.5 * part.maps["residual", 1](before[-1]), rtol=1e-3, atol=1e-4)
    assert not any(m._forward_hooks for m in tiny.llm.modules())


def test_a_map_without_slope_is_the_mean_vector(tiny, word_task, contrast, words_data, quiet_trainer):
    flat = fit_ridge(contrast, tiny, penalties=[1e12]).select([1])
    vector = Intervention(contrast.means()).select(layers=[1])
    both = [Method("map", flat), Method("vector", vector)]
    ridge_scores, vector_scores = (e.scores for e in compare(quiet_trainer(), tiny, words_data(), both))
    assert ridge_scores.nll == pytest.approx(vector_scores.nll, rel=1e-4)
    assert ridge_scores.exact_match == vector_scores.exact_match


def test_files(tiny, contrast, tmp_path):
    maps = 0.7 * fit_ridge(contrast, tiny, positions="generated")
    read = RidgeMap.load(maps.save(tmp_path / "r.safetensors"), tiny)
    assert (read.scale, read.positions, read.layers) == (0.7, "generated", [0, 1, 2])
    for key, one in maps.maps.items():
        hidden = torch.randn(2, 32)
        assert torch.equal(read.maps[key](hidden), one(hidden))
        assert read.maps[key].explained == one.explained
    vector = Intervention.random(tiny, "residual", [0])
    with pytest.raises(UserError, match="no ridge map"):
        RidgeMap.load(vector.save(tmp_path / "v.safetensors"))
    with pytest.raises(UserError, match="no file"):
        RidgeMap.load(tmp_path / "none")
    (tmp_path / "r.safetensors").write_bytes(b"abc")
    with pytest.raises(UserError, match="damaged"):
        RidgeMap.load(tmp_path / "r.safetensors")


def test_another_model_is_refused(tiny, contrast, tmp_path, character_model):
    path = fit_ridge(contrast, tiny).save(tmp_path / "r.safetensors")
    with pytest.raises(UserError, match="configuration hashes"):
        RidgeMap.load(path, character_model("llama"))
    narrow = ridge(torch.randn(5, 8), torch.randn(5, 8))
    with pytest.raises(UserError, match="width 8"), RidgeMap({("residual", 0): narrow}).on(tiny):
        pass
