"""Loading: tiny random models on disk, for every way in and every failure."""

import hashlib
import json
import os
from types import SimpleNamespace

import gguf
import pytest
import torch
from huggingface_hub import errors as hub_errors
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
)

import laai.models.loading
from laai.errors import UserError
from laai.models.identity import config_hash
from laai.models.language_model import LanguageModel
from laai.models.loading import load_model

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"]
MERGES = [("Ċ", "Ċ")]
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def build_config(**changes):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings = {**sizes, "num_key_value_heads": 2, "vocab_size": len(VOCABULARY), "max_position_embeddings": 128}
    return LlamaConfig(**{**settings, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, **changes})


def build_tokenizer(**special):
    core = Tokenizer(models.BPE({token: index for index, token in enumerate(VOCABULARY)}, MERGES))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tiny"
    torch.manual_seed(0)
    LlamaForCausalLM(build_config()).save_pretrained(path)
    tokenizer = build_tokenizer(eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(path)
    return path


def write_gguf(path, folder, kind):
    """A llama GGUF of the model in `folder`, with llama.cpp's order of the rotary dimensions."""
    config = build_config()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(kind)
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(VOCABULARY) - len(SPECIAL)))
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in LlamaForCausalLM.from_pretrained(folder).state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:
            halves = tensor.view(heads, 2, tensor.shape[0] // heads // 2, -1)
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refused(*arguments, **options):
    """The message of the UserError, checked to be one line that says what was expected and what was found."""
    with pytest.raises(UserError) as raised:
        load_model(*arguments, **options)
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith("expected ")
    assert ", found " in message
    return message


def test_folder_is_loaded_frozen_and_in_eval_mode(folder):
    model = load_model(folder)
    assert not model.llm.training
    assert not any(parameter.requires_grad for parameter in model.llm.parameters())
    assert model.llm.dtype == torch.float32
    assert (model.tokenizer.padding_side, model.tokenizer.pad_token) == ("left", "<|im_end|>")
    assert model.llm.generation_config.pad_token_id == 2
    assert model.tokenizer.chat_template == CHAT
    assert model.identity == {"base_model": str(folder), "revision": None, "config_hash": model.config_hash}
    expected = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.llm.state_dict().items())


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "float16"])
def test_dtype_is_followed(folder, dtype):
    assert load_model(folder, dtype=dtype).llm.dtype == laai.models.loading.DTYPES.get(dtype, dtype)


def test_auto_dtype_is_the_saved_one(folder):
    LlamaForCausalLM(build_config()).to(torch.bfloat16).save_pretrained(folder)
    assert load_model(folder, dtype="auto").llm.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["int8", "float", torch.int8, None])
def test_unknown_dtype_lists_the_choices(dtype):
    assert "float32, bfloat16, float16, auto" in refused("default", dtype=dtype)


def test_padding_falls_back_to_unknown_then_refuses():
    llm = LlamaForCausalLM(build_config())
    unknown = LanguageModel(llm, build_tokenizer(unk_token="<|endoftext|>"))
    assert (unknown.tokenizer.pad_token, unknown.pad) == ("<|endoftext|>", 0)
    assert LanguageModel(llm, build_tokenizer(unk_token="<|endoftext|>", eos_token="<|im_end|>")).pad == 2
    kept = LanguageModel(llm, build_tokenizer(pad_token="<|im_start|>", eos_token="<|im_end|>"))
    assert (kept.tokenizer.pad_token, kept.pad) == ("<|im_start|>", 1)
    with pytest.raises(UserError, match=r"set tokenizer\.pad_token"):
        LanguageModel(llm, build_tokenizer())


def test_gguf_equals_the_folder_and_can_be_saved(folder, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", folder, "gpt-2")
    model, origin = load_model(str(path)), load_model(folder)
    assert model.revision == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.config_hash == origin.config_hash
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(model.llm(ids).logits, origin.llm(ids).logits)
    model.llm.save_pretrained(tmp_path / "saved")
    model.tokenizer.save_pretrained(tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    assert torch.equal(again.llm(ids).logits, origin.llm(ids).logits)
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())


def test_gguf_that_splits_digits_keeps_white_space_before_them_whole(folder, tmp_path):
    tokens = {}
    for kind in ("gpt-2", "smollm"):
        tokenizer = load_model(write_gguf(tmp_path / f"{kind}.gguf", folder, kind)).tokenizer
        tokens[kind] = tokenizer.tokenize("a\n\n12")
    assert tokens["smollm"] == ["a", "ĊĊ", "1", "2"]
    assert tokens["gpt-2"] == ["a", "Ċ", "Ċ", "1", "2"]


def test_damaged_or_missing_gguf(folder, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", folder, "gpt-2")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "fetch it again" in refused(path)
    path.write_bytes(b"not a GGUF file")
    assert "fetch it again" in refused(path)
    assert "found nothing" in refused(tmp_path / "other.gguf")


def test_paths_that_hold_no_model(folder, tmp_path):
    assert "found nothing" in refused(tmp_path / "none")
    assert "found nothing" in refused("./none")
    (tmp_path / "text.txt").write_text("x")
    assert "another kind of file" in refused(str(tmp_path / "text.txt"))
    assert "config.json" in refused(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "PEFT adapter" in refused(tmp_path)
    assert "drop the revision" in refused(folder, revision="main")


def test_pickle_weights_are_refused(folder):
    torch.save({}, folder / "pytorch_model.bin")
    load_model(folder)
    (folder / "model.safetensors").unlink()
    assert "pickle" in refused(folder)


def test_damaged_folders(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:500])
    refused(folder)
    weights.write_bytes(whole)
    build_config(num_hidden_layers=3).save_pretrained(folder)
    assert "9 missing" in refused(folder)
    (folder / "config.json").write_text("{")
    refused(folder)


def test_models_that_transformers_does_not_know(folder):
    for config in (T5Config().to_dict(), {"model_type": "unheard-of"}, {"hidden_size": 3}):
        (folder / "config.json").write_text(json.dumps(config))
        assert "known to transformers" in refused(folder)
    remote = {"model_type": "x", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(remote))
    assert "trust_remote_code=True" in refused(folder)


@pytest.mark.parametrize(
    ("kind", "cure"),
    [
        (hub_errors.GatedRepoError, "accept its terms"),
        (hub_errors.RepositoryNotFoundError, "check it"),
        (hub_errors.RevisionNotFoundError, "a branch, a tag or a commit"),
        (hub_errors.LocalEntryNotFoundError, "connect once"),
        (ConnectionError, "connect once"),
    ],
)
def test_hub_failures(monkeypatch, kind, cure):
    def fail(*arguments, **options):
        response = {"response": SimpleNamespace(headers={}, request=None)}
        cause = kind("a\nb", **(response if issubclass(kind, hub_errors.HfHubHTTPError) else {}))
        raise OSError("something of several\nlines") from cause

    monkeypatch.setattr(AutoConfig, "from_pretrained", fail)
    assert cure in refused("organisation/model", revision="main")


def test_hub_without_network_or_a_proper_name(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "connect once" in refused("organisation/no-such-model-anywhere")
    assert "organisation/model" in refused("no such name")


def test_hub_loads_pin_one_commit_and_never_pickles(monkeypatch, folder):
    seen = []
    results = {
        AutoConfig: SimpleNamespace(_commit_hash="c0ffee"),
        AutoTokenizer: AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM: (AutoModelForCausalLM.from_pretrained(folder), {"missing_keys": set()}),
    }
    for loader, result in results.items():
        monkeypatch.setattr(loader, "from_pretrained", lambda *a, _result=result, **o: seen.append((a, o)) or _result)
    load_model("organisation/model", revision="main")
    assert [arguments for arguments, _ in seen] == [("organisation/model",)] * 3
    assert [options["revision"] for _, options in seen] == ["main", "c0ffee", "c0ffee"]
    assert seen[2][1]["use_safetensors"] is True
    assert not any(options["trust_remote_code"] for _, options in seen)


def test_config_hash_stands_for_the_architecture_alone(tmp_path):
    base = config_hash(build_config())
    assert len(base) == 16
    assert int(base, 16) >= 0
    build_config().save_pretrained(tmp_path)
    assert config_hash(AutoConfig.from_pretrained(tmp_path)) == base
    float32_eps = float(torch.tensor(1e-6))
    same = {"dtype": "bfloat16", "use_cache": False, "name_or_path": "x", "attn_implementation": "eager"}
    same |= {"quantization_config": {"quant_method": "gguf"}, "rms_norm_eps": float32_eps, "bos_token_id": 7}
    same |= {"eos_token_id": 8, "initializer_range": 0.5, "head_dim": 8, "rope_theta": 10000, "unknown_field": 3}
    for name, value in same.items():
        assert config_hash(build_config(**{name: value})) == base, name
    other = {"hidden_size": 64, "num_hidden_layers": 3, "num_key_value_heads": 4, "head_dim": 16, "vocab_size": 9}
    other |= {"mlp_bias": True, "hidden_act": "gelu", "rope_theta": 5e5, "tie_word_embeddings": True}
    changed = {config_hash(build_config(**{name: value})) for name, value in other.items()}
    assert len(changed | {base}) == len(other) + 1
    assert config_hash(GPT2Config(n_embd=32, n_head=4)) != config_hash(GPT2Config(n_embd=64, n_head=4))


def test_loading_leaves_the_environment_alone(folder, capsys):
    before = dict(os.environ)
    load_model(folder)
    assert dict(os.environ) == before
    assert capsys.readouterr().out == ""
