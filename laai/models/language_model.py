"""`LanguageModel`: a frozen causal language model with its tokenizer, and where it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from laai.errors import UserError
from laai.models.decoder import unwrap
from laai.models.identity import config_hash
from laai.models.quantised import keep_differentiable


@dataclass(frozen=True)
class LanguageModel:
    """A frozen causal language model with its tokenizer.

    Construction puts `llm` into eval mode, turns off the gradient of all its parameters, and makes the tokenizer pad on
    the left, with the end-of-sequence token (else the unknown token) where it has no padding token.

    Attributes:
        llm: The decoder, as transformers loads it.
        tokenizer: Its tokenizer; the chat template, if any, is kept.
        name: What the user asked for: ``default``, a hub id, a folder or a file.
        revision: The commit on the hub, or the sha256 of a GGUF file; None where neither is known.

    Raises:
        UserError: The tokenizer has no token to pad with.
    """

    llm: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    name: str = ""
    revision: str | None = None

    def __post_init__(self) -> None:
        """Freeze the model and prepare the tokenizer."""
        self.llm.train(False)
        self.llm.requires_grad_(False)
        keep_differentiable(self.llm)
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.unk_token
        if self.tokenizer.pad_token is None:
            found = f"none in {self.name!r}: set tokenizer.pad_token"
            raise UserError(f"expected a tokenizer with a padding, end or unknown token, found {found}")
        generation = getattr(self.llm, "generation_config", None)
        if generation is not None and generation.pad_token_id is None:
            generation.pad_token_id = self.tokenizer.pad_token_id  # else generate warns at every call

    @property
    def config_hash(self) -> str:
        """16 hex digits that stand for the architecture; see `config_hash`."""
        return config_hash(self.llm.config)

    @property
    def identity(self) -> dict[str, str | None]:
        """What a saved intervention records of the model that it was made on."""
        return {"base_model": self.name, "revision": self.revision, "config_hash": self.config_hash}


def move(llm: nn.Module, device: torch.device) -> None:
    """Move a model, unless its parts have to stay where they are."""
    if not is_spread(llm):
        nn.Module.to(llm, device)


def hold(owner: nn.Module, llm: nn.Module) -> None:
    """Make a model the attribute `llm` of a module; one that is spread is no submodule, so that nothing moves it."""
    if is_spread(llm):
        owner.__dict__["llm"] = llm
    else:
        owner.llm = llm


def is_spread(llm: nn.Module) -> bool:
    """Whether a device map has put parts of the model on different devices, where they have to stay."""
    return len(set((getattr(llm, "hf_device_map", None) or {}).values())) > 1


def transformer(model: nn.Module | LanguageModel) -> nn.Module:
    """The module to hook: the model itself, or the one inside a `LanguageModel`."""
    return model if isinstance(model, nn.Module) else model.llm


def model_identity(model: nn.Module | LanguageModel) -> dict[str, Any]:
    """`base_model`, `revision` and `config_hash` of a model, as they are written into files."""
    from laai.models.identity import config_hash

    if not isinstance(model, nn.Module):
        return dict(model.identity)
    config: Any = unwrap(model).config
    revision = getattr(config, "_commit_hash", None)
    return {"base_model": config.name_or_path, "revision": revision, "config_hash": config_hash(config)}
