"""From measured examples to the scores of a method: one row of the results table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from laai.evaluation.measuring import Measured
from laai.evaluation.metrics import PerExample, share_interval


@dataclass(frozen=True)
class Scores:
    """One method on one set of examples.

    Attributes:
        exact_match, exact_match_low, exact_match_high: share of exact matches and its 95% interval (Wilson's).
        choice_accuracy, choice_accuracy_low, choice_accuracy_high: forced choice by option likelihood, summed over the
            option's tokens, over the examples with choices, and its 95% interval (Wilson's); None where there are none.
        choice_accuracy_mean: the same by the likelihood averaged over the option's tokens.
        nll: mean over examples of the mean negative log-likelihood per answer token, nats.
        n: examples.
        prompt_tokens: mean tokens in a prompt.
        ms_per_query: mean generation time of a query in its batch, milliseconds.
    """

    method: str
    exact_match: float
    exact_match_low: float
    exact_match_high: float
    choice_accuracy: float | None
    choice_accuracy_low: float | None
    choice_accuracy_high: float | None
    choice_accuracy_mean: float | None
    nll: float
    n: int
    prompt_tokens: float
    ms_per_query: float

    def as_json(self) -> dict[str, object]:
        """Plain JSON values; a likelihood that is not finite becomes null."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


class TaskMetrics(nn.Module):
    """The torchmetrics behind `Scores`; a module, so that Lightning moves them and devices can share them."""

    def __init__(self) -> None:
        super().__init__()
        self.exact, self.nll, self.tokens, self.ms = (PerExample() for _ in range(4))
        self.choice_sum, self.choice_mean = PerExample(), PerExample()

    def update(self, measured: Sequence[Measured]) -> None:
        """Add measured examples."""
        if not measured:
            return
        found: dict[str, list[float | None]] = {
            "exact": [m.exact for m in measured],
            "nll": [m.nll for m in measured],
            "tokens": [m.prompt_tokens for m in measured],
            "ms": [1000 * m.seconds for m in measured],
            "choice_sum": [m.choice_sum for m in measured],
            "choice_mean": [m.choice_mean for m in measured],
        }
        for name, values in found.items():
            metric: PerExample = getattr(self, name)
            # NaN for an example without choices: every device updates every metric, as all must join to gather one.
            numbers = torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float32)
            rows = torch.tensor([m.row for m in measured], device=metric.device)
            metric.update(numbers.to(metric.device), rows)

    def compute(self, method: str) -> Scores:
        """The scores over all devices' examples, each counted once."""
        exact = share_interval(self.exact.compute().view(-1))
        nll, tokens, ms = (one.compute().double().mean().item() for one in (self.nll, self.tokens, self.ms))
        right = [metric.compute().view(-1) for metric in (self.choice_sum, self.choice_mean)]
        choice, by_mean = (share_interval(values[~values.isnan()]) for values in right)
        return Scores(
            method=method,
            exact_match=exact.mean,
            exact_match_low=exact.low,
            exact_match_high=exact.high,
            choice_accuracy=choice.mean if choice.n else None,
            choice_accuracy_low=choice.low if choice.n else None,
            choice_accuracy_high=choice.high if choice.n else None,
            choice_accuracy_mean=by_mean.mean if by_mean.n else None,
            nll=nll,
            n=exact.n,
            prompt_tokens=tokens,
            ms_per_query=ms,
        )

    def answers(self) -> dict[str, list[int | None]]:
        """Which examples of all devices were right, in their order: exact match, and forced choice or None."""
        found = {"exact": self.exact, "choice": self.choice_sum}
        values = {name: metric.compute().view(-1).tolist() for name, metric in found.items()}
        return {name: [None if math.isnan(v) else int(v) for v in own] for name, own in values.items()}

    def reset(self) -> None:
        """Forget all examples."""
        metrics: Any = self.children()
        for metric in metrics:
            metric.reset()
