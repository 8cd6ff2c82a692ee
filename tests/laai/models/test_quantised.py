"""A base in 4 bits: the vectors stay fp32, learn, and leave the base as it was."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from laai.errors import UserError
from laai.learn.fitting import fit
from laai.models.language_model import LanguageModel
from laai.models.loading import load_model
from laai.models.quantised import PACKS, keep_differentiable
from laai.steering.intervention import Intervention
from tests.conftest import byte_level_tokenizer

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


class Packing(nn.Linear):
    """What a 4-bit layer of bitsandbytes tells of itself, on any CPU."""

    def __init__(self, packed):
        super().__init__(4, 4)
        self.support_avx512bf16_for_cpu = True
        self.weight.quant_state = SimpleNamespace(packing_format_for_cpu=packed)


def test_no_gradient_is_lost_to_fast_inference():
    llm = nn.Sequential(Packing(False), nn.Linear(4, 4), Packing(False))
    keep_differentiable(llm)
    assert [getattr(layer, PACKS, None) for layer in llm] == [False, None, False]
    with pytest.raises(UserError, match="found 1 as bitsandbytes rewrote it for inference"):
        keep_differentiable(nn.Sequential(nn.Linear(4, 4), Packing(True)))


def test_what_is_turned_off_is_there():
    """A layer of the installed bitsandbytes has the mark; else gradients would be lost in silence again."""
    assert hasattr(bitsandbytes.nn.Linear4bit(64, 64), PACKS)


def test_gradients_are_the_same_after_a_forward_without(tmp_path):
    """Widths of whole blocks, as real models have: what bitsandbytes rewrites on CPUs with AVX512-BF16."""
    config = LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        bos_token_id=0, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "whole")
    byte_level_tokenizer().save_pretrained(tmp_path / "whole")
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", quantization_config=four)
    model = LanguageModel(llm, AutoTokenizer.from_pretrained(tmp_path / "whole"))
    vector, ids = Intervention.random(model, "residual", [0], norm=1.0, seed=0), torch.arange(3, 10)[None]

    def gradient():
        vector.zero_grad()
        with vector.on(model):
            llm(ids).logits[0, -1].log_softmax(-1)[5].backward()
        return next(vector.parameters()).grad.clone()

    before = gradient()
    with torch.no_grad():
        llm(ids)
    assert torch.equal(gradient(), before)
    assert bool(before.ne(0).all())
