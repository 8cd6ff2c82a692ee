"""Load a causal language model and its tokenizer, frozen and ready to be steered."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from huggingface_hub import errors as hub_errors
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from laai.errors import UserError
from laai.files import check_name
from laai.models.default import GGUF_SHA256, default_model_folder
from laai.models.language_model import LanguageModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# Names llama.cpp gives to tokenizers that split digits one by one before the byte-level rule; transformers' GGUF reader
# ignores the name, and then tokenizes the white space before a digit differently ("\n\n1" as "\n", "\n", "1").
SINGLE_DIGIT_TOKENIZERS = {"smollm", "starcoder", "refact", "command-r", "codeshell"}


ONLY_PICKLES = (
    "expected safetensors weights in {!r}, found pickle weights only, which can run code when they are read: convert "
    "them with save_pretrained where that does no harm, or take a revision that has safetensors"
)


OFFLINE = "no connection and no copy in the cache: connect once, or give a local folder"


# In this order: the first is a subclass of the second.
HUB_FAILURES: list[tuple[type[BaseException], str]] = [
    (hub_errors.GatedRepoError, "that it is gated: accept its terms there, then run `hf auth login`"),
    (hub_errors.RepositoryNotFoundError, "none of that name: check it, or run `hf auth login` if it is private"),
    (hub_errors.HFValidationError, "that this cannot be a name: give organisation/model, a folder or a .gguf file"),
    (hub_errors.RevisionNotFoundError, "no such revision: give a branch, a tag or a commit that exists"),
    (hub_errors.LocalEntryNotFoundError, OFFLINE),
    (hub_errors.OfflineModeIsEnabled, OFFLINE),
    (ConnectionError, OFFLINE),
]


def load_model(
    name: str | Path = "default",
    *,
    dtype: str | torch.dtype = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    device_map: str | None = None,
) -> LanguageModel:
    """Load a causal language model with its tokenizer, frozen and in eval mode.

    Weights are read from safetensors or GGUF only, never from pickles.

    Args:
        name: ``"default"`` (SmolLM2-135M-Instruct, fetched once), a hub id, a local folder, or a ``.gguf`` file.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"auto"`` (as saved; float32 for GGUF), or a torch dtype.
        revision: Branch, tag or commit; for hub ids only.
        trust_remote_code: Whether to run modelling code that comes with the model.
        device_map: As in transformers: None for the CPU, or e.g. ``"auto"`` or ``"cuda:0"``.

    Raises:
        UserError: The model cannot be found, reached or read, or is no causal language model.
    """
    options: dict[str, Any] = {"dtype": _parse_dtype(dtype), "device_map": device_map}
    text, path = str(name), check_name(name).expanduser()
    is_file = path.suffix.lower() == ".gguf"
    if revision is not None and (text == "default" or is_file or path.is_dir()):
        raise UserError(f"expected a hub id with revision={revision!r}, found {text!r}: drop the revision")
    if text == "default":
        folder = default_model_folder()
        llm, tokenizer = _read(str(folder), folder, {}, options)
        return LanguageModel(llm, tokenizer, text, GGUF_SHA256)
    if is_file:
        llm, tokenizer = read_gguf(path, **options)
        with path.open("rb") as file:
            return LanguageModel(llm, tokenizer, text, hashlib.file_digest(file, "sha256").hexdigest())
    if path.is_dir():
        _check_folder(text, path)
        llm, tokenizer = _read(text, path, {"trust_remote_code": trust_remote_code}, options)
        return LanguageModel(llm, tokenizer, text)
    spelt_as_path = isinstance(name, Path) or text.startswith(("/", ".", "~")) or text.count("/") > 1 or "\\" in text
    if spelt_as_path or path.exists():
        found = "another kind of file" if path.exists() else "nothing"
        raise UserError(f"expected a model folder or .gguf file at {text!r}, found {found} there: check the path")
    llm, tokenizer = _read(text, text, {"trust_remote_code": trust_remote_code, "revision": revision}, options)
    return LanguageModel(llm, tokenizer, text, getattr(llm.config, "_commit_hash", None))


def _parse_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if dtype == "auto" or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    choices = ", ".join([*DTYPES, "auto"])
    raise UserError(f"expected dtype to be one of {choices} or a floating torch.dtype, found {dtype!r}: choose one")


def _check_folder(name: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        found = "a PEFT adapter: load its base model" if adapter else "none: give the folder save_pretrained wrote"
        raise UserError(f"expected a model folder with config.json at {name!r}, found {found}")
    if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        raise UserError(ONLY_PICKLES.format(name))


def read_gguf(
    path: Path, *, dtype: str | torch.dtype = torch.float32, device_map: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a GGUF file as an ordinary model, dequantised, that can be saved.

    Raises:
        UserError: The file is missing, damaged or of an architecture that transformers cannot read.
    """
    if not path.is_file():
        raise UserError(f"expected a .gguf file at {str(path)!r}, found nothing there: check the path")
    try:
        kind = GGUFReader(path).get_field("tokenizer.ggml.pre")
    except Exception as err:  # numpy, struct and gguf raise whatever the damaged bytes lead to
        found = f"one that cannot be read ({_one_line(err)})"
        raise UserError(f"expected a whole GGUF file at {str(path)!r}, found {found}: fetch it again") from err
    options = {"dtype": torch.float32 if dtype == "auto" else dtype, "device_map": device_map}
    llm, tokenizer = _read(str(path), path.parent, {"gguf_file": path.name}, options)
    if kind is not None and kind.contents() in SINGLE_DIGIT_TOKENIZERS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    _forget_quantisation(llm)
    return llm, tokenizer


def _forget_quantisation(llm: PreTrainedModel) -> None:
    """Drop the marks of the GGUF file from a model whose weights are ordinary tensors: with them it cannot be saved."""
    if (quantizer := getattr(llm, "hf_quantizer", None)) is not None:
        quantizer.remove_quantization_config(llm)
    for marked in (module for module in llm.modules() if isinstance(module, PreTrainedModel)):
        for mark in ("quantization_config", "_is_quantized"):
            if hasattr(marked.config, mark):
                delattr(marked.config, mark)


def _read(
    name: str, source: str | Path, where: dict[str, Any], options: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    local = isinstance(source, Path)
    loader: Any = AutoModelForCausalLM  # its annotations leave out output_loading_info
    try:
        if not local:  # fails sooner than the tokenizer does, and pins one commit for all files
            config = AutoConfig.from_pretrained(source, **where)
            where = {**where, "revision": getattr(config, "_commit_hash", None) or where["revision"]}
        with _quiet() if local else contextlib.nullcontext():
            tokenizer = AutoTokenizer.from_pretrained(source, **where)
            arguments = {"use_safetensors": True, "output_loading_info": True, **where, **options}
            llm, info = loader.from_pretrained(source, **arguments)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as err:  # transformers, safetensors, tokenizers and the hub client share no base class
        raise UserError(_explain(name, local, err)) from err
    if missing := sorted(info["missing_keys"]):  # transformers makes them up, with no more than a warning
        found = f"{len(missing)} missing (such as {missing[0]!r}): complete the checkpoint"
        raise UserError(f"expected all weights of {type(llm).__name__} in {name!r}, found {found}")
    return llm, tokenizer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars, which only a download deserves."""
    bars: Any = transformers_logging
    shown = bars.is_progress_bar_enabled()
    if shown:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _explain(name: str, local: bool, err: Exception) -> str:
    """One line for whatever transformers raised: expected, found, cure."""
    text = _one_line(err)
    causes: list[BaseException] = [err]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    for kind, found in HUB_FAILURES:
        if not local and any(isinstance(cause, kind) for cause in causes):
            return f"expected the model {name!r} on the hub, found {found}"
    if "trust_remote_code" in str(err):
        return f"expected no code inside {name!r}, found some: read it, then pass trust_remote_code=True"
    if "does not recognize this architecture" in text or "Unrecognized" in text or "not supported" in text:
        return f"expected a causal language model known to transformers at {name!r}, found none ({text}): take another"
    if not local and isinstance(err, OSError) and "safetensors" in text:
        return ONLY_PICKLES.format(name)
    found = f"{type(err).__name__} ({text})"
    return f"expected a causal language model that can be read at {name!r}, found {found}: check its files"


def _one_line(err: BaseException) -> str:
    text = " ".join(str(err).split()) or type(err).__name__
    return text if len(text) <= 200 else text[:199] + "…"
