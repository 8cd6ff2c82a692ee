"""What `laai transfer` says of what it found, in lines."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cast.transfers.choice import FEWEST, Placement
from laai.evaluation import Evaluation, paired_interval
from laai.steering import Provenance


def read_from(provenance: Provenance) -> str:
    """How many source samples a vector was made from, and how many labels: those of their demonstrations."""
    made = provenance.cast or {}
    samples, labels = zip(*((part["samples"], part["labels"]) for part in made.get("combined", [made])), strict=True)
    return f"{' + '.join(map(str, samples))} source samples, {' + '.join(map(str, labels))} labels"


def against(evaluations: Sequence[Evaluation]) -> list[str]:
    """A line for each other method: what `cast` gains over it on the same queries, with 95% intervals (Newcombe's)."""
    answers = {evaluation.arm.name: evaluation.answers for evaluation in evaluations}
    ours, lines = answers.pop("cast"), []
    for name, theirs in answers.items():
        parts = []
        for what, title in (("exact", "exact match"), ("choice", "forced choice")):
            pairs = [(a, b) for a, b in zip(ours[what], theirs[what], strict=True) if a is not None and b is not None]
            if pairs:
                gain = paired_interval(*torch.tensor(pairs, dtype=torch.float32).T)
                parts.append(f"{title} {gain.mean:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})")
        lines.append(f"cast - {name}: {', '.join(parts)}")
    return lines


def said_of(placement: Placement, chosen_on: str) -> str:
    """One line: where a vector goes and what it did to the examples that it was chosen on, or that it goes nowhere."""
    examples = f"{placement.examples} examples of the {chosen_on}"
    if not placement.scale:
        return f"no vector: at every place and scale right answers got no likelier, or lost to others, on {examples}"
    first, last = placement.layers[0], placement.layers[-1]
    layers = f"layer {first}" if first == last else f"layers {first} to {last}"
    layers += f" at {placement.site}" if placement.site else ""
    interval = f"{placement.gain:+.3f}, {placement.gain_low:+.3f} to {placement.gain_high:+.3f}"
    among = "" if placement.choice_gain is None else f"; among the options {placement.choice_gain:+.3f}"
    return (
        f"{layers}, scale {placement.scale:g}, chosen on {examples} (probability of the right answer {interval}{among})"
    )


def refusal(placement: Placement, wanted: bool) -> str:
    """What a refused vector comes to, in a line; none where `said_of` has said all.

    Args:
        placement: that does not help.
        wanted: a file was asked for.
    """
    if not placement.scale:
        return "not written: there is no vector" if wanted else ""
    done, cure = ("not applied and not written", "does both") if wanted else ("not applied", "applies it")
    why = "on those examples the vector did not help enough"
    if placement.examples < FEWEST:
        why = f"gains on fewer than {FEWEST} examples are not believed; give --development more"
    return f"{done}: {why} (--always {cure})"
