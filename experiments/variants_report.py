"""The table of `cast_analysis.py` of what is added and how: kinds of vector beside the plain difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis_cells import Cell, cells, difference, mean, over

Row = dict[str, Any]
NO_PRIOR = ("ridge", "norm kept", "generated")
"""Variants that cannot have a label prior: like is compared with like."""


def variants(rows: Sequence[Row]) -> list[str]:
    """Exact match by kind of vector."""
    out, whole = ["## What is added, and how", "", over(rows), ""], cells(rows, "exact")
    sources = sorted({s for r in rows for s in r.get("sources", [])}) or sorted({r["source"] for r in rows})
    told = {
        "mean of tasks": f"is the mean over the vectors of {', '.join(sources)} (less a pair's target)",
        "centred": "is the vector less the mean of tasks, and so less a share of itself",
        "ridge": "adds what a map makes of each query's own state, at the place of `difference`",
        "no label prior": "is at the place of `difference`",
        "generated": "steers the tokens of the answer too",
        "scale by layer": "goes on from the place of `difference` to a scale for each sixth of the depth",
    }
    names = list(dict.fromkeys(r["variant"] for r in rows))
    notes = [f"`{name}` {note}" for name, note in told.items() if name in names]
    if bare := [f"`{name}`" for name in NO_PRIOR if name in names]:
        notes.append(f"without a label prior, and compared with a difference that has none either: {', '.join(bare)}")
    out += ["; ".join([*notes, "forced choice is over targets with options."]), ""]
    heads = ["vector", "exact match", "− difference", "− zero-shot", "forced choice", "− difference", "− zero-shot"]
    out += [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * 6]
    known = [r for r in rows if r.get("choice") is not None]
    all_known = cells(known, "choice")
    for name in names:
        exact, plain = cells(rows, "exact", variant=name), _alike(rows, "exact", name)
        against = "" if name == "difference" else difference(exact, plain)
        zero = difference(exact, cells(rows, "zero", variant=name))
        choice, plain = cells(known, "choice", variant=name), _alike(known, "choice", name)
        shown = "" if name == "difference" else difference(choice, plain)
        shown = f"{mean(choice, all_known)} | {shown} | {difference(choice, cells(known, 'zero_choice', variant=name))}"
        out.append(f"| {name} | {mean(exact, whole)} | {against} | {zero} | {shown} |")
    return out


def _alike(rows: Sequence[Row], measure: str, variant: str) -> dict[Cell, float]:
    """Of the plain difference, for a variant that can have no label prior without one."""
    if variant not in NO_PRIOR:
        return cells(rows, measure, variant="difference")
    bare = [r for r in rows if not r["place"].get("label_prior")]
    return cells(bare, measure, variant="difference") | cells(rows, measure, variant="no label prior")
