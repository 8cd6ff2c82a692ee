"""`RidgeMap`: affine maps that are added to activations, used as an intervention is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from laai.steering.hooks import Edit, Key, steer
from laai.steering.positions import Where
from laai.steering.provenance import Provenance
from laai.steering.steering import Steering, check_settings
from laai.vocabulary import Positions

_OWN = {"format", "positions", "scale", "explained", "metadata"}
_TENSORS = ("mean", "centre", "left", "right")


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
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS})


class RidgeMap(nn.Module, Steering):
    """Affine maps by site and layer, added to the activation times a scale; used as an `Intervention` is.

    Args:
        maps: (site, layer) -> what to add.
        positions: which tokens are steered.
        scale: strength.
        provenance: facts that travel with it.
    """

    kind: ClassVar[str] = "ridge map"
    formats: ClassVar[tuple[str, ...]] = ("cast-ridge-2", "cast-ridge-1")

    def __init__(
        self,
        maps: Mapping[Key, AffineMap],
        *,
        positions: Positions = "last_prompt",
        scale: float = 1.0,
        provenance: Provenance | None = None,
    ) -> None:
        super().__init__()
        self.maps, self.positions, self.scale = dict(maps), positions, float(scale)
        self.provenance = provenance or Provenance()
        check_settings(positions, self.scale, self.maps)

    def widths(self) -> dict[Key, int]:
        """(site, layer) -> width of the map's input and output."""
        return {key: len(one.mean) for key, one in self.maps.items()}

    def part(self, keys: Collection[Key], scale: float, provenance: Provenance) -> RidgeMap:
        """The maps at some sites and layers at another scale."""
        return RidgeMap({k: self.maps[k] for k in keys}, positions=self.positions, scale=scale, provenance=provenance)

    def edits(self) -> dict[Key, Edit]:
        """(site, layer) -> the addition of what its map makes of the activation."""
        return {key: self._edit(one) for key, one in self.maps.items()}

    def _edit(self, one: AffineMap) -> Edit:
        def edit(hidden: Tensor, where: Where) -> Tensor:
            nonlocal one
            one = one.to(hidden.device)
            return steer(hidden, self.scale * one(hidden), where)

        return edit

    def to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors `<site>.<layer>.<name>`, named as those of `AffineMap`, and what each map explains."""
        named = {f"{site}.{layer}": one for (site, layer), one in self.maps.items()}
        tensors = {f"{name}.{part}": getattr(one, part) for name, one in named.items() for part in _TENSORS}
        return tensors, {"explained": {name: one.explained for name, one in named.items()}}

    @classmethod
    def from_file(cls, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> RidgeMap:
        """Undo `to_file`; files of `cast-ridge-1` have what is now beside the settings under `metadata`."""
        maps: dict[Any, AffineMap] = {}
        for name, explained in header["explained"].items():
            site, layer = name.split(".")
            one = AffineMap(**{part: tensors[f"{name}.{part}"] for part in _TENSORS}, explained=float(explained))
            width, rank = one.left.shape
            if (*one.mean.shape, *one.centre.shape, *one.right.shape) != (width, width, rank, width):
                raise ValueError(f"the shapes at {name}")
            maps[site, int(layer)] = one
        if not maps:
            raise ValueError("no map")
        facts = {name: value for name, value in header.items() if name not in _OWN} | header.get("metadata", {})
        made = Provenance.from_header(facts)
        return cls(maps, positions=header["positions"], scale=header["scale"], provenance=made)
