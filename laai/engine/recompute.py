"""Activation checkpointing of a frozen model: layers are run again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer

from laai.errors import UserError
from laai.models import LanguageModel, unwrap


@contextmanager
def recomputing(model: LanguageModel) -> Iterator[None]:
    """Inside, forwards that need a gradient keep the input of each layer alone. The model stays in eval mode otherwise.

    transformers recomputes only layers in training mode, so the layers themselves, and nothing in them, are put into
    it: no dropout comes alive. Caches do not work inside.

    Raises:
        UserError: transformers cannot do this for the architecture.
    """
    whole: Any = unwrap(model.llm)
    if not getattr(whole, "supports_gradient_checkpointing", False):
        raise UserError(f"{type(whole).__name__} has no activation checkpointing in transformers: leave it off")
    layers = [module for module in whole.modules() if isinstance(module, GradientCheckpointingLayer)]
    hooked = bool(getattr(whole, "_require_grads_hooks", []))
    whole.activation_checkpointing_enable({"use_reentrant": False})
    if not hooked:  # a frozen model's embeddings need no gradient, but transformers may hook them to have one
        whole.disable_input_require_grads()
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        whole.activation_checkpointing_disable()
