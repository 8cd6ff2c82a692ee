"""Which one layer to steer: a race of all depths, judged on examples that a vector did not learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from laai.engine import Engine, FrozenBatch, mean_nll, token_nll, unchanged_layers
from laai.errors import UserError
from laai.models import LanguageModel
from laai.prompts import Prompt, collate, without_unlabelled_end
from laai.steering import Attachment, Intervention, Where, steer
from laai.vocabulary import Positions, Site

MAX_EXAMPLES = 32
"""Training examples that the choice looks at, at most."""


@dataclass(frozen=True)
class LayerProfile:
    """How well a vector at each layer predicts examples that it did not learn from.

    Attributes:
        best: the layer with the lowest held-out loss among those that were learned longest.
        nll: layer -> held-out mean negative log-likelihood per token after its last step, nats.
        steps: layer -> steps that it was learned for.
    """

    best: int
    nll: dict[int, float]
    steps: dict[int, int]


def profile_layers(
    engine: Engine, site: Site, positions: Positions, prompts: Sequence[Prompt], *,
    rounds: Sequence[tuple[int, int]] = ((12, 4), (6, 4), (3, 8)), rate: float = 0.03,
) -> LayerProfile:  # fmt: skip
    """Find the layer whose vector, learned on one half of the examples, best predicts the other half.

    Two-fold cross-validation with successive halving: all candidates learn for a few steps from zero, the better ones
    go on. Both folds are rows of one batch, whose prefix and unsteered states are run once for all layers.

    Args:
        engine: of the language model.
        site: where the vector is added.
        positions: which tokens are steered.
        prompts: training prompts with their answers, at least 2; the first `MAX_EXAMPLES` count.
        rounds: (candidates, further steps of each); the candidates of the first round are evenly spaced.
        rate: Adam's rate, in units of the activations' RMS.

    Raises:
        UserError: fewer than 2 training examples.
    """
    if len(prompts) < 2:
        raise UserError("layers=auto needs at least 2 training examples; name a layer instead")
    prompts = prompts[:MAX_EXAMPLES]
    model = engine.model
    layers = _spread(model.decoder.steerable(site), rounds[0][0])
    rms = engine.activation_rms(prompts, site, layers)
    batch = without_unlabelled_end(collate(prompts, model.pad).to(model.device))
    zeros = [Intervention.zeros(model, site, [layer], positions=positions) for layer in layers]
    frozen = engine.freeze(batch, zeros)
    candidates = [_Candidate(model, zero, rate * rms[zero.layers[0]]) for zero in zeros]
    if frozen.prefix is not None:
        with torch.no_grad():
            frozen.run(record=[c.below[-1] for c in candidates if c.below])
    racing, done = candidates, 0
    with tqdm(total=sum(n * steps for n, steps in rounds), desc=f"choosing a layer at {site}", leave=False) as bar:
        for count, steps in rounds:
            racing = sorted(racing, key=lambda c: c.nll)[:count]
            done += steps
            for candidate in racing:
                candidate.learn(frozen, steps)
                candidate.steps = done
                bar.update(steps)
    best = min(racing, key=lambda c: c.nll).layer
    return LayerProfile(best, {c.layer: c.nll for c in candidates}, {c.layer: c.steps for c in candidates})


class _Candidate:
    """One layer with a vector for each fold: the vector of fold f learns from the rows of fold f."""

    def __init__(self, model: LanguageModel, zero: Intervention, rate: float) -> None:
        ((self.key, vector),) = zero.items()
        self.layer, self.positions = self.key[1], zero.positions
        self.model = model
        self.below = unchanged_layers(model.decoder, [self.key])
        self.vectors = torch.zeros(2, len(vector), device=model.device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.vectors], lr=rate)
        self.nll, self.steps = 0.0, 0

    def learn(self, frozen: FrozenBatch, steps: int) -> None:
        """Take some steps, then measure each fold's vector on the other fold."""
        batch = frozen.batch
        folds = torch.arange(len(batch.rows), device=batch.labels.device) % 2
        using = folds  # which vector each row is steered by

        def edit(hidden: Tensor, where: Where) -> Tensor:
            return steer(hidden, self.vectors[using][:, None], where)

        def losses() -> Tensor:
            nll = token_nll(frozen.run(self.below), batch.labels)
            return torch.stack([mean_nll(nll[folds == fold], batch.labels[folds == fold]) for fold in (0, 1)])

        with Attachment(self.model, {self.key: edit}, self.positions):
            for _ in range(steps):
                self.optimizer.zero_grad()
                torch.autograd.backward(losses().sum())
                self.optimizer.step()
            using = 1 - folds
            with torch.no_grad():
                self.nll = float(losses().mean().nan_to_num(nan=math.inf))


def _spread(layers: Sequence[int], count: int) -> list[int]:
    """At most `count` of the layers, evenly spaced, first and last among them."""
    if len(layers) <= count:
        return list(layers)
    return sorted({layers[round(i * (len(layers) - 1) / (count - 1))] for i in range(count)})
