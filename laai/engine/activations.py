"""Statistics of the activations at the last prompt token, for all layers in one pass over each prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from laai.engine.forward import answer_logits
from laai.engine.started import started_batches
from laai.prompts import Prompt
from laai.steering import record_last_token
from laai.vocabulary import Site


@dataclass
class Statistics:
    """Running statistics by layer, fp32. `mean`: layer -> (width,). `square`: layer -> mean square of an entry."""

    count: int = 0
    mean: dict[int, Tensor] = field(default_factory=dict)
    square: dict[int, Tensor] = field(default_factory=dict)

    def update(self, activations: dict[int, Tensor], layers: Sequence[int]) -> None:
        """Add layer -> (batch, width)."""
        batch = len(activations[layers[0]])
        self.count += batch
        for i in layers:
            x = activations[i].float()
            for running, new in ((self.mean, x.mean(dim=0)), (self.square, x.square().mean())):
                running[i] = running[i].lerp(new, batch / self.count) if i in running else new

    def rms(self, layer: int) -> float:
        """Root mean square of an entry of the activation."""
        return float(self.square[layer].sqrt())


@torch.no_grad()
def last_token_statistics(
    llm: nn.Module,
    prompts: Sequence[Prompt],
    site: Site,
    layers: Sequence[int],
    *,
    pad: int,
    batch_size: int = 16,
    on_batch: Callable[[int], object] = lambda done: None,
) -> Statistics:
    """Activations at `site` at the last prompt token of each prompt; answers in the prompts are left out.

    What all prompts begin with, demonstrations that they share, is run once.

    Args:
        llm: a causal LM, as it is.
        prompts: at least one.
        site: where to read.
        layers: which layers.
        pad: the id to pad with.
        batch_size: prompts run at a time; prompts of similar length go together.
        on_batch: told the number of prompts of each batch when it is done.
    """
    statistics = Statistics()
    prompts = [Prompt(prompt.prefix, prompt.suffix[:1]) for prompt in prompts]
    with record_last_token(llm, site, layers) as seen:
        for started in started_batches(llm, prompts, pad, batch_size):
            answer_logits(llm, started.batch, started.before)
            statistics.update(seen, layers)
            on_batch(len(started.rows))
    return statistics
