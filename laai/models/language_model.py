"""`LanguageModel`: a frozen causal language model with its tokenizer, and where it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from laai.errors import UserError
from laai.models.decoder import Decoder, find_decoder, text_config, unwrap
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

    @cached_property
    def decoder(self) -> Decoder:
        """Its layers and attention heads.

        Raises:
            UserError: they cannot be told apart from other module lists.
        """
        return find_decoder(self.llm)

    @property
    def config(self) -> Any:
        """The configuration of its language part."""
        return text_config(self.llm)

    @property
    def context(self) -> int | None:
        """Tokens that it was made to read at most; None where its configuration does not say."""
        return getattr(self.config, "max_position_embeddings", None) or None

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of its embedding."""
        llm: Any = self.llm
        device: torch.device = llm.get_input_embeddings().weight.device
        return device

    @property
    def head(self) -> torch.Tensor:
        """(vocabulary, width): the weight of its output head."""
        llm: Any = self.llm
        weight: torch.Tensor = llm.get_output_embeddings().weight
        return weight

    @property
    def pad(self) -> int:
        """The id to pad with; which one does not matter, as pads are masked."""
        return int(self.tokenizer.pad_token_id)

    @property
    def spread(self) -> bool:
        """Whether a device map has put parts of it on different devices, where they have to stay."""
        return len(set((getattr(self.llm, "hf_device_map", None) or {}).values())) > 1

    @property
    def sharded(self) -> bool:
        """Whether its weights lie in shards on several devices: a forward is joint work of all processes then."""
        return any(isinstance(parameter, DTensor) for parameter in self.llm.parameters())

    def to(self, device: torch.device) -> None:
        """Move it, unless its parts have to stay where they are."""
        if not self.spread:
            nn.Module.to(self.llm, device)

    def held_by(self, owner: nn.Module) -> None:
        """Make `llm` an attribute of a module; a spread one is no submodule, so that nothing moves it."""
        if self.spread:
            owner.__dict__["llm"] = self.llm
        else:
            owner.llm = self.llm

    @property
    def config_hash(self) -> str:
        """16 hex digits that stand for the architecture."""
        return config_hash(self.llm.config)

    @property
    def identity(self) -> dict[str, str | None]:
        """What a saved intervention records of the model that it was made on."""
        return {"base_model": self.name, "revision": self.revision, "config_hash": self.config_hash}


def decoder_of(model: nn.Module | LanguageModel) -> Decoder:
    """Layers and heads of a `LanguageModel`, which knows them, or of a transformers model."""
    return find_decoder(model) if isinstance(model, nn.Module) else model.decoder


def transformer(model: nn.Module | LanguageModel) -> nn.Module:
    """The module to hook: the model itself, or the one inside a `LanguageModel`."""
    return model if isinstance(model, nn.Module) else model.llm


def model_identity(model: nn.Module | LanguageModel) -> dict[str, Any]:
    """`base_model`, `revision` and `config_hash` of a model, as they are written into files."""
    if not isinstance(model, nn.Module):
        return dict(model.identity)
    config: Any = unwrap(model).config
    revision = getattr(config, "_commit_hash", None)
    return {"base_model": config.name_or_path, "revision": revision, "config_hash": config_hash(config)}
