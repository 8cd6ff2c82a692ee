"""FSDP2: a language model too large for one device, its weights in shards on all of them, the vectors on each.

    python train.py --trainer.strategy fsdp2 --trainer.devices 8 --model.dtype bfloat16

One process reads the model into host memory and hands it out layer by layer, so that no other process ever holds more
than a layer and its own shards. The vectors are kilobytes: every process has them whole, their gradients are averaged,
and they are compared now and then, as ranks that drift apart would say nothing. A forward of a sharded model is joint
work, so all processes run the same forwards: each its share of a training batch, and all examples of an evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from laai.errors import UserError
from laai.models.decoder import find_decoder
from laai.models.language_model import LanguageModel
from laai.models.loading import load_model


def load_sharded(name: str, dtype: str, mesh: DeviceMesh, device: torch.device) -> LanguageModel:
    """Load a model into shards; all processes of the mesh call this.

    Args:
        name, dtype: as in `load_model`.
        mesh: the processes.
        device: this process's.

    Raises:
        UserError: as in `load_model`, on every process.
    """
    whole: LanguageModel | None = None
    told: list[Any] = [None]
    if distributed.get_rank() == 0:
        try:
            whole = load_model(name, dtype=dtype)
            llm = whole.llm
            tensors = [*llm.named_parameters(), *llm.named_buffers()]
            shapes = {key: (tensor.shape, tensor.dtype) for key, tensor in tensors}
            told = [(type(llm), llm.config, llm.generation_config, whole.tokenizer, whole.revision, shapes)]
        except UserError as error:
            told = [error]
    distributed.broadcast_object_list(told, src=0)
    if isinstance(told[0], UserError):
        raise told[0]
    kind, config, generation_config, tokenizer, revision, shapes = told[0]
    if whole is None:
        with torch.device("meta"):
            empty = kind(config)
        empty.generation_config = generation_config
        whole = LanguageModel(empty, tokenizer, name, revision)
    shard(whole.llm, mesh, device, shapes)
    return whole


def shard(llm: nn.Module, mesh: DeviceMesh, device: torch.device, shapes: Mapping[str, Any]) -> None:
    """Fill a model from the one of process 0 and shard it, layer by layer.

    Args:
        llm: whole on process 0, on the meta device elsewhere.
        mesh: the processes.
        device: this process's.
        shapes: name -> (shape, dtype) of all parameters and buffers of process 0's.
    """
    names = {module: name for name, module in llm.named_modules()}
    layers = {f"{names[layer.module]}.": layer.module for layer in find_decoder(llm).layers}
    for name, layer in layers.items():
        _fill(llm, [key for key in shapes if key.startswith(name)], device, shapes)
        fully_shard(layer, mesh=mesh)
    inside = tuple(layers)
    _fill(llm, [key for key in shapes if not key.startswith(inside)], device, shapes)
    fully_shard(llm, mesh=mesh)


@torch.no_grad()
def _fill(llm: nn.Module, keys: Sequence[str], device: torch.device, shapes: Mapping[str, Any]) -> None:
    """Give parameters and buffers the values of process 0's; those that are tied stay tied."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in llm.modules():
        for own, parameter in module._parameters.items():
            places.setdefault(id(parameter), []).append((module, own))
    for key in keys:
        path, _, own = key.rpartition(".")
        module, (shape, dtype) = llm.get_submodule(path), shapes[key]
        old: Tensor = getattr(module, own)
        new = old.detach().to(device) if not old.is_meta else torch.empty(shape, dtype=dtype, device=device)
        distributed.broadcast(new, src=0)
        if isinstance(old, nn.Parameter):
            filled = nn.Parameter(new, requires_grad=False)
            for owner, name in places[id(old)]:
                owner._parameters[name] = filled
        else:
            module._buffers[own] = new
