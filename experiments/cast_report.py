"""The report of `cast_transfer.py`: means with intervals, one line for each pair, heat maps, a CSV table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from crossed_bootstrap import RESAMPLES, crossed_weights

from laai.files import write_atomically

Row = dict[str, Any]
OWN = ("zero-shot", "few-shot", "label prior")
METHODS = (
    *("zero-shot", "few-shot", "label prior", "cross-task few-shot"),
    *("cast", "cast, if it helps", "cast, heads only", "cast, residual only", "random direction", "random samples"),
)
AGAINST = (
    *("zero-shot", "label prior", "cast, heads only", "cast, residual only"),
    *("random direction", "random samples", "cross-task few-shot", "few-shot"),
)
MEASURES = {"exact": "exact match", "choice": "forced choice", "calibrated": "calibrated forced choice"}
DRAWN = ("exact", "choice")
CONTROLS = (
    "`cast` rows hold the vector and, where there is one, its label prior; so does the gain on development examples. "
    "`label prior` is of the model without a vector, and has no row where there is none: differences "
    "from it are over the pairs that have it. The random direction is one draw at the layers, scale and norms that "
    "were chosen for CAST, with its own label prior; no place was searched for it."
)
"""What both reports say of the methods they compare."""


class Paired(NamedTuple):
    """A mean difference over pairs of tasks, with its 95% bootstrap interval over sources, targets and queries."""

    mean: float
    low: float
    high: float
    pairs: int


def write_report(rows: list[Row], facts: Row, path: Path) -> str:
    """Write PATH.md, PATH.csv and PATH.png beside the JSON file; returns the report."""
    cells = completed(rows)
    text = report(cells, facts)
    write_atomically(path.with_suffix(".md"), lambda file: file.write_text(text))
    write_atomically(path.with_suffix(".csv"), lambda file: file.write_text(table(cells)))
    draw(cells, path.with_suffix(".png"))
    return text


def at_site(site: str) -> str:
    """The method that chooses among places of one site alone."""
    return f"cast, {site} only"


def completed(rows: list[Row]) -> list[dict[str, Row]]:
    """One dictionary (method -> row) for each cell, with the target's own rows and the refusal rule in it."""
    own = {(r["target"], r["seed"], r["method"]): r for r in rows if r["source"] is None}
    cells: dict[tuple[str, str, int], dict[str, Row]] = {}
    for row in rows:
        if row["source"] is not None:
            cells.setdefault((row["source"], row["target"], row["seed"]), {})[row["method"]] = row
    for (source, target, seed), cell in cells.items():
        for method in OWN:
            if (target, seed, method) in own:
                cell[method] = own[target, seed, method] | {"source": source}
        helps = cell["cast"]["choice_of_place"]["helps"]
        cell["cast, if it helps"] = cell["cast" if helps else "zero-shot"] | {"method": "cast, if it helps"}
    return list(cells.values())


def paired(cells: Sequence[dict[str, Row]], a: str, b: str, measure: str) -> Paired:
    """Mean of a - b over cells, each the mean over its queries; sources, targets and their queries are resampled."""
    rng = np.random.default_rng(0)
    known = [cell for cell in cells if has(cell, a, measure) and has(cell, b, measure)]
    if not known:
        return Paired(float("nan"), float("nan"), float("nan"), 0)
    differences = [np.array(cell[a][measure], dtype=float) - np.array(cell[b][measure]) for cell in known]
    tested = [(cell["cast"]["target"], cell["cast"]["seed"]) for cell in known]  # cells that share their queries
    draws = {
        test: rng.integers(len(d), size=(RESAMPLES, len(d)))
        for test, d in dict(zip(tested, differences, strict=True)).items()
    }
    means = np.stack([d[draws[test]].mean(axis=1) for test, d in zip(tested, differences, strict=True)], axis=1)
    weights = crossed_weights([(cell["cast"]["source"], cell["cast"]["target"]) for cell in known], rng)
    some = weights.sum(axis=1) > 0
    totals = (weights * means).sum(axis=1)[some] / weights.sum(axis=1)[some]
    low, high = np.quantile(totals, [0.025, 0.975])
    return Paired(float(np.mean([d.mean() for d in differences])), float(low), float(high), len(known))


def mean(cells: Sequence[dict[str, Row]], method: str, measure: str) -> float:
    """Mean over the cells that have it; a number for a cell, or one for each of its queries."""
    values = [np.mean(c[method][measure]) for c in cells if has(c, method, measure)]
    return float(np.mean(values)) if values else float("nan")


def has(cell: dict[str, Row], method: str, measure: str) -> bool:
    """Whether a cell measured this: not all tasks have choices, and not all have the same for all queries."""
    found = cell[method].get(measure) if method in cell else None
    return (found[0] if isinstance(found, list) else found) is not None


def report(cells: list[dict[str, Row]], facts: Row) -> str:
    """The Markdown report."""
    about = ", ".join(f"{name} {value}" for name, value in facts.items())
    seeds = sorted({cell["cast"]["seed"] for cell in cells})
    out = ["# Cross-task transfer", "", f"{len(cells)} pairs of tasks (seeds {seeds}); {about}.", ""]
    out += [
        f"| method | {' | '.join(MEASURES.values())} | NLL per answer token | prompt tokens |",
        "| --- |" + " ---: |" * (len(MEASURES) + 2),
    ]
    for method in METHODS:
        if having := [cell for cell in cells if method in cell]:
            nll, tokens = (_number(mean(having, method, k), digits) for k, digits in (("nll", 2), ("prompt_tokens", 0)))
            means = " | ".join(_number(mean(having, method, measure)) for measure in MEASURES)
            some = "" if len(having) == len(cells) else f" ({len(having)} pairs)"
            out.append(f"| {method}{some} | {means} | {nll} | {tokens} |")
    out += [
        "",
        "Forced choice is over the pairs whose target has choices, calibrated (each label's mean probability over the",
    ]
    out += ["queries taken off, which needs no label) over those whose queries all have the same ones.", ""]
    out += [CONTROLS, ""]
    out += ["Differences, with 95% bootstrap intervals over sources, targets and queries (number of pairs):", ""]
    out += [f"| difference | {' | '.join(MEASURES.values())} |", "| --- |" + " ---: |" * len(MEASURES)]
    for method in ("cast", "cast, if it helps"):
        for other in (one for one in AGAINST if any(one in cell for cell in cells)):
            found = " | ".join(with_interval(paired(cells, method, other, measure)) for measure in MEASURES)
            out.append(f"| {method} − {other} | {found} |")
    out += ["", *held_to_options(cells), "", *where_the_model_knows(cells)]
    refused = sum(not cell["cast"]["choice_of_place"]["helps"] for cell in cells)
    out += ["", f"The rule left the model alone in {refused} of {len(cells)} pairs.", "", *pairs(cells)]
    return "\n".join(out) + "\n"


def held_to_options(cells: Sequence[dict[str, Row]]) -> list[str]:
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
    out = ["Where there are options, taking the likeliest of them repairs the form of answers without a vector: it is"]
    out += ["right where forced choice is. Free decoding with the vector against that, over the same pairs:", ""]
    out += ["| held to options | pairs | exact match | cast, free | cast, free − held |", "| --- |" + " ---: |" * 4]
    for method, name in held.items():
        if there := [cell for cell in known if name in cell]:
            means = " | ".join(_number(mean(there, one, "exact")) for one in (name, "cast"))
            out.append(f"| {method} | {len(there)} | {means} | {with_interval(paired(there, 'cast', name, 'exact'))} |")
    if both := [cell for cell in known if {held["label prior"], held["cast"]} <= cell.keys()]:
        rise = with_interval(paired(both, held["cast"], held["label prior"], "exact"))
        out += ["", f"The vector adds {rise} to the label prior, both held to options."]
    return out


def above_chance(cell: dict[str, Row]) -> bool:
    """Whether a target's zero-shot forced choice is above chance by its 95% interval; no where chance is unknown."""
    if not has(cell, "zero-shot", "choice"):
        return False
    return bool(cell["zero-shot"]["choice_accuracy_low"] > (cell["cast"].get("chance") or 1))


def where_the_model_knows(cells: Sequence[dict[str, Row]]) -> list[str]:
    """Forced choice where there is knowledge to lose: over targets whose zero-shot forced choice is above chance."""
    known = [cell for cell in cells if above_chance(cell)]
    if not known:
        return ["Zero-shot forced choice is above chance, by its 95% interval, on no target."]
    targets = ", ".join(sorted({cell["cast"]["target"] for cell in known}))
    out = [
        f"Forced choice on targets where zero-shot is above chance by its 95% interval ({targets}; {len(known)} pairs)."
    ]
    out += ["The targets are selected by the queries that are scored here, on which zero-shot is therefore better than"]
    out += ["on others: regression to the mean pulls the differences down.", ""]
    out += ["| difference | forced choice |", "| --- | ---: |"]
    for method in ("cast", "cast, if it helps", "label prior"):
        out.append(f"| {method} − zero-shot | {with_interval(paired(known, method, 'zero-shot', 'choice'))} |")
    return out


def pairs(cells: list[dict[str, Row]]) -> list[str]:
    """One line for each pair: exact match / forced choice of each method."""
    out = [
        "| source → target | " + " | ".join(METHODS) + " | layers, scale, site |",
        "| --- " * (len(METHODS) + 2) + "|",
    ]
    for cell in sorted(cells, key=lambda c: (c["cast"]["target"], c["cast"]["source"], c["cast"]["seed"])):
        numbers = [
            f"{np.mean(cell[m]['exact']):.2f} / {_number(mean([cell], m, 'choice'), 2)}" if m in cell else "-"
            for m in METHODS
        ]
        place = cell["cast"]["choice_of_place"]
        first, last = place["layers"][0], place["layers"][-1]
        where = f"{first}-{last}, {place['scale']:g}" if last > first else f"{first}, {place['scale']:g}"
        where += f", {place['site']}" if place.get("site") else ""
        out.append(f"| {cell['cast']['source']} → {cell['cast']['target']} | {' | '.join(numbers)} | {where} |")
    return out


def table(cells: list[dict[str, Row]]) -> str:
    """All rows as CSV."""
    keys = ["source", "target", "seed", "method", "exact_match", "exact_match_low", "exact_match_high"]
    keys += ["choice_accuracy", "choice_accuracy_low", "choice_accuracy_high", "nll", "n", "prompt_tokens"]
    file = io.StringIO()
    writer = csv.DictWriter(file, keys, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for cell in cells:
        writer.writerows(cell[method] for method in METHODS if method in cell)
    return file.getvalue()


def draw(cells: list[dict[str, Row]], path: Path) -> None:
    """Gains over zero-shot by source and target: of the vector and of the random control, in both measures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sources = sorted({cell["cast"]["source"] for cell in cells})
    targets = sorted({cell["cast"]["target"] for cell in cells})
    panels = [(method, measure) for measure in DRAWN for method in ("cast", "random direction")]
    width, height = 2.6 + 0.85 * len(targets), 1.6 + 0.42 * len(sources)
    figure, axes = pyplot.subplots(
        2, 2, figsize=(2 * width, 2 * height), layout="constrained", sharex=True, sharey=True
    )
    for axis, (method, measure) in zip(axes.flat, panels, strict=True):
        grid = np.full((len(sources), len(targets)), np.nan)
        for i, source in enumerate(sources):
            for j, target in enumerate(targets):
                own = [c for c in cells if (c["cast"]["source"], c["cast"]["target"]) == (source, target)]
                grid[i, j] = mean(own, method, measure) - mean(own, "zero-shot", measure) if own else np.nan
        image = axis.imshow(grid, cmap="RdBu", vmin=-0.5, vmax=0.5, aspect="auto")
        for i, j in np.argwhere(~np.isnan(grid)):
            colour = "white" if abs(grid[i, j]) > 0.3 else "black"
            axis.text(j, i, f"{grid[i, j]:+.2f}", ha="center", va="center", fontsize=8, color=colour)
        axis.set_title(f"{method}: {MEASURES[measure]} against zero-shot", fontsize=10)
        axis.set_xticks(range(len(targets)), targets, rotation=30, ha="right", fontsize=8)
        axis.set_yticks(range(len(sources)), sources, fontsize=8)
        axis.spines[:].set_visible(False)
    axes[1, 0].set_xlabel("target")
    axes[1, 1].set_xlabel("target")
    axes[0, 0].set_ylabel("source")
    axes[1, 0].set_ylabel("source")
    figure.colorbar(image, ax=axes, shrink=0.6, label="gain")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def with_interval(found: Paired) -> str:
    """A difference as the reports show it."""
    if not found.pairs:
        return "-"
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f}; {found.pairs})"


def _number(value: float, digits: int = 3) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"
