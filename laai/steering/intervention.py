"""`Intervention`: a few vectors, where they are added, and their algebra."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from laai.errors import UserError
from laai.models import Decoder, find_decoder, model_identity, transformer
from laai.steering.hooks import Attachment, Edit, steer
from laai.steering.positions import Where
from laai.steering.provenance import shared_facts
from laai.vocabulary import POSITIONS, SITES, Positions, Site

if TYPE_CHECKING:
    from laai.models import LanguageModel


Key = tuple[Site, int]


class Intervention(nn.Module):
    """Additive vectors at chosen sites, layers and token positions of a frozen language model.

    The steered activation is h + scale * v (LAAI, arXiv 2502.06115; CAST, arXiv 2507.13236 with scale as its λ).

    Args:
        vectors: (site, layer) -> vector (width,), kept in fp32 whatever the model's dtype. Width is the hidden size at
            site `residual` and the width of the concatenated heads at `heads`.
        positions: `last_prompt` (the last token of the prompt), `generated` (that one and every later one), `all`.
        scale: strength; multiplies every vector.
        preserve_norm: rescale each steered activation to the norm it had.
        num_heads: layer -> number of heads that a `heads` vector is split into; the groups of the penalty.
        metadata: JSON-serialisable facts that travel with the vectors: base model, training settings, metrics.
    """

    def __init__(
        self,
        vectors: Mapping[Key, Tensor],
        *,
        positions: Positions = "last_prompt",
        scale: float = 1.0,
        preserve_norm: bool = False,
        num_heads: Mapping[int, int] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise UserError(f"positions must be one of {', '.join(POSITIONS)}, not {positions!r}")
        self.positions: Positions = positions
        self.scale = float(scale)
        if not math.isfinite(self.scale):
            raise UserError(f"scale must be a finite number, not {scale!r}")
        self.preserve_norm = preserve_norm
        self.num_heads = dict(num_heads or {})
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.vectors = nn.ParameterDict()
        for (site, layer), vector in sorted(vectors.items(), key=lambda item: item[0]):
            if site not in SITES:
                raise UserError(f"site must be one of {', '.join(SITES)}, not {site!r}")
            if vector.dim() != 1:
                raise UserError(f"the vector at {site} {layer} must be 1-D, not of shape {tuple(vector.shape)}")
            if site == "heads" and ((heads := self.num_heads.get(layer, 1)) < 1 or len(vector) % heads):
                raise UserError(
                    f"the vector at heads {layer} of width {len(vector)} cannot be split into {heads} heads"
                )
            self.vectors[f"{site}_{layer}"] = nn.Parameter(vector.detach().to(torch.float32).clone())

    @classmethod
    def zeros(cls, model: nn.Module | LanguageModel, site: Site, layers: Sequence[int], **options: Any) -> Intervention:
        """Zero vectors that fit `model` at one site of the given layers. `options` as in the constructor."""
        decoder = find_decoder(transformer(model))
        vectors: dict[Key, Tensor] = {(site, i): torch.zeros(decoder.width(site, i)) for i in layers}
        heads = {i: h.count for i in layers if site == "heads" and (h := decoder.layer(i).heads) is not None}
        return cls(vectors, num_heads=heads, metadata=model_identity(model) | options.pop("metadata", {}), **options)

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
        """Number of vectors."""
        return len(self.vectors)

    @property
    def layers(self) -> list[int]:
        """Layers that carry a vector, ascending."""
        return sorted({layer for (_, layer), _ in self.items()})

    @property
    def sites(self) -> list[Site]:
        """Sites that carry a vector."""
        return sorted({site for (site, _), _ in self.items()})

    def with_vectors(self, vectors: Mapping[Key, Tensor], **changes: Any) -> Intervention:
        """A copy with other vectors; `changes` are constructor options to replace."""
        options = {
            name: getattr(self, name) for name in ("positions", "scale", "preserve_norm", "num_heads", "metadata")
        }
        return Intervention(vectors, **(options | changes))

    def select(self, layers: Sequence[int] | None = None, site: Site | None = None) -> Intervention:
        """The part of it on some layers or at one site; raises UserError if nothing would be left."""
        kept = {
            key: v
            for key, v in self.items()
            if (layers is None or key[1] in layers) and (site is None or key[0] == site)
        }
        if not kept:
            raise UserError(
                f"no vector at site {site or 'any'} on layers {layers}; it has {self.sites} on {self.layers}"
            )
        return self.with_vectors(kept)

    def _combine(self, other: Intervention, sign: float) -> Intervention:
        if not isinstance(other, Intervention):
            return NotImplemented
        for name in ("positions", "preserve_norm"):
            if getattr(self, name) != getattr(other, name):
                raise UserError(f"cannot add interventions of different {name}")
        facts = shared_facts(self.metadata, other.metadata)
        total = {key: self.scale * v.detach() for key, v in self.items()}
        for key, v in other.items():
            if key in total and total[key].shape != v.shape:
                raise UserError(f"cannot add vectors of different widths at {key}: {len(total[key])} and {len(v)}")
            term = sign * other.scale * v.detach()
            total[key] = total[key] + term if key in total else term
        return self.with_vectors(total, scale=1.0, num_heads=self.num_heads | other.num_heads, metadata=facts)

    def __add__(self, other: Intervention) -> Intervention:
        """Sum, layer by layer; scales are multiplied in."""
        return self._combine(other, 1.0)

    def __sub__(self, other: Intervention) -> Intervention:
        """Difference, layer by layer; scales are multiplied in."""
        return self._combine(other, -1.0)

    def __mul__(self, factor: float) -> Intervention:
        """The same vectors at `factor` times the scale."""
        return self.with_vectors(dict(self.items()), scale=self.scale * float(factor))

    __rmul__ = __mul__

    def __neg__(self) -> Intervention:
        """The opposite direction."""
        return self * -1.0

    def norms(self) -> dict[Key, Tensor]:
        """Euclidean norm of each vector, scale included: scalar at `residual`, one per head at `heads`."""
        return {
            (site, i): abs(self.scale)
            * v.detach().view(self.num_heads.get(i, 1) if site == "heads" else 1, -1).norm(dim=-1)
            for (site, i), v in self.items()
        }

    def attach(self, model: nn.Module | LanguageModel) -> Attachment:
        """Hook the vectors into `model` until the returned attachment is detached. Prefer `on`.

        Raises:
            UserError: a vector does not fit the model, or was made for one of another configuration.
        """
        llm = transformer(model)
        self.check_widths(find_decoder(llm))
        made_for = self.metadata.get("config_hash")
        if made_for and made_for != (found := model_identity(model))["config_hash"]:
            raise UserError(f"vectors made for {self.metadata.get('base_model')} do not fit {found['base_model']}")
        return Attachment(llm, {key: self._edit(v) for key, v in self.items()}, self.positions)

    def _edit(self, vector: nn.Parameter) -> Edit:
        def edit(hidden: Tensor, where: Where) -> Tensor:
            return steer(hidden, vector if self.scale == 1.0 else self.scale * vector, where, self.preserve_norm)

        return edit

    @contextmanager
    def on(self, model: nn.Module | LanguageModel) -> Iterator[None]:
        """Steer `model` inside a `with`: its own forward and `generate`, whatever the padding, cache or beams.

        In a plain forward the whole input is the prompt; where it goes on after the prompt or continues a cache, say so
        by `laai.steering.positions.prompts_of`.

        Args:
            model: a `LanguageModel` or a transformers causal LM.
        """
        attachment = self.attach(model)
        try:
            yield
        finally:
            attachment.detach()

    def check_widths(self, decoder: Decoder) -> None:
        """Raise UserError unless each vector has the width of its site in this decoder."""
        for (site, layer), vector in self.items():
            width = decoder.width(site, layer)
            if len(vector) != width:
                raise UserError(f"the vector at {site} {layer} has width {len(vector)}, the model has {width} there")

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file with JSON metadata, atomically. See `laai.steering.file`."""
        from laai.steering.file import save

        return save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | LanguageModel | None = None) -> Intervention:
        """Read a file written by `save`; with `model`, refuse one that does not fit it.

        Raises:
            UserError: no such file, not one of ours, damaged, or made for another model.
        """
        from laai.steering.file import load

        return load(Path(path), model)
