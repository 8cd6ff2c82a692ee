"""Every causal LM of transformers finds its layers and heads, or is a known exception."""

import functools
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from laai.errors import UserError
from laai.models.decoder import find_decoder, unwrap
from laai.steering.hooks import Attachment
from laai.vocabulary import SITES
from tests.tiny_models import ARCHITECTURES, LAYERS, build, shared, site_module

NO_LAYERS = {
    "blt": "three stacks of other lengths: bytes, patches and bytes again",
    "hrm_text": "two stacks that run in turns",
    "longcat_flash": "two attention blocks in each layer, so half as many layers as the configuration says",
    "xlm": "attention, norms and feed-forward in lists of their own",
}
NO_HEADS = {
    "deepseek_v4": "grouped output projection",
    "jetmoe": "attention is a mixture of experts",
    "moshi": "projections in a wrapper of its own",
    "xlstm": "no softmax attention",
    "rwkv": "no softmax attention",
    "xlnet": "output projection is a bare parameter",
}
# No softmax attention in some or all of their layers, but state space, linear attention or convolution.
HYBRID = {
    "bamba", "falcon_mamba", "granitemoehybrid", "jamba", "lfm3", "mamba", "mamba2", "nemotron_h",
    "olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "qwen4_exp",
    "qwen4_exp_text", "recurrent_gemma", "zamba2",
}  # fmt: skip
OTHER_LAYOUT = {
    "cpmant": "its own prompt tokens are put before the input inside the decoder",
    "deepseek_v4": "several residual streams: layers return four dimensions",
    "qwen4_exp": "several residual streams side by side in one wider activation",
    "qwen4_exp_text": "several residual streams side by side in one wider activation",
    "hy_v4": "several residual streams: layers return four dimensions",
}


@functools.cache
def on_meta(kind):
    """A model of 3 layers without memory, in bf16; None where the default configuration cannot be built."""
    try:
        config = CONFIG_MAPPING[kind]()
        text = config.get_text_config(decoder=True)
        for owner in (config, text):
            for key in ("num_hidden_layers", "decoder_layers", "num_blocks"):
                if hasattr(owner, key):
                    setattr(owner, key, LAYERS)
        if len(getattr(text, "layer_types", None) or ()) > LAYERS:
            text.layer_types = text.layer_types[:LAYERS]
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    except Exception:  # whatever a default configuration lacks
        return None


def built():
    return [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if on_meta(kind) is not None]


def test_the_census_is_a_census():
    assert len(built()) > 160
    assert set(built()) >= NO_LAYERS.keys() | NO_HEADS.keys() | OTHER_LAYOUT.keys() | HYBRID


@pytest.mark.parametrize("kind", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_census(kind):
    model = on_meta(kind)
    if model is None:
        pytest.skip("cannot be built from its default configuration with 3 layers")
    if kind in NO_LAYERS:
        with pytest.raises(UserError, match="layers_path"):
            find_decoder(model)
        return
    decoder = find_decoder(model)
    assert len(decoder.layers) == LAYERS
    assert [layer.index for layer in decoder.layers] == list(range(LAYERS))
    with_heads = len(decoder.steerable("heads"))
    if kind in NO_HEADS:
        assert with_heads == 0
    elif kind in HYBRID:
        assert with_heads < LAYERS
    else:
        assert with_heads == LAYERS
    for layer in decoder.layers:
        if layer.heads is not None:
            assert layer.heads.width % layer.heads.count == 0
            assert layer.module.get_submodule(layer.heads.name) is layer.heads.projection


def test_census_of_hooks():
    """Where the forward runs without memory, each hook sees (batch, tokens, width) at each of its layers."""
    ran, ids = [], torch.ones(2, 5, dtype=torch.long, device="meta")
    mask = torch.zeros(2, 1, 5, 5, device="meta", dtype=torch.bfloat16)  # given whole, so that no mask is worked out
    for kind in built():
        if kind in NO_LAYERS:
            continue
        model, shapes = on_meta(kind), {}
        decoder = find_decoder(model)
        widths = {(site, layer): decoder.width(site, layer) for site in SITES for layer in decoder.steerable(site)}

        def look(key, into, hidden):
            into[key] = tuple(hidden.shape)
            return hidden

        edits = {key: lambda hidden, where, key=key, into=shapes: look(key, into, hidden) for key in widths}
        attachment = Attachment(model, edits, "all")
        try:
            with torch.no_grad():
                model(input_ids=ids, attention_mask=mask, use_cache=False)
        except UserError:
            assert kind in OTHER_LAYOUT
            continue
        except (RuntimeError, ValueError, TypeError):
            continue  # takes no such mask, or reads values, which the meta device has not
        finally:
            attachment.detach()
        if kind not in OTHER_LAYOUT:
            assert shapes == {key: (2, 5, width) for key, width in widths.items()}, kind
        ran.append(kind)
    assert len(ran) > 140


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_finds_the_modules_that_are_written_down_by_hand(name):
    model = shared(name)
    decoder = find_decoder(model)
    for layer in range(LAYERS):
        assert decoder.layer(layer).module is site_module(model, name, "residual", layer)
        heads = decoder.layer(layer).heads
        assert heads.projection is site_module(model, name, "heads", layer)
        assert heads.count == 4
        assert decoder.width("heads", layer) == heads.width == (48 if name.startswith("gemma") else 32)
        assert decoder.width("residual", layer) == 32


def test_looks_inside_peft():
    model = build("llama")
    plain = find_decoder(model)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["o_proj", "down_proj"]))
    assert unwrap(wrapped) is model
    found = find_decoder(wrapped)
    assert [layer.module for layer in found.layers] == [layer.module for layer in plain.layers]
    assert found.layer(1).heads.projection is model.model.layers[1].self_attn.o_proj
    assert found.width("heads", 1) == 32


def test_layers_path():
    model = build("llama")
    assert len(find_decoder(model, "model.layers").layers) == LAYERS
    model.config.num_hidden_layers = 5
    with pytest.raises(UserError, match=r"model\.layers \(3\)"):
        find_decoder(model)
    assert len(find_decoder(model, "model.layers").layers) == LAYERS
    with pytest.raises(UserError, match=r"'model\.blocks' does not exist"):
        find_decoder(model, "model.blocks")
    with pytest.raises(UserError, match="layers_path"):
        find_decoder(model, "model.norm")


def test_two_lists_of_the_right_length_are_not_guessed_between():
    model = build("llama")
    model.model.others = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(LAYERS))
    with pytest.raises(UserError, match=r"model\.others \(3\)"):
        find_decoder(model)


@pytest.mark.parametrize("index", [-1, LAYERS])
def test_layers_outside_the_model_are_named(index):
    with pytest.raises(UserError, match="layers 0 to 2"):
        find_decoder(shared("llama")).layer(index)


def test_layers_without_heads_are_named():
    decoder = find_decoder(on_meta("mamba"))
    assert decoder.steerable("residual") == [0, 1, 2]
    with pytest.raises(UserError, match="no attention heads"):
        decoder.width("heads", 0)
