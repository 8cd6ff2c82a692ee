"""Input-dependent vectors: the regression by hand, what is added to which token, files."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import save_file

from cast.extraction.ridge import fit_ridge, ridge
from cast.extraction.samples import draw
from cast.extraction.vectors import contrast_of
from laai.cli.main import main
from laai.errors import UserError
from laai.evaluation.arms import Arm, evaluate_arms
from laai.prompts.templates import Template
from laai.steering.intervention import Intervention
from laai.steering.ridge import RidgeMap
from laai.steering.steering import load


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
    both = [Arm("map", flat), Arm("vector", vector)]
    ridge_scores, vector_scores = (e.scores for e in evaluate_arms(quiet_trainer(), tiny, words_data(), both))
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
    with pytest.raises(UserError, match="is no ridge map: its format is 'laai-intervention-1'"):
        RidgeMap.load(vector.save(tmp_path / "v.safetensors"))
    with pytest.raises(UserError, match="no ridge map file"):
        RidgeMap.load(tmp_path / "none")
    (tmp_path / "r.safetensors").write_bytes(b"abc")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        RidgeMap.load(tmp_path / "r.safetensors")


def test_the_file_knows_what_the_maps_were_made_from(tiny, contrast, word_task, tmp_path):
    whole = fit_ridge(contrast, tiny)
    made = load((0.5 * whole.select(layers=[1])).save(tmp_path / "r.safetensors"), tiny).provenance
    expected = {
        "source": "colours",
        "style": "plain",
        "kind": "ridge",
        "instruction": "Name the colour.",
        "samples": 12,
    }
    assert expected.items() <= made.cast.items()
    assert made.made_of == "0.5 * (residual 1 of (colours, cast))"
    assert made.config_hash == tiny.config_hash
    assert 12 <= len(word_task.examples) - len(made.unseen(word_task.examples)) < len(word_task.examples)


def test_files_of_before_and_damaged_ones(contrast, tiny, tmp_path):
    """Files of `cast-ridge-1` had two entries, and the provenance under `metadata`."""
    maps, path = fit_ridge(contrast, tiny), tmp_path / "r.safetensors"
    parts = ("mean", "centre", "left", "right")
    tensors = {f"{s}.{layer}.{part}": getattr(one, part) for (s, layer), one in maps.maps.items() for part in parts}
    facts = {"positions": "all", "scale": 2.0, "metadata": tiny.identity | {"x": 1}}
    facts["explained"] = {f"{s}.{layer}": one.explained for (s, layer), one in maps.maps.items()}
    save_file(tensors, path, {"format": "cast-ridge-1", "facts": json.dumps(facts)})
    for read in (load(path, tiny), RidgeMap.load(path)):
        assert (read.scale, read.positions, read.layers, read.provenance.notes) == (2.0, "all", [0, 1, 2], {"x": 1})
        assert read.provenance.base_model == tiny.name
        assert all(torch.equal(read.maps[key].right, one.right) for key, one in maps.maps.items())
    save_file(
        tensors | {"residual.1.left": torch.ones(31, 3)}, path, {"format": "cast-ridge-1", "facts": json.dumps(facts)}
    )
    with pytest.raises(UserError, match=r"damaged.*shapes at residual\.1"):
        load(path)
    for one in ({"format": "cast-ridge-1"}, {"facts": "{}"}, {"format": "cast-ridge-9", "facts": "{}"}):
        save_file(tensors, path, one)
        with pytest.raises(UserError) as caught:
            load(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


def test_a_ridge_map_on_the_command_line(contrast, tiny, word_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main replaces it
    (40.0 * fit_ridge(contrast, tiny)).save("r.safetensors")
    for scale in ("0", "1"):
        main(["generate", "--intervention", "r.safetensors", "--task", str(word_file), "--scale", scale, "amber"])
        plain, steered = (line.split(":", 1)[1].strip() for line in capsys.readouterr().out.splitlines())
        assert (plain == steered) == (scale == "0")
    command = ["evaluate", "--intervention", "r.safetensors", "--task", str(word_file), "--test", "30"]
    main([*command, "--json", "r.json"])
    assert "test queries are left out: the vectors were made from them" in capsys.readouterr().out
    zero, steered = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert steered["nll"] != pytest.approx(zero["nll"], rel=1e-3)


def test_another_model_is_refused(tiny, contrast, tmp_path, character_model):
    path = fit_ridge(contrast, tiny).save(tmp_path / "r.safetensors")
    with pytest.raises(UserError, match=rf"{path} was made for .*not for llama \(configuration"):
        RidgeMap.load(path, character_model("llama"))
    narrow = ridge(torch.randn(5, 8), torch.randn(5, 8))
    with pytest.raises(UserError, match="width 8"), RidgeMap({("residual", 0): narrow}).on(tiny):
        pass
