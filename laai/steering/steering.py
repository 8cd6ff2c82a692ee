"""`Steering`: what vectors and ridge maps have in common, whether one fits a model, and how it is read from a file."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor, nn

from laai.errors import UserError
from laai.models import LanguageModel, decoder_of, model_identity
from laai.steering.file import damaged, read, write
from laai.steering.hooks import Attachment, Edit, Key
from laai.steering.provenance import Provenance
from laai.vocabulary import POSITIONS, SITES, Positions, Site


class Steering(Protocol):
    """What is added to activations of a frozen language model at chosen sites, layers and token positions.

    Attributes:
        kind: what it is called.
        formats: of its files: the one that is written, and earlier ones.
        positions: `last_prompt` (the last token of the prompt), `generated` (that one and every later one), `all`.
        scale: strength; multiplies all that is added.
        provenance: what it was made from and for.
    """

    kind: ClassVar[str]
    formats: ClassVar[tuple[str, ...]]
    positions: Positions
    scale: float
    provenance: Provenance

    @abstractmethod
    def widths(self) -> dict[Key, int]:
        """(site, layer) -> width of the activations there, in a fixed order."""

    @abstractmethod
    def edits(self) -> dict[Key, Edit]:
        """(site, layer) -> what is done to the activation there, with the values and the scale of the moment."""

    @abstractmethod
    def part(self, keys: Collection[Key], scale: float, provenance: Provenance) -> Self:
        """A copy of what is at some sites and layers, at another scale."""

    @abstractmethod
    def to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, and what the header says of them beside the attributes above."""

    @classmethod
    @abstractmethod
    def from_file(cls, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> Self:
        """Undo `to_file`, with all that the header says.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: they make no sense together.
        """

    @property
    def layers(self) -> list[int]:
        """Layers that are steered, ascending."""
        return sorted({layer for _, layer in self.widths()})

    @property
    def sites(self) -> list[Site]:
        """Sites that are steered."""
        return sorted({site for site, _ in self.widths()})

    def select(self, layers: Collection[int] | None = None, site: Site | None = None) -> Self:
        """The part of it on some layers or at one site; raises UserError if nothing would be left."""
        kept = [key for key in self.widths() if layers is None or key[1] in layers]
        kept = [key for key in kept if site is None or key[0] == site]
        if not kept:
            asked = f"site {site or 'any'} on layers {'any' if layers is None else [*layers]}"
            raise UserError(f"nothing at {asked} of this {self.kind}, which is at {self.sites} on {self.layers}")
        if len(kept) == len(self.widths()):
            return self.part(kept, self.scale, self.provenance)
        told = f"{' and '.join(sorted({s for s, _ in kept}))} {', '.join(str(i) for i in sorted({i for _, i in kept}))}"
        return self.part(kept, self.scale, self.provenance.derived(f"{told} of {self.provenance.label}"))

    def __mul__(self, factor: float) -> Self:
        """The same at `factor` times the scale."""
        made = self.provenance
        made = made if factor == 1 else made.derived(f"{float(factor):g} * {made.label}")
        return self.part(self.widths(), self.scale * float(factor), made)

    def __rmul__(self, factor: float) -> Self:
        return self * factor

    def __neg__(self) -> Self:
        return self * -1.0

    def attach(self, model: nn.Module | LanguageModel) -> Attachment:
        """Hook it into `model` until the returned attachment is detached. Prefer `on`.

        Raises:
            UserError: it does not fit the model, or was made for one of another configuration.
        """
        refuse_misfit(self, model)
        return Attachment(model, self.edits(), self.positions)

    @contextmanager
    def on(self, model: nn.Module | LanguageModel) -> Iterator[None]:
        """Steer `model` inside a `with`: its own forward and `generate`, whatever the padding, cache or beams.

        In a plain forward the whole input is the prompt; where it goes on after the prompt or continues a cache, say so
        by `laai.steering.prompts_of`.

        `model` is a `LanguageModel` or a transformers causal LM.
        """
        with self.attach(model):
            yield

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file with a JSON header, atomically.

        Raises:
            UserError: the place cannot be written, or a tensor holds NaN or infinity.
        """
        tensors, told = self.to_file()
        own = {"format": self.formats[0], "positions": self.positions, "scale": self.scale} | told
        return write(Path(path), tensors, self.provenance.to_header() | own)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | LanguageModel | None = None) -> Self:
        """Read a file written by `save`; with `model`, refuse one that does not fit it.

        Raises:
            UserError: no such file, not one of ours, damaged, or made for another model.
        """
        found: Self = _load([cls], path, model)
        return found


def load(path: str | Path, model: nn.Module | LanguageModel | None = None) -> Steering:
    """Read an intervention or a ridge map, whichever the file holds; with `model`, refuse one that does not fit it.

    Raises:
        UserError: no such file, not one of ours, damaged, or made for another model.
    """
    found: Steering = _load(Steering.__subclasses__(), path, model)
    return found


def _load(kinds: Sequence[type[Any]], path: str | Path, model: nn.Module | LanguageModel | None) -> Any:
    what = " or ".join(one.kind for one in kinds)
    tensors, header = read(Path(path), what)
    kind = next((one for one in kinds if header["format"] in one.formats), None)
    if kind is None:
        known = ", ".join(one.formats[0] for one in kinds)
        found_format = f"its format is {header['format']!r}, expected {known}"
        raise UserError(f"{path} is no {what}: {found_format}; laai.steering.load reads all that this version knows")
    try:
        found = kind.from_file(tensors, header)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(Path(path), error) from error
    if model is not None:
        check_fits(found, model, str(path))
    return found


def check_settings(positions: str, scale: float, keys: Collection[tuple[str, int]]) -> None:
    """Raise UserError unless these are positions, a finite strength, and known sites."""
    if positions not in POSITIONS:
        raise UserError(f"positions must be one of {', '.join(POSITIONS)}, not {positions!r}")
    if not math.isfinite(scale):
        raise UserError(f"scale must be a finite number, not {scale!r}")
    if unknown := [site for site, _ in keys if site not in SITES]:
        raise UserError(f"site must be one of {', '.join(SITES)}, not {unknown[0]!r}")


def check_fits(steering: Steering, model: nn.Module | LanguageModel, name: str = "") -> None:
    """Raise UserError, with the reason, if it was made for a model of another configuration.

    A model of the same configuration under another name (a local copy, a fine-tune) is accepted with a warning.
    """
    refuse_misfit(steering, model, name)
    found = model_identity(model)
    for name_of, what in (("base_model", "the model"), ("revision", "revision")):
        made, own = getattr(steering.provenance, name_of), found[name_of]
        if made and own and made != own:
            warnings.warn(f"{name or f'this {steering.kind}'} was made for {what} {made}; this is {own}", stacklevel=3)


def refuse_misfit(steering: Steering, model: nn.Module | LanguageModel, name: str = "") -> None:
    """The refusal of `check_fits` without its warning: of another configuration, or widths and layers of none."""
    made_for, name = steering.provenance, name or f"this {steering.kind}"
    decoder = decoder_of(model)
    try:
        for (site, layer), width in steering.widths().items():
            if width != (own := decoder.width(site, layer)):
                raise UserError(f"at {site} {layer} it has width {width}, the model has {own} there")
    except UserError as error:
        raise UserError(f"{name} was made for {made_for.base_model or 'another model'}: {error}") from error
    if made_for.config_hash and made_for.config_hash != (found := model_identity(model))["config_hash"]:
        raise UserError(
            f"{name} was made for {made_for.base_model} (configuration {made_for.config_hash}), "
            f"not for {found['base_model']} (configuration {found['config_hash']})"
        )
