"""`RidgeMap`: affine maps that are added to activations, used as an intervention is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from laai.errors import UserError
from laai.files import write_atomically
from laai.models import LanguageModel, find_decoder, model_identity, transformer
from laai.steering.hooks import Attachment, Edit, steer
from laai.steering.intervention import Key
from laai.steering.positions import Where
from laai.vocabulary import Positions

FORMAT = "cast-ridge-1"


@dataclass(frozen=True)
class AffineMap:
    """effect(h) = mean + (h − centre) · left · right, of rank below the number of samples; all fp32.

    Attributes:
        mean, centre: (width,).
        left: (width, rank).
        right: (rank, width).
        explained: share of the differences' variance that leave-one-out prediction explains; at most 1, below 0 if the
            mean alone predicts better.
    """

    mean: Tensor
    centre: Tensor
    left: Tensor
    right: Tensor
    explained: float = 0.0

    def __call__(self, hidden: Tensor) -> Tensor:
        """The effect on activations (…, width), fp32."""
        return self.mean + ((hidden.float() - self.centre) @ self.left) @ self.right

    def to(self, device: torch.device) -> AffineMap:
        """The same map on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("mean", "centre", "left", "right")})


class RidgeMap(nn.Module):
    """Affine maps by site and layer, added to the activation times a scale; used as an `Intervention` is.

    Args:
        maps: (site, layer) -> what to add.
        positions: which tokens are steered.
        scale: strength.
        metadata: JSON-serialisable facts that travel with it.
    """

    def __init__(
        self,
        maps: Mapping[Key, AffineMap],
        *,
        positions: Positions = "last_prompt",
        scale: float = 1.0,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.maps, self.positions, self.scale = dict(maps), positions, float(scale)
        self.metadata = dict(metadata or {})

    @property
    def layers(self) -> list[int]:
        """Layers that have a map, ascending."""
        return sorted({layer for _, layer in self.maps})

    def select(self, layers: Sequence[int]) -> RidgeMap:
        """The maps on some layers."""
        kept = {key: one for key, one in self.maps.items() if key[1] in layers}
        if not kept:
            raise UserError(f"no map on layers {list(layers)}; it has {self.layers}")
        return RidgeMap(kept, positions=self.positions, scale=self.scale, metadata=self.metadata)

    def __mul__(self, factor: float) -> RidgeMap:
        """The same maps at `factor` times the scale."""
        return RidgeMap(self.maps, positions=self.positions, scale=self.scale * factor, metadata=self.metadata)

    __rmul__ = __mul__

    def attach(self, model: nn.Module | LanguageModel) -> Attachment:
        """Hook the maps into `model` until the returned attachment is detached.

        Raises:
            UserError: a map does not fit the model.
        """
        llm = transformer(model)
        decoder, device = find_decoder(llm), next(llm.parameters()).device
        edits: dict[Key, Edit] = {}
        for (site, layer), one in self.maps.items():
            if len(one.mean) != (width := decoder.width(site, layer)):
                raise UserError(f"the map at {site} {layer} has width {len(one.mean)}, the model has {width} there")
            edits[site, layer] = self._edit(one.to(device))
        return Attachment(llm, edits, self.positions)

    def _edit(self, one: AffineMap) -> Edit:
        def edit(hidden: Tensor, where: Where) -> Tensor:
            here = one.to(hidden.device)
            return steer(hidden, self.scale * here(hidden), where)

        return edit

    @contextmanager
    def on(self, model: nn.Module | LanguageModel) -> Iterator[None]:
        """Steer `model` inside a `with`."""
        attachment = self.attach(model)
        try:
            yield
        finally:
            attachment.detach()

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file with JSON metadata, atomically."""
        tensors = {
            f"{site}.{layer}.{name}": getattr(one, name).contiguous()
            for (site, layer), one in self.maps.items()
            for name in ("mean", "centre", "left", "right")
        }
        facts = {"positions": self.positions, "scale": self.scale, "metadata": self.metadata}
        facts["explained"] = {f"{site}.{layer}": one.explained for (site, layer), one in self.maps.items()}
        about = {"format": FORMAT, "facts": json.dumps(facts)}
        return write_atomically(Path(path), lambda temporary: save_file(tensors, temporary, metadata=about))

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | LanguageModel | None = None) -> RidgeMap:
        """Read a file written by `save`; with `model`, refuse one that was made for another configuration.

        Raises:
            UserError: no such file, not one of ours, damaged, or made for another model.
        """
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                if about.get("format") != FORMAT:
                    raise UserError(
                        f"{path} is no ridge map of this library; `cast.extraction.ridge.fit_ridge` makes one"
                    )
                names = file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
            facts = json.loads(about["facts"])
            maps: dict[Key, AffineMap] = {}
            for name, explained in facts["explained"].items():
                site, layer = name.split(".")
                parts = [tensors[f"{name}.{part}"] for part in ("mean", "centre", "left", "right")]
                maps[site, int(layer)] = AffineMap(parts[0], parts[1], parts[2], parts[3], explained)
        except FileNotFoundError:
            raise UserError(f"there is no file {path}") from None
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UserError(f"{path} is damaged and cannot be read: {error}; make it anew") from error
        made = facts["metadata"].get("config_hash")
        if model is not None and made and made != (own := model_identity(model)["config_hash"]):
            raise UserError(f"{path} was made for a model whose configuration hashes to {made}, this one's to {own}")
        return cls(maps, positions=facts["positions"], scale=facts["scale"], metadata=facts["metadata"])
