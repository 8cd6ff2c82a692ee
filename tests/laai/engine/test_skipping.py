"""Layers that are skipped: what they gave before is handed on, and the model is as it was afterwards."""

from __future__ import annotations

import pytest
import torch

from laai.engine.skipping import LayerOutput, recording, skipping, unchanged_layers
from laai.models.decoder import find_decoder
from tests.tiny_models import ARCHITECTURES, LAYERS, recorded, shared, tokens


def run(model):
    with torch.no_grad():
        return model(input_ids=tokens(2, 5), use_cache=False).logits


@pytest.mark.parametrize("below", range(1, LAYERS + 1))
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_without_the_lower_layers(name, below):
    model = shared(name)
    layers = [layer.module for layer in find_decoder(model).layers[:below]]
    with recording([layers[-1]]) as seen:
        expected = run(model)
    with skipping(layers, seen[layers[-1]]), recorded(model, name) as activations:
        torch.testing.assert_close(run(model), expected, rtol=0, atol=1e-5)
    assert {layer for site, layer in activations if site == "heads"} == set(range(below, LAYERS))
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(run(model), expected)


def test_what_is_recorded_is_what_a_layer_returns_before_its_hooks():
    model = shared("llama")
    layer = find_decoder(model).layers[1].module
    with recorded(model, "llama") as plain:
        run(model)
    handle = layer.register_forward_hook(lambda _, __, out: out + 100)
    with recording([layer]) as seen:
        run(model)
    handle.remove()
    assert torch.equal(seen[layer].hidden, plain["residual", 1])
    assert not seen[layer].hidden.requires_grad


def test_a_forward_of_the_instance_is_put_back():
    """device_map and other wrappers replace `forward` on instances."""
    model = shared("llama")
    layer = find_decoder(model).layers[0].module
    calls, own = [], layer.forward
    layer.forward = lambda *args, **kwargs: calls.append(1) or own(*args, **kwargs)
    mine = layer.forward
    try:
        with recording([layer]) as seen:
            run(model)
        with pytest.raises(KeyError), skipping([layer], seen[layer]):
            raise KeyError
        assert calls == [1]
        assert vars(layer)["forward"] is mine
    finally:
        del layer.forward


def test_repeated_output():
    output = LayerOutput(torch.arange(6.0).view(2, 1, 3), lambda h: (h, None)).repeated(2)
    assert output.hidden[:, 0, 0].tolist() == [0, 0, 3, 3]
    assert output.wrap(output.hidden)[1] is None


@pytest.mark.parametrize(
    ("keys", "below"),
    [
        ([("residual", 0)], 1),
        ([("residual", 2)], 3),
        ([("heads", 0)], 0),
        ([("heads", 2)], 2),
        ([("residual", 1), ("heads", 2)], 2),
        ([("residual", 2), ("heads", 1)], 1),
    ],
)
def test_which_layers_no_vector_changes(keys, below):
    decoder = find_decoder(shared("llama"))
    assert unchanged_layers(decoder, keys) == [layer.module for layer in decoder.layers[:below]]
