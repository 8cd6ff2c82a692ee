"""Which tokens of a forward pass are steered, told by their place in the prompt and never by the shape of the call.

- Inside `generate`, by column: the prompt fills the first columns of cache and input, and its last token is the last of
  them (prompts are padded on the left; right-padded ones are moved there first).
- In a plain forward, by position among the row's real tokens, against the row's prompt length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from laai.errors import UserError
from laai.vocabulary import Positions

Where = Tensor | bool
"""The steered tokens of one forward: a bool mask that broadcasts to (batch, tokens, 1), or all, or none."""

_PROMPT_LENGTHS: ContextVar[Tensor | None] = ContextVar("prompt_lengths", default=None)


@contextmanager
def prompts_of(lengths: Tensor) -> Iterator[None]:
    """Say how many tokens of each row are prompt, (batch,), for all vectors attached to whatever model runs inside.

    For plain forwards whose input goes on after the prompt or continues a cache.
    """
    token = _PROMPT_LENGTHS.set(lengths)
    try:
        yield
    finally:
        _PROMPT_LENGTHS.reset(token)


class PromptColumns:
    """The columns of one `generate` call: the prompt is the first `width` of them."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._seen = 0

    def where(self, length: int, past: int | None, positions: Positions, device: torch.device) -> Where:
        """The steered ones of the next `length` columns, of which `past` are in the cache (None: count them here)."""
        start = self._seen if past is None else past
        self._seen = start + length
        last = self.width - 1 - start  # column of the last prompt token in this forward
        if last < 0:
            return positions == "generated"
        if last >= length:
            return False
        column = torch.arange(length, device=device)
        return (column == last if positions == "last_prompt" else column >= last)[None, :, None]


def where_in_rows(tokens: Tensor, call: Mapping[str, Any], positions: Positions) -> Tensor:
    """The steered tokens of a plain forward. Without `prompts_of` around it, a row's whole input is its prompt.

    Args:
        tokens: input ids (batch, tokens) or embeddings (batch, tokens, width).
        call: the arguments of the decoder's forward by name.
        positions: `last_prompt` or `generated`.

    Returns:
        bool mask (batch, tokens, 1).

    Raises:
        UserError: the end of a row's prompt cannot be known.
    """
    batch, length = tokens.shape[:2]
    lengths, mask, past = _PROMPT_LENGTHS.get(), call.get("attention_mask"), past_length(call)
    if lengths is None and past != 0:
        raise UserError(
            "this forward continues a cache, so the prompt's end is not known: say it with prompts_of, or use generate"
        )
    if isinstance(mask, Tensor) and mask.dim() == 2:
        place = (mask.long().cumsum(-1) - 1)[:, -length:]
        real = mask[:, -length:].bool()
    elif mask is not None and call.get("position_ids") is None:
        raise UserError("a steered forward with a mask that is not 2-D needs position_ids")
    else:
        ids = call.get("position_ids")
        place = torch.arange(length, device=tokens.device) + (past or 0) if ids is None else ids
        place = (place[0] if place.dim() == 3 else place).expand(batch, length)
        real = torch.ones_like(place, dtype=torch.bool)
        if lengths is None and not bool((place == torch.arange(length, device=place.device)).all()):
            raise UserError(
                "position_ids do not count from 0 to the end of each row, so the prompt's end is not known: "
                "pass attention_mask, and one sequence a row"
            )
    if lengths is None:
        lengths = torch.where(real, place, -1).amax(-1) + 1
    last = (lengths.to(place.device) - 1)[:, None]
    return ((place == last if positions == "last_prompt" else place >= last) & real)[:, :, None]


def past_length(call: Mapping[str, Any]) -> int | None:
    """Tokens in the cache that this forward continues; None where the cache does not tell (state space models)."""
    cache = call.get("past_key_values")
    if cache is None:
        return 0 if call.get("cache_params") is None else None
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError):  # no attention layer in it
        return None


def pad_left(prompt: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move padding to the left: (batch, tokens[, width]) and its 0/1 mask (batch, tokens).

    transformers' `generate` reads the first new token off the last column, which is a pad in a right-padded row.

    Raises:
        UserError: a row has padding between real tokens, or no real token.
    """
    step = mask.long().diff(dim=-1)
    if bool(mask[:, -1].all()) and bool((step >= 0).all()):
        return prompt, mask
    runs = (step == 1).sum(-1) + mask[:, 0].long()
    if bool((runs != 1).any()):
        raise UserError("attention_mask has gaps or an empty row; each prompt must be one unbroken run of tokens")
    order = mask.long().argsort(dim=-1, stable=True)  # pads first, real tokens in their order
    index = order if prompt.dim() == 2 else order[:, :, None].expand_as(prompt)
    return prompt.gather(1, index), mask.gather(1, order)
