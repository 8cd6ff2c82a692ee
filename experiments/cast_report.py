"""The report of `cast_transfer.py`: means with intervals, one line for each pair, heat maps, a CSV table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transfer_cells import WHOLE, Cell, Row, above_chance, completed, has, mean, paired, pooled, with_interval

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


def write_report(rows: list[Row], facts: Row, path: Path) -> str:
    """Write PATH.md, PATH.csv and PATH.png beside the JSON file; returns the report."""
    cells = completed(rows)
    text = report(cells, facts)
    write_atomically(path.with_suffix(".md"), lambda file: file.write_text(text))
    write_atomically(path.with_suffix(".csv"), lambda file: file.write_text(table(cells)))
    draw(pooled(cells), path.with_suffix(".png"))
    return text


def report(by_seed: Sequence[Cell], facts: Row) -> str:
    """The Markdown report, of cells by source, target and seed."""
    about = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    seeds, cells = sorted({cell["cast"]["seed"] for cell in by_seed}), pooled(by_seed)
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
    refused = sum(not cell["cast"]["choice_of_place"]["helps"] for cell in by_seed)
    of_seeds = "pairs" if len(seeds) == 1 else "pairs and seeds"
    out += ["", f"The rule left the model alone in {refused} of {len(by_seed)} {of_seeds}.", ""]
    return "\n".join([*out, *seed_by_seed(by_seed), *pairs(cells)]) + "\n"


def seed_by_seed(cells: Sequence[Cell]) -> list[str]:
    """The main differences by seed, where there are several."""
    seeds = sorted({cell["cast"]["seed"] for cell in cells})
    if len(seeds) < 2:
        return []
    others = ("zero-shot", "random direction", "cross-task few-shot")
    heads = [f"− {other}, {MEASURES[measure]}" for other in others for measure in DRAWN]
    out = ["Seed by seed, `cast` against others:", "", f"| seed | pairs | {' | '.join(heads)} |"]
    out.append("| --- |" + " ---: |" * (len(heads) + 1))
    for seed in seeds:
        own = [cell for cell in cells if cell["cast"]["seed"] == seed]
        found = [with_interval(paired(own, "cast", other, measure)) for other in others for measure in DRAWN]
        out.append(f"| {seed} | {len(own)} | {' | '.join(found)} |")
    return [*out, ""]


def held_to_options(cells: Sequence[Cell]) -> list[str]:
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


def where_the_model_knows(cells: Sequence[Cell]) -> list[str]:
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


def pairs(cells: list[Cell]) -> list[str]:
    """One line for each pair of `pooled` cells: exact match / forced choice of each method."""
    out = [
        "| source → target | " + " | ".join(METHODS) + " | layers, scale, site; by seed |",
        "| --- " * (len(METHODS) + 2) + "|",
    ]
    for cell in sorted(cells, key=lambda c: (c["cast"]["target"], c["cast"]["source"])):
        numbers = [
            f"{np.mean(cell[m]['exact']):.2f} / {_number(mean([cell], m, 'choice'), 2)}" if m in cell else "-"
            for m in METHODS
        ]
        where = "; ".join(map(_place, cell["cast"]["choice_of_place"]))
        out.append(f"| {cell['cast']['source']} → {cell['cast']['target']} | {' | '.join(numbers)} | {where} |")
    return out


def _place(choice: Row) -> str:
    first, last = choice["layers"][0], choice["layers"][-1]
    where = f"{first}-{last}, {choice['scale']:g}" if last > first else f"{first}, {choice['scale']:g}"
    return where + (f", {choice['site']}" if choice.get("site") else "")


def table(cells: list[Cell]) -> str:
    """All rows as CSV."""
    keys = ["source", "target", "seed", "method", "exact_match", "exact_match_low", "exact_match_high"]
    keys += ["choice_accuracy", "choice_accuracy_low", "choice_accuracy_high", "nll", "n", "prompt_tokens"]
    file = io.StringIO()
    writer = csv.DictWriter(file, keys, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for cell in cells:
        writer.writerows(cell[method] for method in METHODS if method in cell)
    return file.getvalue()


def draw(cells: list[Cell], path: Path) -> None:
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


def _number(value: float, digits: int = 3) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"
