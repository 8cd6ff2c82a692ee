"""A base in 4 bits: the vectors stay fp32, learn, and leave the base as it was."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from laai.fitting import fit
from laai.models import load_model

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: no model in 4 bits")


@pytest.fixture
def folder(tiny, tiny_folder, tmp_path):
    """The tiny model as a checkpoint in 4 bits."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    AutoModelForCausalLM.from_pretrained(tiny_folder, quantization_config=config).save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("site", ["heads", "residual"])
def test_vectors_of_a_base_in_4_bits(folder, word_task, site):
    model = load_model(folder)
    projection = model.llm.model.layers[0].mlp.down_proj
    assert isinstance(projection, bitsandbytes.nn.Linear4bit)
    before = projection.weight.data.clone()
    learned = fit(model, word_task, 4, steps=3, site=site, layers=[0, 2])
    for layer in (0, 2):
        assert learned[site, layer].dtype == torch.float32
        assert bool(learned[site, layer].ne(0).all())
        assert bool(learned[site, layer].isfinite().all())
    assert torch.equal(projection.weight.data, before)
