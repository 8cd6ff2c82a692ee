"""The file of what steers a model: fp32 tensors, and one JSON header that says what they are and were made for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from laai.errors import UserError
from laai.files import check_name, write_atomically


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write tensors (fp32) and the header, atomically.

    Raises:
        UserError: the place cannot be written, or a tensor holds NaN or infinity.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    bad = [name for name, tensor in whole.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise UserError(f"not saved: the vector at {bad[0]} is not finite")
    entries = {"laai": json.dumps(header)}  # one entry: safetensors writes several in random order
    # Not save_file, whose own errors are no OSError when the disk is full.
    return write_atomically(path, lambda temporary: temporary.write_bytes(to_bytes(whole, entries)))


def read(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, finite and fp32, and the header, which has a `format`.

    Args:
        path: the file.
        what: is expected in it, for messages.

    Raises:
        UserError: one line that says what is wrong with the file.
    """
    check_name(path)
    if not path.is_file():
        raise UserError(f"no {what} file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            entries = file.metadata() or {}
            names = file.keys()
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}); write it again with save()") from error
    text = entries.get("laai", entries.get("facts"))  # ridge maps of before had two entries: the format, and facts
    if text is None:
        raise UserError(f"{path} is a safetensors file, but no {what}: its header has no 'laai' entry")
    try:
        header = {name: entries[name] for name in ("format",) if name in entries} | json.loads(text)
        header["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
            raise damaged(path, ValueError(f"tensor {name!r} is not finite and fp32"))
    return tensors, header


def damaged(path: Path, error: Exception) -> UserError:
    """What to raise where header and tensors make no sense together."""
    return UserError(f"{path} is damaged: its header and tensors do not agree ({error})")
