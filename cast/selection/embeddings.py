"""Embeddings of examples, for selection: the language model's own states, or a sentence encoder's. Kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer

from laai.engine import position_options
from laai.errors import UserError
from laai.files import write_atomically
from laai.models import LanguageModel, cache_folder, fingerprint

Embeddings = NDArray[np.float32]
Encoded = tuple[Tensor, Tensor, Tensor]
"""Token ids, attention mask and which tokens count, (texts, tokens)."""

MAX_TOKENS = 512
"""Tokens of a text that count."""


def state_embeddings(
    model: LanguageModel, texts: Sequence[str], *, layer: int | None = None, batch_size: int = 32, progress: bool = True
) -> Embeddings:
    """The directions of the language model's own states, averaged over each text's tokens, less their mean over texts.

    A decoder's first token gathers attention, and its state is a hundred times as long as others: a mean with it tells
    how long a text is, and nothing else. So texts stand behind a start token that does not count, and each token
    counts by direction alone. All states share a large part, which would make all cosines alike: hence the mean over
    texts is taken off.

    Args:
        model: without vectors.
        texts: their first `MAX_TOKENS` tokens count.
        layer: whose output is read; default: two thirds of the way up.

    Returns:
        (texts, hidden size) fp32; from the disk if this model embedded these texts before.

    Raises:
        UserError: no such layer.
    """
    decoder, tokenizer = model.decoder, model.tokenizer
    chosen = decoder.layer(2 * len(decoder.layers) // 3 if layer is None else layer)
    seen: list[Tensor] = []

    def encode(some: list[str]) -> Encoded:
        rows = [tokenizer(text, add_special_tokens=False).input_ids[: MAX_TOKENS - 1] for text in some]
        start = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), 0)
        ids = pad_sequence([torch.tensor([start, *row]) for row in rows], True, model.pad)
        mask = torch.arange(ids.shape[1]) <= torch.tensor([len(row) for row in rows])[:, None]
        counted = mask.clone()
        counted[:, 0] = False
        return ids, mask.long(), counted

    def run(ids: Tensor, mask: Tensor) -> Tensor:
        model.llm(input_ids=ids, attention_mask=mask, use_cache=False, **position_options(model, mask, 1))
        return functional.normalize(seen.pop().float(), dim=-1)

    def embed() -> Embeddings:
        with chosen.module.register_forward_hook(
            lambda _, __, output: seen.append(output[0] if isinstance(output, tuple | list) else output)
        ):
            states = _averaged(run, encode, texts, model.llm, batch_size, progress)
        centred: Embeddings = states - states.mean(axis=0)
        return centred

    return _kept([fingerprint(model.llm), chosen.index, "directions after a start token"], texts, embed)


def encoder_embeddings(
    name: str, texts: Sequence[str], *, batch_size: int = 64, progress: bool = True, device: torch.device | None = None
) -> Embeddings:
    """A sentence encoder's last states, averaged over each text's tokens.

    Args:
        name: hub id or folder of an encoder for `transformers.AutoModel`, say sentence-transformers/all-MiniLM-L6-v2.
        texts: their first `MAX_TOKENS` tokens count.
        device: where it runs; default: the CPU.

    Returns:
        (texts, width) fp32; from the disk if the same encoder embedded these texts before.

    Raises:
        UserError: the encoder cannot be loaded, or its tokenizer has no token to pad with.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name, padding_side="right")  # else positions would be shifted
        encoder = AutoModel.from_pretrained(name, use_safetensors=True).eval().to(device or "cpu")
    except Exception as error:  # transformers, safetensors, tokenizers and the hub client share no base class
        found = " ".join(str(error).split())[:200]
        raise UserError(f"expected a sentence encoder with safetensors weights at {name!r}, found: {found}") from error
    if tokenizer.pad_token is None:  # GPT-2 has none; what it is does not matter, as padding is masked
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise UserError(f"expected an encoder whose tokenizer has a padding token, found none at {name!r}: set one")
    limit = min(getattr(encoder.config, "max_position_embeddings", MAX_TOKENS + 2) - 2, MAX_TOKENS)

    def encode(some: list[str]) -> Encoded:
        found = tokenizer(some, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return found["input_ids"], found["attention_mask"], found["attention_mask"].bool()

    def run(ids: Tensor, mask: Tensor) -> Tensor:
        states: Tensor = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return states

    embed = partial(_averaged, run, encode, texts, encoder, batch_size, progress)
    return _kept([fingerprint(encoder)], texts, embed)


@torch.no_grad()
def _averaged(
    run: Callable[[Tensor, Tensor], Tensor], encode: Callable[[list[str]], Encoded], texts: Sequence[str],
    module: nn.Module, batch_size: int, progress: bool,
) -> Embeddings:  # fmt: skip
    """Mean of `run`'s states (batch, tokens, width) over the tokens of each text that count, in batches by length."""
    device = next(module.parameters()).device
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    rows: list[tuple[int, NDArray[np.float32]]] = []
    with tqdm(total=len(texts), desc="embedding", disable=not progress, leave=False) as bar:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            ids, mask, counted = (part.to(device) for part in encode([texts[i] for i in chosen]))
            states = run(ids, mask).float().to(device).where(counted[..., None], 0.0)
            means = states.sum(dim=1) / counted.sum(dim=1, keepdim=True).clamp_min(1)
            rows += zip(chosen, means.cpu().numpy(), strict=True)
            bar.update(len(chosen))
    return np.stack([row for _, row in sorted(rows, key=lambda pair: pair[0])])


def _kept(key: list[Any], texts: Sequence[str], embed: Callable[[], Embeddings]) -> Embeddings:
    """What `embed` gives, from a file in the cache if it was asked for before. A damaged file is made anew."""
    name = hashlib.sha256(json.dumps([key, list(texts)], ensure_ascii=False).encode()).hexdigest()[:32]
    path = cache_folder() / "embeddings" / f"{name}.safetensors"
    with contextlib.suppress(SafetensorError, KeyError, OSError):
        found: Embeddings = load_file(path)["embeddings"]
        if len(found) == len(texts):
            return found
    embeddings = embed()
    with contextlib.suppress(UserError):  # a cache that cannot be written costs time alone
        write_atomically(path, lambda temporary: save_file({"embeddings": embeddings}, temporary))
    return embeddings
