"""The report of `cast_transfer.py`: means with intervals, one line for each pair, heat maps, a CSV table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transfer_cells import OURS, WHOLE, Cell, Cells, above_chance, completed, difference, has, mean, pair_of, pooled

from laai.compare import Options, Row, about, heat_map, number, picture, table
from laai.files import write_atomically

METHODS = (
    *("zero-shot", "few-shot", "few-shot, more labels", "label prior", "cross-task few-shot"),
    *("cast", "cast, if it helps", "cast, heads only", "cast, residual only", "random direction", "random samples"),
)
AGAINST = (
    *("zero-shot", "label prior", "cast, heads only", "cast, residual only"),
    *("random direction", "random samples", "cross-task few-shot", WHOLE, "few-shot", "few-shot, more labels"),
)
MEASURES = {"exact": "exact match", "choice": "forced choice", "calibrated": "calibrated forced choice"}
DRAWN = ("exact", "choice")
FORCED = """\
Forced choice is over the pairs whose target has choices, calibrated (each label's mean probability over the
queries taken off, which needs no label) over those whose queries all have the same ones.
"""
CONTROLS = (
    "`cast` rows hold the vector and, where there is one, its label prior; so does the gain on development examples. "
    "`label prior` is of the model without a vector, and has no row where there is none: differences "
    "from it are over the pairs that have it. The random direction is one draw at the layers, scale and norms that "
    "were chosen for CAST, with its own label prior; no place was searched for it. `cross-task few-shot` shows random "
    "examples of the source, as many as the vector has samples or, where those do not fit, fewer; `…, none left out` "
    "is over the pairs where they fit. `few-shot, more labels` shows the development examples too, as many as fit: "
    "labels of the target that `cast` chose its place on.\n\n"
    "A pair counts once, by the mean over its seeds' queries, of which tables with few examples have some in common. "
    "Intervals are over sources, targets and queries, none where there are fewer than three sources or targets; which "
    "seeds there are is held fixed."
)
"""What both reports say of the methods they compare."""


def report(rows: list[Row], facts: Row, options: Options | None = None) -> str:
    """The Markdown report, of rows by source, target, seed and method."""
    by_seed = completed(rows)
    seeds, cells = sorted({cell["cast"]["seed"] for cell in by_seed}), pooled(by_seed)
    out = ["# Cross-task transfer", "", f"{len(cells)} pairs of tasks (seeds {seeds}); {about(facts)}.", ""]
    out += table(["method", *MEASURES.values(), "NLL per answer token", "prompt tokens"], _means(cells))
    out += ["", FORCED, CONTROLS, ""]
    out += ["Differences, with 95% bootstrap intervals over sources, targets and queries (number of pairs):", ""]
    others = [other for other in AGAINST if any(other in cell for cell in cells)]
    out += table(["difference", *MEASURES.values()], differences(cells, OURS, others, MEASURES))
    out += ["", *held_to_options(cells), "", *where_the_model_knows(cells)]
    refused = sum(not cell["cast"]["choice_of_place"]["helps"] for cell in by_seed)
    of_seeds = "pairs" if len(seeds) == 1 else "pairs and seeds"
    out += ["", f"The rule left the model alone in {refused} of {len(by_seed)} {of_seeds}.", ""]
    return "\n".join([*out, *seed_by_seed(by_seed), *pairs(cells)]) + "\n"


def _means(cells: Cells) -> list[list[str]]:
    """A line for each method that was measured."""
    lines = []
    for method in METHODS:
        if own := [cell for cell in cells if method in cell]:
            some = "" if len(own) == len(cells) else f" ({len(own)} pairs)"
            means = [number(mean(own, method, measure)) for measure in MEASURES]
            more = [number(mean(own, method, name), digits) for name, digits in (("nll", 2), ("prompt_tokens", 0))]
            lines.append([f"{method}{some}", *means, *more])
    return lines


def differences(
    cells: Cells, methods: Sequence[str], others: Sequence[str], measures: Sequence[str] | Row
) -> list[list[str]]:
    """A line for each method and other, and a difference for each measure."""
    pairs = [(method, other) for method in methods for other in others]
    return [[f"{a} − {b}", *(difference(cells, a, b, measure) for measure in measures)] for a, b in pairs]


def seed_by_seed(cells: Cells) -> list[str]:
    """The main differences by seed, where there are several."""
    by_seed = {s: [c for c in cells if c["cast"]["seed"] == s] for s in sorted({c["cast"]["seed"] for c in cells})}
    if len(by_seed) < 2:
        return []
    columns = [(other, m) for other in ("zero-shot", "random direction", "cross-task few-shot") for m in DRAWN]
    head = ["seed", "pairs", *(f"− {other}, {MEASURES[measure]}" for other, measure in columns)]
    found = [[s, len(own), *(difference(own, "cast", *column) for column in columns)] for s, own in by_seed.items()]
    return ["Seed by seed, `cast` against others:", "", *table(head, found), ""]


def held_to_options(cells: Cells) -> list[str]:
    """CAST's exact match beside what decoding that can say nothing but options would give, with and without vectors.

    Taking the likeliest option repairs the form of answers without a vector: what is right then is what forced choice
    counts.
    """
    held = {m: f"{m}, held to options" for m in ("zero-shot", "label prior", "cast")}
    known = [
        cell | {new: cell[m] | {"exact": cell[m]["choice"]} for m, new in held.items() if has(cell, m, "choice")}
        for cell in cells
    ]
    known = [cell for cell in known if held["zero-shot"] in cell]
    if not known:
        return ["No target has options that decoding could be held to."]
    lines = []
    for method, name in held.items():
        if there := [cell for cell in known if name in cell]:
            means = [number(mean(there, one, "exact")) for one in (name, "cast")]
            lines.append([method, len(there), *means, difference(there, "cast", name, "exact")])
    out = [
        "Where there are options, taking the likeliest of them repairs the form of answers without a vector: it is\n"
        "right where forced choice is. Free decoding with the vector against that, over the same pairs:\n",
        *table(["held to options", "pairs", "exact match", "cast, free", "cast, free − held"], lines),
    ]
    if both := [cell for cell in known if {held["label prior"], held["cast"]} <= cell.keys()]:
        rise = difference(both, held["cast"], held["label prior"], "exact")
        out += ["", f"The vector adds {rise} to the label prior, both held to options."]
    return out


def where_the_model_knows(cells: Cells) -> list[str]:
    """Forced choice where there is knowledge to lose: over targets whose zero-shot forced choice is above chance."""
    known = [cell for cell in cells if above_chance(cell)]
    if not known:
        return ["Zero-shot forced choice is above chance, by its 95% interval, on no target."]
    targets = ", ".join(sorted({cell["cast"]["target"] for cell in known}))
    told = (
        f"Forced choice on targets where zero-shot is above chance by its 95% interval ({targets}; {len(known)} pairs)."
    )
    return [
        told,
        "The targets are selected by the queries that are scored here, on which zero-shot is therefore better than\n"
        "on others: regression to the mean pulls the differences down.\n",
        *table(["difference", "forced choice"], differences(known, (*OURS, "label prior"), ["zero-shot"], ["choice"])),
    ]


def pairs(cells: Cells) -> list[str]:
    """One line for each pair of `pooled` cells: exact match / forced choice of each method."""

    def shown(cell: Cell, method: str) -> str:
        if method not in cell:
            return "-"
        return f"{np.mean(cell[method]['exact']):.2f} / {number(mean([cell], method, 'choice'), 2)}"

    lines = []
    for cell in sorted(cells, key=lambda cell: pair_of(cell)[::-1]):
        places = "; ".join(map(_place, cell["cast"]["choice_of_place"]))
        lines.append([" → ".join(pair_of(cell)), *(shown(cell, method) for method in METHODS), places])
    head = ["source → target", *METHODS, "layers, scale, site; by seed"]
    return table(head, lines, align="l" * len(head))


def _place(choice: Row) -> str:
    first, last = choice["layers"][0], choice["layers"][-1]
    where = f"{first}-{last}, {choice['scale']:g}" if last > first else f"{first}, {choice['scale']:g}"
    return where + (f", {choice['site']}" if choice.get("site") else "")


def beside(rows: list[Row], facts: Row, options: Options) -> None:
    """The CSV table and the heat maps."""
    cells, path = completed(rows), options.json
    write_atomically(path.with_suffix(".csv"), lambda file: file.write_text(as_csv(cells), encoding="utf-8"))
    draw(pooled(cells), path.with_suffix(".png"))


def as_csv(cells: Cells) -> str:
    """All rows as CSV."""
    keys = ["source", "target", "seed", "method", "exact_match", "exact_match_low", "exact_match_high"]
    keys += ["choice_accuracy", "choice_accuracy_low", "choice_accuracy_high", "nll", "n", "prompt_tokens"]
    file = io.StringIO()
    writer = csv.DictWriter(file, keys, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for cell in cells:
        writer.writerows(cell[method] for method in METHODS if method in cell)
    return file.getvalue()


def draw(pairs: Cells, path: Path) -> None:
    """Gains over zero-shot by source and target: of the vector and of the random control, in both measures."""
    cells = {pair_of(cell): [cell] for cell in pairs}
    sources, targets = (sorted(set(side)) for side in zip(*cells, strict=True))
    panels = [(method, measure) for measure in DRAWN for method in ("cast", "random direction")]
    size = 2 * (2.6 + 0.85 * len(targets)), 2 * (1.6 + 0.42 * len(sources))
    with picture(path, size, 2, 2, sharex=True, sharey=True) as axes:
        for axis, (method, measure) in zip(axes.flat, panels, strict=True):
            gains = [
                [mean(own, method, measure) - mean(own, "zero-shot", measure) for own in line]
                for line in [[cells.get((source, target), []) for target in targets] for source in sources]
            ]
            title = f"{method}: {MEASURES[measure]} against zero-shot"
            how: dict[str, Any] = {"cmap": "RdBu", "vmin": -0.5, "vmax": 0.5, "numbers": "+.2f"}
            image = heat_map(axis, np.array(gains), sources, targets, title=title, **how)
        for axis in axes[1]:
            axis.set_xlabel("target")
        for axis in axes[:, 0]:
            axis.set_ylabel("source")
        axes[0, 0].figure.colorbar(image, ax=axes, shrink=0.6, label="gain")
