"""Exact match, forced choice and answer likelihood: pure functions, and torchmetrics that count each example once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Interval(NamedTuple):
    """A mean over `n` examples with its 95% interval."""

    mean: float
    low: float
    high: float
    n: int


def exact_match(generated: str, expected: str) -> bool:
    """Whether the generated text begins with the expected answer as whole lines, white space at its ends apart."""
    return first_lines(generated, expected) == expected.strip()


def first_lines(generated: str, expected: str) -> str:
    """As many lines of the generated text as the expected answer has; only a line feed ends one."""
    return "\n".join(generated.strip().split("\n")[: expected.strip().count("\n") + 1]).strip()


def forced_choice(option_nlls: Sequence[float], option_lengths: Sequence[int] | None = None) -> int:
    """Index of the likeliest option; -1 where a likelihood is no number, as of a model that overflows.

    Args:
        option_nlls: negative log-likelihood of each option, summed over its tokens, in nats.
        option_lengths: tokens in each option, to compare by the mean per token instead of the sum.
    """
    lengths = option_lengths if option_lengths is not None else [1] * len(option_nlls)
    scores = [nll / length for nll, length in zip(option_nlls, lengths, strict=True)]
    return -1 if any(map(math.isnan, scores)) else scores.index(min(scores))


MEAN_FLOOR = 1e-3
"""An option's mean probability that is not told from less: what never is likely is not to be blown up without end."""


def label_offsets(logits: Tensor) -> Tensor:
    """(labels,) that, added to logits (examples, labels), make all labels about equally likely over the examples.

    Minus the logarithm of each label's mean probability (batch calibration, 2309.17249), less the mean over labels.
    Examples on which the model overflows are left out; zeros if it does on all.
    """
    logits = logits[logits.isfinite().all(dim=-1)]
    if not len(logits):
        return logits.new_zeros(logits.shape[1])
    found = -logits.double().softmax(dim=-1).mean(dim=0).clamp_min(MEAN_FLOOR).log()
    return (found - found.mean()).to(logits.dtype)


def calibrated_choices(option_nlls: Tensor) -> Tensor:
    """Forced choice without the model's leaning to some labels, by `label_offsets`: no label is needed.

    Args:
        option_nlls: (queries, options) summed negative log-likelihoods; the same options for all queries.

    Returns:
        (queries,) indices of the likeliest options.
    """
    logits = -option_nlls.double()
    return (logits + label_offsets(logits)).argmax(dim=-1)


def bootstrap_interval(values: Tensor, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of `values` (n,) with the percentile bootstrap's 95% interval over examples; NaN for n = 0.

    The same values give the same interval: draws come from a generator of their own.
    """
    values = values.detach().double().cpu()
    n = len(values)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    draws = torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(seed))
    means = values[draws].mean(dim=1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return Interval(values.mean().item(), low, high, n)


def share_interval(right: Tensor) -> Interval:
    """Share of ones in `right` (n,), of zeros and ones, with Wilson's 95% score interval (1927); NaN for n = 0.

    A bootstrap of answers that are all right, or all wrong, is of no width: it would be sure after three of them.
    """
    n = len(right)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    share, z = right.double().mean().item(), 1.959964
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    low, high = ((middle + side) / (1 + z * z / n) for side in (-half, half))
    return Interval(share, max(low, 0.0), min(high, 1.0), n)


def paired_interval(ours: Tensor, theirs: Tensor) -> Interval:
    """Difference of two shares over the same examples, with Newcombe's 95% interval for pairs (1998, method 10).

    Like Wilson's, which it is made of, it has a width where both got all examples right or wrong.

    Args:
        ours: (n,) zeros and ones.
        theirs: (n,) of the same examples.
    """
    a, b, n = share_interval(ours), share_interval(theirs), len(ours)
    both = (ours * theirs).double().mean().item() if n else math.nan
    spread = math.sqrt(a.mean * (1 - a.mean) * b.mean * (1 - b.mean)) if n else math.nan
    shared = both - a.mean * b.mean
    shared = max(shared - 0.5 / n, 0.0) if shared > 0 else shared  # Newcombe's correction for continuity
    correlation = shared / spread if spread else 0.0

    def half(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * correlation * x * y + y * y, 0.0))

    gain = a.mean - b.mean
    return Interval(gain, gain - half(a.mean - a.low, b.high - b.mean), gain + half(a.high - a.mean, b.mean - b.low), n)


class PerExample(Metric):
    """Mean of one number per example, whatever sampler or number of devices brought the examples.

    `update` takes values and the examples' row numbers; a row seen twice (distributed samplers pad their last batch
    with repeats) counts once.

    Example:
        >>> metric = PerExample()
        >>> metric.update(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 1, 1]))
        >>> metric.compute().mean().item()
        0.5
    """

    full_state_update = False
    higher_is_better = True
    values: list[Tensor]
    rows: list[Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("values", default=[], dist_reduce_fx="cat")
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, values: Tensor, rows: Tensor) -> None:
        """Add values (n,) of the examples numbered `rows` (n,)."""
        if values.shape != rows.shape or values.dim() != 1:
            raise ValueError(f"expected values and rows of one shape (n,), found {values.shape} and {rows.shape}")
        self.values.append(values.float())
        self.rows.append(rows.to(torch.float32))  # as the empty tensor that stands in on a device without examples

    def compute(self) -> Tensor:
        """(n,) one value per example, in the order of their rows; their mean is the metric."""
        if len(self.rows) == 0:  # a list, or a tensor once devices are synchronised
            return torch.zeros(0)
        rows, values = dim_zero_cat(self.rows), dim_zero_cat(self.values)
        found, inverse = torch.unique(rows, return_inverse=True)
        out = values.new_zeros(len(found))
        out[inverse] = values
        return out
