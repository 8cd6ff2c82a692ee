"""Read a model and its tokenizer with transformers: safetensors or GGUF alone, each failure in one line."""

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
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from laai.errors import UserError

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
    llm, tokenizer = read(str(path), path.parent, {"gguf_file": path.name}, options)
    if kind is not None and kind.contents() in SINGLE_DIGIT_TOKENIZERS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    _forget_quantisation(llm)
    return llm, tokenizer


def sha256(path: Path) -> str:
    """The digest of a file in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _forget_quantisation(llm: PreTrainedModel) -> None:
    """Drop the marks of the GGUF file from a model whose weights are ordinary tensors: with them it cannot be saved."""
    if (quantizer := getattr(llm, "hf_quantizer", None)) is not None:
        quantizer.remove_quantization_config(llm)
    for marked in (module for module in llm.modules() if isinstance(module, PreTrainedModel)):
        for mark in ("quantization_config", "_is_quantized"):
            if hasattr(marked.config, mark):
                delattr(marked.config, mark)


def read(
    name: str, source: str | Path, where: dict[str, Any], options: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read from the hub (a text) or this machine (a path); `where` goes to config and tokenizer too, `options` do not.

    Raises:
        UserError: whatever went wrong, in one line.
    """
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
