"""What stands for a model's architecture in the files of vectors that were made on it."""

from __future__ import annotations

import hashlib
import json

from torch import nn
from transformers import PretrainedConfig

# What decides the shapes and the function of a decoder. Listed, rather than all fields minus some, because transformers
# adds and renames others from version to version. Fields that are absent, None, False or empty do not count.
ARCHITECTURE_FIELDS = (
    "model_type hidden_size num_hidden_layers vocab_size max_position_embeddings intermediate_size ffn_dim n_inner "
    "hidden_act activation_function hidden_activation rms_norm_eps layer_norm_eps layer_norm_epsilon norm_epsilon "
    "rope_parameters partial_rotary_factor sliding_window tie_word_embeddings attention_bias mlp_bias use_bias "
    "parallel_attn alibi use_parallel_residual new_decoder_architecture multi_query do_layer_norm_before "
    "word_embed_proj_dim scale_attn_weights qk_norm use_qk_norm query_pre_attn_scalar attn_logit_softcapping "
    "final_logit_softcapping embedding_multiplier residual_multiplier attention_multiplier logits_scaling logit_scale "
    "num_experts num_local_experts n_routed_experts n_shared_experts num_experts_per_tok moe_intermediate_size "
    "kv_lora_rank q_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim state_size conv_kernel expand"
)


def config_hash(config: PretrainedConfig) -> str:
    """16 hex digits (sha256) over the fields of the text model's config that decide its architecture.

    Dtype, names, token ids, caching, attention implementation, quantisation and generation settings do not count, so
    a model keeps its hash through saving, converting, quantising and upgrading transformers.
    """
    text = config.get_text_config()
    fields = {name: _canonical(getattr(text, name, None)) for name in ARCHITECTURE_FIELDS.split()}
    heads = getattr(text, "num_attention_heads", None)
    if isinstance(heads, int) and heads:  # written out, because whether a config states these two depends on its age
        fields["num_attention_heads"] = _canonical(heads)
        fields["num_key_value_heads"] = _canonical(getattr(text, "num_key_value_heads", None) or heads)
        fields["head_dim"] = _canonical(getattr(text, "head_dim", None) or text.hidden_size // heads)
    stated = json.dumps({name: value for name, value in fields.items() if value is not None}, sort_keys=True)
    return hashlib.sha256(stated.encode()).hexdigest()[:16]


def _canonical(value: object) -> object:
    """One spelling for values that files write in several: 1e-05 and its float32 neighbour, 10000 and 10000.0."""
    if isinstance(value, dict):
        items = {str(key): _canonical(item) for key, item in value.items()}
        return {key: item for key, item in items.items() if item is not None} or None
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value] or None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(int(value)) if float(value).is_integer() else f"{value:.6g}"
    return value or None


def fingerprint(module: nn.Module) -> str:
    """Changes with a module's weights: sha256 over the beginning of each, its shape and dtype."""
    digest = hashlib.sha256()
    for name, weight in module.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if not weight.is_meta:  # as what accelerate keeps elsewhere
            digest.update(weight.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()
