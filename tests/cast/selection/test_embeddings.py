"""Embeddings against hidden states by hand, and what is kept on disk."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, PreTrainedTokenizerFast

import laai
from cast.selection import embeddings
from cast.selection.embeddings import encoder_embeddings, state_embeddings
from laai.errors import UserError
from laai.models.identity import fingerprint

TEXTS = ["amber", "a much longer text than the others", "birch tree"]


@torch.no_grad()
def by_hand(model, tokenizer, module, start=None):
    """Each text alone through the model; the mean over its tokens of what a module returns first.

    With a start token before it, the mean of what that leaves, each of length one.
    """
    rows = []
    handle = module.register_forward_hook(
        lambda _, __, out: rows.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    for text in TEXTS:
        model(torch.tensor([([] if start is None else [start]) + tokenizer.encode(text)]))
    handle.remove()
    if start is not None:
        rows = [torch.nn.functional.normalize(states[:, 1:], dim=-1) for states in rows]
    return np.stack([states[0].mean(0).numpy() for states in rows])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_states_by_hand(tiny, batch_size):
    for layer in (0, 1):
        found = state_embeddings(tiny, TEXTS, layer=layer, batch_size=batch_size, progress=False)
        start = tiny.tokenizer.bos_token_id or tiny.tokenizer.eos_token_id
        expected = by_hand(tiny.llm, tiny.tokenizer, tiny.llm.model.layers[layer], start)
        np.testing.assert_allclose(found, expected - expected.mean(0), rtol=1e-3, atol=1e-4)
        for file in (embeddings.cache_folder() / "embeddings").glob("*"):
            file.unlink()
    assert not any(m._forward_hooks for m in tiny.llm.modules())
    with pytest.raises(UserError, match="layer 9 does not exist"):
        state_embeddings(tiny, TEXTS, layer=9)


def test_kept_on_disk_until_texts_or_weights_change(tiny, monkeypatch):
    ran, run = [], embeddings._averaged
    monkeypatch.setattr(embeddings, "_averaged", lambda *a: (ran.append(1), run(*a))[1])
    first = state_embeddings(tiny, TEXTS, progress=False)
    np.testing.assert_array_equal(state_embeddings(tiny, TEXTS, progress=False), first)
    assert len(ran) == 1
    state_embeddings(tiny, TEXTS[:2], progress=False)
    assert len(ran) == 2
    (file, *others) = sorted((embeddings.cache_folder() / "embeddings").glob("*.safetensors"))
    for damaged in (file, *others):
        damaged.write_bytes(b"no")
    np.testing.assert_array_equal(state_embeddings(tiny, TEXTS, progress=False), first)
    assert len(ran) == 3
    layer = torch.nn.Linear(4, 4)
    before = fingerprint(layer)
    with torch.no_grad():
        layer.bias += 1
    assert fingerprint(layer) != before
    assert fingerprint(torch.nn.Linear(4, 4, device="meta")) != fingerprint(torch.nn.Linear(4, 5, device="meta"))


def test_a_sentence_encoder(tiny, tmp_path):
    config = BertConfig(vocab_size=len(tiny.tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    encoder = BertModel(config).eval()
    encoder.save_pretrained(tmp_path / "encoder")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer.backend_tokenizer, pad_token="<|im_end|>")
    tokenizer.save_pretrained(tmp_path / "encoder")
    found = encoder_embeddings(str(tmp_path / "encoder"), TEXTS, batch_size=2, progress=False)
    np.testing.assert_allclose(found, by_hand(encoder, tokenizer, encoder.encoder), atol=1e-4)
    with pytest.raises(UserError, match="expected a sentence encoder"):
        encoder_embeddings(str(tmp_path), TEXTS)


def test_an_encoder_without_a_padding_token(tiny, tmp_path):
    """GPT-2 has none: its end token serves."""
    encoder = GPT2Model(GPT2Config(vocab_size=len(tiny.tokenizer), n_embd=16, n_layer=1, n_head=2)).eval()
    encoder.save_pretrained(tmp_path)
    core = tiny.tokenizer.backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>").save_pretrained(tmp_path)
    found = encoder_embeddings(str(tmp_path), TEXTS, batch_size=3, progress=False)
    np.testing.assert_allclose(found, by_hand(encoder, tiny.tokenizer, encoder.ln_f), atol=1e-4)
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="tokenizer has a padding token, found none at"):
        encoder_embeddings(str(tmp_path), TEXTS, progress=False)


def test_texts_compare_by_what_they_say_and_not_by_their_length(default_model):
    """A decoder's first token gathers attention; its state would outweigh all others by a hundred."""
    draw = random.Random(0)
    words = [[e.input for e in laai.load_task(name).examples] for name in ("present-past", "country-capital")]
    kinds = [i % 2 for i in range(60)]
    texts = [", ".join(draw.sample(words[kind], 1 + i % 9)) for i, kind in enumerate(kinds)]
    rows = state_embeddings(default_model, texts, progress=False)
    inverse = np.array([1 / len(default_model.tokenizer(text).input_ids) for text in texts])
    inverse -= inverse.mean()
    explained = ((inverse @ rows) ** 2).sum() / (inverse @ inverse) / (rows**2).sum()
    assert explained < 0.4  # 0.99 if the first token counts
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T - 9 * np.eye(len(unit))
    nearest = np.array(kinds)[cosines.argsort(axis=1)[:, -5:]]
    assert (nearest == np.array(kinds)[:, None]).mean() > 0.9
