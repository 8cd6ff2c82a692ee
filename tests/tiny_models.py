"""Tiny random causal LMs, one per architecture, in which no weight is zero and no norm is one."""

from __future__ import annotations

import functools
from contextlib import contextmanager

import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM

from laai.models import LanguageModel

VOCABULARY, WIDTH, HEADS, LAYERS = 97, 32, 4, 3
WINDOW = 4  # of the sliding attention: shorter than the prompts of the tests

_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SIZES = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, **_COMMON}
_LLAMA = {**_SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
_GEMMA = {**_LLAMA, "head_dim": 12, "sliding_window": WINDOW}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

CONFIGS = {
    "llama": ("LlamaConfig", _LLAMA),
    "mistral": ("MistralConfig", {**_LLAMA, "sliding_window": WINDOW}),
    "qwen2": ("Qwen2Config", _LLAMA),
    "qwen3": ("Qwen3Config", {**_LLAMA, "head_dim": 8}),
    "gemma2": ("Gemma2Config", {**_GEMMA, "layer_types": _MIXED}),
    "gemma3_text": ("Gemma3TextConfig", {**_GEMMA, "layer_types": _MIXED}),
    "gpt2": (
        "GPT2Config",
        {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64, **_NO_DROPOUT, **_COMMON},
    ),
    "gpt_neox": ("GPTNeoXConfig", {**_SIZES, "intermediate_size": 48, "max_position_embeddings": 64}),
    "opt": (
        "OPTConfig",
        {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 16, "dropout": 0.0, "max_position_embeddings": 64},
    ),
    "falcon": ("FalconConfig", {**_SIZES, "multi_query": True, "alibi": False, "max_position_embeddings": 64}),
    "bloom": ("BloomConfig", {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS, **_COMMON}),
    "mpt": ("MptConfig", {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": 64, **_COMMON}),
    "phi": ("PhiConfig", {**_SIZES, "intermediate_size": 48, "max_position_embeddings": 64}),
    "olmo2": ("Olmo2Config", _LLAMA),
}
ARCHITECTURES = tuple(CONFIGS)

# All layers, or some, fold the tokens before into one state: nothing can be continued row by row.
STATEFUL = {
    "mamba": (
        "MambaConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "state_size": 4, "pad_token_id": 0},
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            **_LLAMA,
            "num_hidden_layers": 4,
            "head_dim": 8,
            **{"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8},
            **{"linear_value_head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1},
            **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
        },
    ),
}

# Where layers and output projections are, written down by hand: the tests must not ask the code under test.
_LAYERS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers", "opt": "model.decoder.layers"}
_LAYERS |= {"falcon": "transformer.h", "bloom": "transformer.h", "mpt": "transformer.blocks"}
_PROJECTIONS = {
    "gpt2": "attn.c_proj",
    "gpt_neox": "attention.dense",
    "opt": "self_attn.out_proj",
    "phi": "self_attn.dense",
}
_PROJECTIONS |= {"falcon": "self_attention.dense", "bloom": "self_attention.dense", "mpt": "attn.out_proj"}


def build(name, seed=0):
    """A new fp32 model in eval mode. Biases, norms and embeddings are random too, so that nothing holds by a zero."""
    kind, options = CONFIGS[name]
    model = AutoModelForCausalLM.from_config(getattr(transformers, kind)(**options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.3 * noise if parameter.dim() == 1 else 0.25 * noise)
    model.generation_config.eos_token_id = None  # random text never ends early
    return model.float().eval()


@functools.cache
def shared(name):
    """One model per architecture for tests that leave it as they found it."""
    return build(name)


def hooks_of(model):
    """All hooks on all modules; transformers leaves some of its own for `output_hidden_states`."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [hook for module in model.modules() for kind in kinds for hook in getattr(module, kind).values()]


def tokens(rows, length, seed=1):
    """Random ids (rows, length) without the special tokens 0 to 2."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def site_module(model, name, site, layer):
    """The module whose output (`residual`) or input (`heads`) is the site."""
    block = model.get_submodule(_LAYERS.get(name, "model.layers"))[layer]
    return block if site == "residual" else block.get_submodule(_PROJECTIONS.get(name, "self_attn.o_proj"))


def random_vectors(name, keys, size=1.0, seed=2):
    """Random vectors for (site, layer) `keys`."""
    heads = HEADS * CONFIGS[name][1].get("head_dim", WIDTH // HEADS)
    generator = torch.Generator().manual_seed(seed)
    return {key: size * torch.randn(WIDTH if key[0] == "residual" else heads, generator=generator) for key in keys}


def _first(output):
    return output[0] if isinstance(output, tuple | list) else output


@contextmanager
def steered_by_hand(model, name, vectors, columns):
    """The reference: plain hooks that add each vector at the given columns of each row, one list of columns a row."""
    handles = []

    def add(hidden, vector):
        place = torch.zeros(*hidden.shape[:2], 1, dtype=hidden.dtype)
        for row, chosen in enumerate(columns):
            place[row, list(chosen)] = 1
        return hidden + place * vector.to(hidden.dtype)

    def after(vector):
        def hook(module, args, output):
            hidden = add(_first(output), vector)
            return type(output)([hidden, *output[1:]]) if isinstance(output, tuple | list) else hidden

        return hook

    try:
        for (site, layer), vector in vectors.items():
            module = site_module(model, name, site, layer)
            if site == "residual":
                handles.append(module.register_forward_hook(after(vector)))
            else:
                handles.append(module.register_forward_pre_hook(lambda _, args, v=vector: (add(args[0], v), *args[1:])))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recorded(model, name):
    """(site, layer) -> activation of the last forward, everywhere, as the next module receives it."""
    seen, handles = {}, []
    for layer in range(LAYERS):
        for site in ("residual", "heads"):
            module, key = site_module(model, name, site, layer), (site, layer)
            if site == "residual":
                hook = module.register_forward_hook(lambda _, a, out, key=key: seen.update({key: _first(out).detach()}))
            else:
                hook = module.register_forward_pre_hook(lambda _, args, key=key: seen.update({key: args[0].detach()}))
            handles.append(hook)
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def pad(rows, side, value=0):
    """Rows of unequal length as (ids, mask), padded on one side."""
    width = max(len(row) for row in rows)
    fill = [torch.full((width - len(row),), value) for row in rows]
    ids = [torch.cat([f, r] if side == "left" else [r, f]) for r, f in zip(rows, fill, strict=True)]
    ones = [torch.ones_like(row) for row in rows]
    zeros = [torch.zeros_like(f) for f in fill]
    mask = [torch.cat([z, o] if side == "left" else [o, z]) for z, o in zip(zeros, ones, strict=True)]
    return torch.stack(ids), torch.stack(mask)


def positions_of(mask):
    """Position ids that follow the mask."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


@functools.cache
def _tokenizer():
    """One that pads with 0, as the tiny models do; tests of bare token ids need no more of it."""
    core = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<s>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")


def language_model(llm, name="tiny"):
    """The `LanguageModel` of a tiny model."""
    return LanguageModel(llm, _tokenizer(), name)


def model_of(name):
    """The `LanguageModel` of the shared model of an architecture."""
    return language_model(shared(name), name)


def make_cache_lie(llm):
    """Turn the keys of a llama's second layer around once they are cached; returns a function that undoes it."""
    attention = llm.model.layers[1].self_attn
    run = attention.forward

    def forward(*args, **kwargs):
        out = run(*args, **kwargs)
        cache = kwargs.get("past_key_values")
        if cache is not None and len(cache.layers) > 1:
            cache.layers[1].keys = cache.layers[1].keys * -1.0
        return out

    attention.forward = forward
    return lambda: setattr(attention, "forward", run)
