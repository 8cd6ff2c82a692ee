"""Run a decoder from a given layer on: the layers below it are skipped, and what they gave before is handed on.

A vector at layer l changes nothing below it, at no token. So the states that enter the first steered layer are the same
at every step of learning, and in every forward of a sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from laai.models import Decoder
from laai.vocabulary import Site


@dataclass(frozen=True)
class LayerOutput:
    """What a layer returned: `hidden` (batch, tokens, width), and `wrap`, which gives it the layer's form."""

    hidden: Tensor
    wrap: Callable[[Tensor], Any]

    def repeated(self, times: int) -> LayerOutput:
        """Each row `times` times in a row."""
        return LayerOutput(self.hidden.repeat_interleave(times, dim=0), self.wrap)


def unchanged_layers(decoder: Decoder, keys: Sequence[tuple[Site, int]]) -> list[nn.Module]:
    """The layers whose own output no vector at any of `keys` (site, layer) can change, from the first on.

    A `residual` vector is added to its layer's output by a hook, after the layer itself.
    """
    first = min(layer + (site == "residual") for site, layer in keys)
    return [layer.module for layer in decoder.layers[:first]]


@contextmanager
def recording(layers: Sequence[nn.Module]) -> Iterator[dict[nn.Module, LayerOutput]]:
    """Note what each of `layers` returns, before any hook, in the dict that is yielded.

    Of what it returns beside the hidden state (attention weights, say) nothing is noted: `skipping` has None there.
    """
    seen: dict[nn.Module, LayerOutput] = {}

    def recorder(layer: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            output = run(*args, **kwargs)
            many = isinstance(output, tuple | list)
            hidden, *others = output if many else [output]
            if isinstance(hidden, Tensor) and hidden.dim() == 3:
                form, rest = type(output), [None] * len(others)
                wrap: Callable[[Tensor], Any] = (lambda h: form([h, *rest])) if many else (lambda h: h)
                seen[layer] = LayerOutput(hidden.detach(), wrap)
            return output

        return record

    with _forwards({layer: recorder(layer, layer.forward) for layer in layers}):
        yield seen


@contextmanager
def skipping(layers: Sequence[nn.Module], output: LayerOutput) -> Iterator[None]:
    """Let each of `layers` return `output` without being run; their hooks are."""
    value = output.wrap(output.hidden)
    with _forwards({layer: lambda *_, **__: value for layer in layers}):
        yield


@contextmanager
def _forwards(replaced: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the `forward` of modules, of each instance alone."""
    before = {module: module.__dict__.get("forward") for module in replaced}
    try:
        for module, forward in replaced.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, own in before.items():
            if own is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = own
