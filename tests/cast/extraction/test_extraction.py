"""CAST vectors against means by hand: plain output hooks, one prompt at a time."""

from __future__ import annotations

import pytest
import torch

import cast
from cast.extraction.samples import draw
from cast.extraction.vectors import extract_from
from laai.errors import UserError
from laai.prompts.templates import Template
from tests.tiny_models import LAYERS, recorded

NAMES = ("llama", "mistral", "gemma2", "gpt2", "bloom", "opt")


def text_by_hand(task, query, shots=()):
    lines = [f"{s.input}\n> {s.output}\n\n" for s in shots]
    return "".join(lines) + f"{query}\n>"


@torch.no_grad()
def last_activations(model, text):
    ids = torch.tensor([model.tokenizer.encode(text)])
    with recorded(model.llm, model.name) as seen:
        model.llm(input_ids=ids, use_cache=False)
    return {key: value[0, -1].clone() for key, value in seen.items()}


def mean_of_differences(model, task, samples, demonstrations, site):
    differences = []
    for sample, shots in zip(samples, demonstrations, strict=True):
        few = last_activations(model, text_by_hand(task, sample.input, shots))
        zero = last_activations(model, text_by_hand(task, sample.input))
        differences.append({layer: few[site, layer] - zero[site, layer] for layer in range(LAYERS)})
    return {layer: torch.stack([d[layer] for d in differences]).mean(0) for layer in range(LAYERS)}


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("site", ["residual", "heads"])
@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_means_of_differences(character_model, letter_task, name, site, batch_size):
    model = character_model(name)
    samples, shots = draw(letter_task.examples, 7, 2, seed=1)
    by_hand = mean_of_differences(model, letter_task, samples, shots, site)
    vector = cast.extract(
        model, letter_task, samples=7, shots=2, site=site, seed=1, batch_size=batch_size, progress=False
    )
    assert vector.layers == list(range(LAYERS))
    assert (vector.sites, vector.scale) == ([site], 1.0)
    for layer in range(LAYERS):
        torch.testing.assert_close(vector[site, layer].detach(), by_hand[layer], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_shared_demonstrations_are_run_once(character_model, letter_task, name):
    model, runs = character_model(name), []
    samples, shots = draw(letter_task.examples, 7, 2, 3, shared=True)
    by_hand = mean_of_differences(model, letter_task, samples, shots, "residual")
    handle = model.llm.get_input_embeddings().register_forward_hook(lambda _, __, out: runs.append(out.shape[:2]))
    try:
        vector = cast.extract(
            model, letter_task, samples=7, shots=2, site="residual", shared_shots=True, seed=3, progress=False
        )
    finally:
        handle.remove()
    demonstrations = len(text_by_hand(letter_task, "", shots[0])) - len("\n>")
    assert [rows for rows, length in runs if length >= demonstrations] == [1]
    for layer in range(LAYERS):
        torch.testing.assert_close(vector["residual", layer].detach(), by_hand[layer], rtol=1e-3, atol=2e-4)


def test_own_examples_stand_behind_all_others(character_model, letter_task):
    model, few = character_model("llama"), letter_task.examples[:4]
    others = [[o for o in few if o is not e] for e in few]
    by_hand = mean_of_differences(model, letter_task, few, others, "heads")
    vector = cast.extract_own(model, Template(model.tokenizer, letter_task), few, progress=False)
    for layer in range(LAYERS):
        torch.testing.assert_close(vector["heads", layer].detach(), by_hand[layer], rtol=1e-3, atol=2e-4)
    with pytest.raises(UserError, match="at least 2"):
        cast.extract_own(model, Template(model.tokenizer, letter_task), few[:1], progress=False)


def test_seeds_reproduce_and_leave_the_model_alone(tiny, word_task, weights):
    before = weights(tiny.llm)
    options = {"samples": 6, "shots": 3, "progress": False}
    a, b, other = (cast.extract(tiny, word_task, seed=seed, **options) for seed in (5, 5, 6))
    for key, vector in a.items():
        assert torch.equal(vector, b[key])
        assert not torch.allclose(vector, other[key], atol=1e-4)
        assert vector.dtype == torch.float32
    after = tiny.llm.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.llm.modules())


def test_settings_travel_with_the_vector(tiny, word_task, tmp_path):
    vector = cast.extract(
        tiny, word_task, samples=100, shots=2, layers=[2, 0], positions="generated", style="chat", progress=False
    )
    assert vector.layers == [0, 2]
    assert vector.positions == "generated"
    read = type(vector).load(vector.save(tmp_path / "v.safetensors"), tiny)
    expected = {"source": "colours", "style": "chat", "samples": len(word_task.examples), "shots": 2, "seed": 0}
    assert expected.items() <= read.provenance.cast.items()


def test_a_sample_among_its_demonstrations_is_refused(tiny, word_task):
    template, (a, b, *_) = Template(tiny.tokenizer, word_task), word_task.examples
    with pytest.raises(UserError, match=a.input):
        extract_from(tiny, template, [a, b], [[b], [b, a]][::-1], progress=False)


def test_a_bf16_model_gives_fp32_vectors(tiny_folder, tiny, word_task):
    from laai.models.loading import load_model

    options = {"samples": 8, "shots": 3, "progress": False}
    exact = cast.extract(tiny, word_task, **options)
    rough = cast.extract(load_model(str(tiny_folder), dtype="bfloat16"), word_task, **options)
    for key, vector in rough.items():
        assert vector.dtype == torch.float32
        assert torch.cosine_similarity(vector, exact[key], dim=0) > 0.98


def test_names_stay_what_they_are_however_they_are_imported():
    """A module of the function's own name would hide it once imported."""
    import importlib

    import laai

    for package in (cast, laai):
        for name in package.__all__:
            importlib.import_module(package._HOMES[name])
            found = [getattr(package, name) for _ in range(2)]
            assert found[0] is found[1]
            assert callable(found[0]), f"{package.__name__}.{name}"
    with pytest.raises(AttributeError):
        _ = cast.nothing


def test_labels_are_those_of_demonstrations(tiny, word_task):
    """A sample's prompts end at its query."""
    for shared, labels in ((True, range(3, 4)), (False, range(4, 19))):
        found = cast.extract(tiny, word_task, samples=6, shots=3, shared_shots=shared, progress=False)
        assert found.provenance.cast["labels"] in labels
