"""Where a decoder keeps its layers and its attention heads, for any architecture of `AutoModelForCausalLM`.

Nothing is looked up by model name. Layers are the module list under the decoder that is as long as the configuration
says; the output projection of attention is found by its place and checked by its widths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from laai.errors import UserError
from laai.vocabulary import Site

# Last name of the attention output projection in all decoders of transformers 5 (tests/laai/models/test_layers.py).
_PROJECTION_NAMES = ("o_proj", "out_proj", "dense", "c_proj", "wo", "Wo", "o", "proj", "attn_out", "attention_out")
_NOT_SELF_ATTENTION = ("cross", "encoder_attn", "encdec", "linear_attn", "mlp", "ffn", "mamba", "ssm", "intermediate")


@dataclass(frozen=True)
class Heads:
    """The concatenated head outputs of one layer: the input of its attention output projection."""

    projection: nn.Module
    name: str
    width: int
    count: int


@dataclass(frozen=True)
class Layer:
    """One decoder layer. `heads` is None where the layer has no softmax attention (state space, convolution)."""

    index: int
    module: nn.Module
    heads: Heads | None


@dataclass(frozen=True)
class Decoder:
    """A causal LM seen as a stack of layers. `module` is what receives `attention_mask` and the cache."""

    module: nn.Module
    layers: tuple[Layer, ...]
    hidden_size: int

    def width(self, site: Site, index: int) -> int:
        """Width of the activation at `site` of layer `index`; raises UserError where there is none."""
        layer = self.layer(index)
        if site == "residual":
            return self.hidden_size
        if layer.heads is None:
            have = [layer.index for layer in self.layers if layer.heads is not None]
            raise UserError(f"layer {index} has no attention heads to steer; layers with heads: {have or 'none'}")
        return layer.heads.width

    def layer(self, index: int) -> Layer:
        """Layer `index`, counted from 0; raises UserError outside the model."""
        if not 0 <= index < len(self.layers):
            raise UserError(f"layer {index} does not exist: this model has layers 0 to {len(self.layers) - 1}")
        return self.layers[index]

    def steerable(self, site: Site) -> list[int]:
        """Indices of the layers that have this site."""
        return [layer.index for layer in self.layers if site == "residual" or layer.heads is not None]


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if callable(get_base_model) else model


def text_config(model: nn.Module) -> Any:
    """The configuration of a model's language part, PEFT-wrapped or not."""
    whole: Any = unwrap(model).config
    return whole.get_text_config(decoder=True)


def find_decoder(model: nn.Module, layers_path: str | None = None) -> Decoder:
    """Find layers and heads of a causal LM.

    Args:
        model: a transformers causal LM, PEFT-wrapped or not.
        layers_path: dotted path of the layer list from the transformers model, for a model that is not understood.

    Raises:
        UserError: the layers cannot be told apart from other module lists; the message lists the candidates.
    """
    model = unwrap(model)
    config = text_config(model)
    module = _decoder_module(model)
    depths = {getattr(config, key, None) for key in ("num_hidden_layers", "decoder_layers")} - {None}
    found: nn.Module | None
    if layers_path is not None:
        try:
            found = model.get_submodule(layers_path)
        except AttributeError:
            raise UserError(f"layers_path {layers_path!r} does not exist in {type(model).__name__}") from None
    else:
        found = _layer_list(module, depths) or _layer_list(model, depths)
    if not isinstance(found, nn.ModuleList) or len(found) == 0:
        lists = [f"{name} ({len(m)})" for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
        raise UserError(
            f"no layer list of length {sorted(map(str, depths))} in {type(model).__name__}; "
            f"name one by layers_path. Module lists: {', '.join(lists) or 'none'}"
        )
    hidden_size = int(config.hidden_size)
    layers = tuple(
        Layer(index, layer, _find_heads(layer, hidden_size, _per_layer(config, "num_attention_heads", index)))
        for index, layer in enumerate(found)
    )
    return Decoder(module, layers, hidden_size)


def _decoder_module(model: nn.Module) -> nn.Module:
    """What `get_decoder` names, unless that is an output head or nothing at all."""
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    if isinstance(decoder, nn.Module) and any(isinstance(m, nn.ModuleList) for m in decoder.modules()):
        return decoder
    base = getattr(model, "base_model", None)
    return base if isinstance(base, nn.Module) else model


def _layer_list(root: nn.Module, depths: set[object]) -> nn.ModuleList | None:
    """The shallowest module list of one of the wanted lengths; None if there is none or several at that depth."""
    level: list[nn.Module] = [root]
    while level:
        children = [child for module in level for child in module.children()]
        found = [m for m in children if isinstance(m, nn.ModuleList) and len(m) in depths]
        if found:
            return found[0] if len(found) == 1 else None
        level = [child for child in children if not isinstance(child, nn.ModuleList)]
    return None


def _per_layer(config: object, key: str, index: int) -> int | None:
    """A configuration value that some architectures (OpenELM, dots.3) state per layer."""
    per_layer = getattr(config, "per_layer_config", None)
    value = getattr(per_layer[index] if per_layer and index < len(per_layer) else config, key, None)
    if isinstance(value, list | tuple):
        value = value[index] if index < len(value) else None
    return value if isinstance(value, int) else None


def _find_heads(layer: nn.Module, hidden_size: int, num_heads: int | None) -> Heads | None:
    """The projection from concatenated heads to the hidden size; None if there is none or it cannot be told."""
    if not num_heads:
        return None
    found = [
        Heads(module, name, width, num_heads)
        for name, module, width, out in _projections(layer)
        if out == hidden_size and width % num_heads == 0
    ]
    return found[0] if len(found) == 1 else None


def _projections(layer: nn.Module) -> Iterator[tuple[str, nn.Module, int, int]]:
    """Candidates inside self-attention as (name, module, input width, output width)."""
    for name, module in layer.named_modules():
        *parents, last = name.split(".")
        path = ".".join(parents).lower()
        if last not in _PROJECTION_NAMES or not ("att" in path or "mixer" in path):
            continue
        if any(word in path for word in _NOT_SELF_ATTENTION) or not _is_softmax_attention(layer, parents):
            continue
        if hasattr(module, "in_features"):
            yield name, module, int(module.in_features), int(module.out_features)
        elif hasattr(module, "nf") and hasattr(module, "nx"):  # transformers' Conv1D, as in GPT-2
            yield name, module, int(module.nx), int(module.nf)


def _is_softmax_attention(layer: nn.Module, parents: list[str]) -> bool:
    """A `mixer` may be attention or a state space: tell by the class."""
    classes = [type(layer.get_submodule(".".join(parents[: i + 1]))).__name__ for i in range(len(parents))]
    return any("Attention" in name or "Attn" in name for name in classes)
