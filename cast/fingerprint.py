"""What tells one model's weights from another's, for files that are kept and used again."""

from __future__ import annotations

import hashlib

from torch import nn


def fingerprint(module: nn.Module) -> str:
    """Changes with a module's weights: sha256 over the beginning of each, its shape and dtype."""
    digest = hashlib.sha256()
    for name, weight in module.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if not weight.is_meta:  # as what accelerate keeps elsewhere
            digest.update(weight.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()
