"""Load a causal language model and its tokenizer, frozen and ready to be steered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from laai.errors import UserError
from laai.files import check_name
from laai.models.default import GGUF_SHA256, default_model_folder
from laai.models.language_model import LanguageModel
from laai.models.reading import ONLY_PICKLES, read, read_gguf, sha256

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
        llm, tokenizer = read(str(folder), folder, {}, options)
        return LanguageModel(llm, tokenizer, text, GGUF_SHA256)
    if is_file:
        llm, tokenizer = read_gguf(path, **options)
        return LanguageModel(llm, tokenizer, text, sha256(path))
    if path.is_dir():
        _check_folder(text, path)
        llm, tokenizer = read(text, path, {"trust_remote_code": trust_remote_code}, options)
        return LanguageModel(llm, tokenizer, text)
    spelt_as_path = isinstance(name, Path) or text.startswith(("/", ".", "~")) or text.count("/") > 1 or "\\" in text
    if spelt_as_path or path.exists():
        found = "another kind of file" if path.exists() else "nothing"
        raise UserError(f"expected a model folder or .gguf file at {text!r}, found {found} there: check the path")
    llm, tokenizer = read(text, text, {"trust_remote_code": trust_remote_code, "revision": revision}, options)
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
