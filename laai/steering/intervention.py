"""`Intervention`: a few vectors, where they are added, and their algebra."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from laai.errors import UserError
from laai.models import LanguageModel, decoder_of, model_identity
from laai.steering.hooks import Edit, Key, steer
from laai.steering.positions import Where
from laai.steering.provenance import Provenance
from laai.steering.steering import Steering, check_settings
from laai.vocabulary import Positions, Site

_OWN = {"format", "positions", "scale", "preserve_norm", "sites", "layers", "num_heads"}


class Intervention(nn.Module, Steering):
    """Additive vectors at chosen sites, layers and token positions of a frozen language model.

    The steered activation is h + scale * v (LAAI, arXiv 2502.06115; CAST, arXiv 2507.13236 with scale as its λ).

    Args:
        vectors: (site, layer) -> vector (width,), kept in fp32 whatever the model's dtype. Width is the hidden size at
            site `residual` and the width of the concatenated heads at `heads`.
        positions: `last_prompt` (the last token of the prompt), `generated` (that one and every later one), `all`.
        scale: strength; multiplies every vector.
        preserve_norm: rescale each steered activation to the norm it had.
        num_heads: layer -> number of heads that a `heads` vector is split into; the groups of the penalty.
        provenance: facts that travel with the vectors: base model, training settings, metrics.
    """

    kind: ClassVar[str] = "intervention"
    formats: ClassVar[tuple[str, ...]] = ("laai-intervention-1",)

    def __init__(
        self,
        vectors: Mapping[Key, Tensor],
        *,
        positions: Positions = "last_prompt",
        scale: float = 1.0,
        preserve_norm: bool = False,
        num_heads: Mapping[int, int] | None = None,
        provenance: Provenance | None = None,
    ) -> None:
        super().__init__()
        self.positions, self.scale, self.preserve_norm = positions, float(scale), preserve_norm
        self.num_heads = dict(num_heads or {})
        self.provenance = provenance or Provenance()
        check_settings(positions, self.scale, vectors.keys())
        self.vectors = nn.ParameterDict()
        for (site, layer), vector in sorted(vectors.items(), key=lambda item: item[0]):
            if vector.dim() != 1:
                raise UserError(f"the vector at {site} {layer} must be 1-D, not of shape {tuple(vector.shape)}")
            if site == "heads" and ((heads := self.num_heads.get(layer, 1)) < 1 or len(vector) % heads):
                wide = f"the vector at heads {layer} of width {len(vector)}"
                raise UserError(f"{wide} cannot be split into {heads} heads")
            self.vectors[f"{site}_{layer}"] = nn.Parameter(vector.detach().to(torch.float32).clone())

    @classmethod
    def zeros(cls, model: nn.Module | LanguageModel, site: Site, layers: Sequence[int], **options: Any) -> Intervention:
        """Zero vectors that fit `model` at one site of the given layers. `options` as in the constructor."""
        decoder = decoder_of(model)
        vectors: dict[Key, Tensor] = {(site, i): torch.zeros(decoder.width(site, i)) for i in layers}
        heads = {i: h.count for i in layers if site == "heads" and (h := decoder.layer(i).heads) is not None}
        return cls(vectors, num_heads=heads, **({"provenance": Provenance(**model_identity(model))} | options))

    @classmethod
    def random(
        cls, model: nn.Module | LanguageModel, site: Site, layers: Sequence[int], *, norm: float = 1.0, seed: int = 0,
        **options: Any,
    ) -> Intervention:  # fmt: skip
        """Random directions, each vector of Euclidean norm `norm`: a control, or a start."""
        zeros, generator = cls.zeros(model, site, layers, **options), torch.Generator().manual_seed(seed)
        draws = {key: torch.randn(v.shape, generator=generator) for key, v in zeros.items()}
        return zeros.with_vectors({key: norm * draw / draw.norm() for key, draw in draws.items()})

    def items(self) -> Iterator[tuple[Key, nn.Parameter]]:
        """((site, layer), vector) in a fixed order."""
        for name, vector in self.vectors.items():
            site, layer = name.rsplit("_", 1)
            key: Any = site, int(layer)  # its first part is a `Site`, which a part of a string cannot be told to be
            yield key, vector

    def __getitem__(self, key: Key) -> nn.Parameter:
        """The vector at (site, layer), without the scale."""
        vector: nn.Parameter = self.vectors[f"{key[0]}_{key[1]}"]
        return vector

    def __len__(self) -> int:
        return len(self.vectors)

    def widths(self) -> dict[Key, int]:
        """(site, layer) -> entries of the vector."""
        return {key: len(vector) for key, vector in self.items()}

    def with_vectors(self, vectors: Mapping[Key, Tensor], **changes: Any) -> Intervention:
        """A copy with other vectors, and so without their scores; `changes` are constructor options to replace."""
        options = {name: getattr(self, name) for name in ("positions", "scale", "preserve_norm", "num_heads")}
        return Intervention(vectors, **(options | {"provenance": replace(self.provenance, metrics=None)} | changes))

    def part(self, keys: Collection[Key], scale: float, provenance: Provenance) -> Intervention:
        """A copy of some vectors at another scale."""
        return self.with_vectors({key: self[key] for key in keys}, scale=scale, provenance=provenance)

    def _combine(self, other: Intervention, sign: float) -> Intervention:
        if not isinstance(other, Intervention):
            return NotImplemented
        for name in ("positions", "preserve_norm"):
            if getattr(self, name) != getattr(other, name):
                raise UserError(f"cannot add interventions of different {name}")
        made = self.provenance.summed(other.provenance, "+" if sign > 0 else "-")
        total = {key: self.scale * v.detach() for key, v in self.items()}
        for key, v in other.items():
            if key in total and total[key].shape != v.shape:
                raise UserError(f"cannot add vectors of different widths at {key}: {len(total[key])} and {len(v)}")
            term = sign * other.scale * v.detach()
            total[key] = total[key] + term if key in total else term
        return self.with_vectors(total, scale=1.0, num_heads=self.num_heads | other.num_heads, provenance=made)

    def __add__(self, other: Intervention) -> Intervention:
        """Sum, and `-` the difference, layer by layer; scales are multiplied in."""
        return self._combine(other, 1.0)

    def __sub__(self, other: Intervention) -> Intervention:
        return self._combine(other, -1.0)

    def norms(self) -> dict[Key, Tensor]:
        """Euclidean norm of each vector, scale included: scalar at `residual`, one per head at `heads`."""
        rows = {(site, i): self.num_heads.get(i, 1) if site == "heads" else 1 for site, i in self.widths()}
        return {key: abs(self.scale) * v.detach().view(rows[key], -1).norm(dim=-1) for key, v in self.items()}

    def edits(self) -> dict[Key, Edit]:
        """(site, layer) -> the addition of its vector."""
        return {key: self._edit(vector) for key, vector in self.items()}

    def _edit(self, vector: nn.Parameter) -> Edit:
        def edit(hidden: Tensor, where: Where) -> Tensor:
            return steer(hidden, vector if self.scale == 1.0 else self.scale * vector, where, self.preserve_norm)

        return edit

    def to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors `<site>.<layer>`, 1-D, and what the header says of them."""
        told = {"preserve_norm": self.preserve_norm, "sites": self.sites, "layers": self.layers}
        told |= {"num_heads": {str(layer): count for layer, count in self.num_heads.items()}}
        return {f"{site}.{layer}": vector for (site, layer), vector in self.items()}, told

    @classmethod
    def from_file(cls, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> Intervention:
        """Undo `to_file`."""
        vectors: dict[Any, Tensor] = {}
        for name, tensor in tensors.items():
            site, layer = name.split(".")
            vectors[site, int(layer)] = tensor
        named = {f"{site}.{layer}" for site, layer in vectors}
        if not vectors or named != tensors.keys() or header["layers"] != sorted({layer for _, layer in vectors}):
            raise ValueError(f"layers {header['layers']}, tensors {sorted(tensors)}")
        options = {name: header[name] for name in ("positions", "scale", "preserve_norm")}
        heads = {int(layer): int(count) for layer, count in header["num_heads"].items()}
        made = Provenance.from_header({name: value for name, value in header.items() if name not in _OWN})
        return cls(vectors, num_heads=heads, provenance=made, **options)
