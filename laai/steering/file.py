"""The file of an intervention: one safetensors file whose header tells what it is and what it was made for."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from laai.errors import UserError
from laai.files import check_name, write_atomically
from laai.models import find_decoder, model_identity, transformer
from laai.steering.intervention import Intervention, Key
from laai.vocabulary import SITES

if TYPE_CHECKING:
    from laai.models import LanguageModel


FORMAT = "laai-intervention-1"


_OWN = {"format", "positions", "scale", "preserve_norm", "sites", "layers", "num_heads"}


def save(intervention: Intervention, path: Path) -> Path:
    """Write tensors named `<site>.<layer>` (fp32, 1-D) and the header's JSON, atomically.

    Raises:
        UserError: the place cannot be written, or a vector holds NaN or infinity.
    """
    tensors = {f"{site}.{layer}": v.detach().cpu().contiguous() for (site, layer), v in intervention.items()}
    bad = [name for name, v in tensors.items() if not bool(v.isfinite().all())]
    if bad:
        raise UserError(f"not saved: the vector at {bad[0]} is not finite")
    header = intervention.metadata | {
        "format": FORMAT,
        "positions": intervention.positions,
        "scale": intervention.scale,
        "preserve_norm": intervention.preserve_norm,
        "sites": intervention.sites,
        "layers": intervention.layers,
        "num_heads": {str(layer): count for layer, count in intervention.num_heads.items()},
    }
    metadata = {"laai": json.dumps(header)}  # one entry: safetensors writes several in random order
    # Not save_file, whose own errors are no OSError when the disk is full.
    return write_atomically(path, lambda temporary: temporary.write_bytes(to_bytes(tensors, metadata)))


def load(path: Path, model: nn.Module | LanguageModel | None = None) -> Intervention:
    """Read a file written by `save`; with `model`, check that it fits.

    Raises:
        UserError: one line that says what is wrong with the file, or why it does not fit.
    """
    check_name(path)
    if not path.is_file():
        raise UserError(f"no intervention file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("laai")
            names = file.keys()
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}); write it again with save()") from error
    if text is None:
        raise UserError(f"{path} is a safetensors file, but not an intervention: its header has no 'laai' entry")
    try:
        intervention = _parse(json.loads(text), tensors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: its header and tensors do not agree ({error})") from error
    if model is not None:
        check_fits(intervention, model, str(path))
    return intervention


def check_fits(intervention: Intervention, model: nn.Module | LanguageModel, name: str = "this intervention") -> None:
    """Raise UserError, with the reason, if the vectors were made for a model of another configuration.

    A model of the same configuration under another name (a local copy, a fine-tune) is accepted with a warning.
    """
    made_for, found = intervention.metadata, model_identity(model)
    try:
        intervention.check_widths(find_decoder(transformer(model)))
    except UserError as error:
        raise UserError(f"{name} was made for {made_for.get('base_model', 'another model')}: {error}") from error
    if made_for.get("config_hash") not in (None, found["config_hash"]):
        raise UserError(
            f"{name} was made for {made_for.get('base_model')} (configuration {made_for['config_hash']}), "
            f"not for {found['base_model']} (configuration {found['config_hash']})"
        )
    for key, what in (("base_model", "the model"), ("revision", "revision")):
        if made_for.get(key) and found[key] and made_for[key] != found[key]:
            warnings.warn(f"{name} was made for {what} {made_for[key]}; this is {found[key]}", stacklevel=3)


def _parse(header: dict[str, Any], tensors: dict[str, Tensor]) -> Intervention:
    if header["format"] != FORMAT:
        raise ValueError(f"format {header['format']!r}, expected {FORMAT!r}")
    vectors: dict[Key, Tensor] = {}
    for name, tensor in tensors.items():
        site, layer = name.split(".")
        if site not in SITES or tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
            raise ValueError(f"tensor {name!r} is not a finite fp32 vector at a known site")
        vectors[site, int(layer)] = tensor
    named = {f"{site}.{layer}" for site, layer in vectors}
    if not vectors or named != tensors.keys() or header["layers"] != sorted({layer for _, layer in vectors}):
        raise ValueError(f"layers {header['layers']}, tensors {sorted(tensors)}")
    return Intervention(
        vectors,
        positions=header["positions"],
        scale=header["scale"],
        preserve_norm=header["preserve_norm"],
        num_heads={int(layer): int(count) for layer, count in header["num_heads"].items()},
        metadata={key: value for key, value in header.items() if key not in _OWN},
    )
