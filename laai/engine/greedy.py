"""What a model writes after prompts, by transformers' own `generate`, greedily."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from laai.engine.prefix import Prefix, check_length
from laai.models import LanguageModel
from laai.prompts import Batch


def write(model: LanguageModel, batch: Batch, run: Tensor, before: Prefix | None, max_new_tokens: int) -> list[str]:
    """The text that follows each prompt of a batch; answers in it are left out.

    Args:
        model: the language model, as it is.
        batch: what is left of each prompt.
        run: (rows, tokens) those that come before, padded on the left; their keys and values are `before`.
        before: None where nothing was run.
        max_new_tokens: of each text.
    """
    ids = torch.cat([run, batch.prefix_ids, batch.suffix_ids[:, :1]], dim=1)
    mask = torch.cat([batch.prefix_mask, batch.suffix_mask[:, :1]], dim=1)
    mask = mask if before is None else torch.cat([before.mask, mask], dim=1)
    options = {} if before is None else {"past_key_values": before.continued()}
    check_length(model, mask, max_new_tokens - 1)
    llm: Any = model.llm
    with _greedy(llm):
        out: Tensor = llm.generate(
            input_ids=ids,
            attention_mask=mask,
            **options,
            max_new_tokens=max_new_tokens,
            pad_token_id=model.pad,
            synced_gpus=model.sharded,
        )
    new = out[:, ids.shape[1] :]
    return list(model.tokenizer.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@contextmanager
def _greedy(llm: Any) -> Iterator[None]:
    """Without the generation defaults that came with the model: a repetition penalty would punish right answers."""
    untyped: Any = GenerationConfig
    own = llm.generation_config
    llm.generation_config = untyped(eos_token_id=own.eos_token_id, do_sample=False, num_beams=1)
    try:
        yield
    finally:
        llm.generation_config = own
