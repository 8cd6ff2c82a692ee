"""What tells beforehand whether a transfer will help: similarity, cosine, or the gain on development examples.

    python experiments/cast_prediction.py --matrix results/cast_transfer_words.json --vectors results/cast_analysis.json

Reads the cells of `cast_transfer.py` and the tasks' cosines that `cast_analysis.py --parts vectors` kept. Prints, and
writes to --output, Spearman's rank correlation of each predictor with each gain over zero-shot, with 95% bootstrap
intervals over sources and targets, and what the rule saves that leaves the model alone where no gain is expected; then
the vector against other methods over all pairs, by target, by source and by the form of answers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cast_report import CONTROLS, completed, has, paired, where_the_model_knows, with_interval
from crossed_bootstrap import crossed_weights
from numpy.typing import NDArray
from transfer_breakdown import by_form, by_source, by_target

from laai.files import write_atomically

Row = dict[str, Any]
Tables = Mapping[str, Mapping[tuple[str, str], float]]
RESULTS = Path(__file__).parent / "results"
GAINS = {"exact": "exact match", "choice": "forced choice", "nll": "log-likelihood per token"}
COSINES = {
    "matrix": "cosine of the vectors",
    "centred_matrix": "cosine, less the mean over tasks",
    "similarity": "similarity of zero-shot states",
}


def main() -> None:
    """Read both files and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--matrix",
        type=Path,
        nargs="+",
        default=[RESULTS / f"cast_transfer_{suite}.json" for suite in ("words", "topics", "paper")],
    )
    parser.add_argument("--vectors", type=Path, nargs="+", default=[RESULTS / "cast_analysis.json"])
    parser.add_argument("--output", type=Path, default=RESULTS / "cast_prediction.md")
    options = parser.parse_args()
    for path in (*options.matrix, *options.vectors):
        if not path.exists():
            parser.error(f"{path} is not there; make it by the script that {parser.prog} --help names")
    cells = [cell for path in options.matrix for cell in completed(json.loads(path.read_text())["rows"])]
    rows = [row for path in options.vectors for row in json.loads(path.read_text())["parts"].get("vectors", [])]
    text = report(cells, tables(rows))
    write_atomically(options.output, lambda file: file.write_text(text))
    print(text)


def tables(rows: Sequence[Row]) -> Tables:
    """Predictor -> (source, target) -> cosine."""
    found: dict[str, dict[tuple[str, str], float]] = {title: {} for title in COSINES.values()}
    for row in rows:
        for key, title in COSINES.items():
            for i, source in enumerate(row["names"]):
                found[title] |= {(source, target): row[key][i][j] for j, target in enumerate(row["names"])}
    return found


def report(cells: Sequence[dict[str, Row]], cosines: Tables) -> str:
    """The Markdown report."""
    sources, targets = ({cell["cast"][side] for cell in cells} for side in ("source", "target"))
    out = ["# What predicts a transfer", ""]
    out += [
        f"{len(cells)} pairs of {len(sources)} sources and {len(targets)} targets. Spearman's rank correlation with"
    ]
    out += ["the gain over zero-shot, 95% bootstrap intervals over sources and targets (number of pairs):", ""]
    out += [f"| predictor | {' | '.join(GAINS.values())} |", "| --- |" + " ---: |" * len(GAINS)]
    predictors = {
        title: [table.get((c["cast"]["source"], c["cast"]["target"])) for c in cells]
        for title, table in cosines.items()
    }
    predictors["gain on development examples"] = [c["cast"]["choice_of_place"]["gain"] for c in cells]
    for title, values in predictors.items():
        found = " | ".join(_correlation(values, [gain(cell, key) for cell in cells], cells) for key in GAINS)
        out.append(f"| {title} | {found} |")
    out += ["", CONTROLS, "", "## The rule that refuses", ""]
    refused = [cell for cell in cells if not cell["cast"]["choice_of_place"]["helps"]]
    applied = [cell for cell in cells if cell["cast"]["choice_of_place"]["helps"]]
    out += ["Mean gain over zero-shot, 95% intervals over sources, targets and queries:", ""]
    out += ["| pairs | number | exact match | forced choice | pairs that lose forced choice |"]
    out += ["| --- | ---: | ---: | ---: | ---: |"]
    for title, chosen in (("all", cells), ("applied", applied), ("refused", refused)):
        means = [paired(chosen, "cast", "zero-shot", measure) for measure in ("exact", "choice")]
        losses = [gain(cell, "choice") for cell in chosen]
        known = [loss for loss in losses if loss is not None]
        lost = f"{sum(loss < 0 for loss in known)} of {len(known)}"
        shown = " | ".join("-" if not m.pairs else f"{m.mean:+.3f} ({m.low:+.3f} to {m.high:+.3f})" for m in means)
        out.append(f"| {title} | {len(chosen)} | {shown} | {lost} |")
    saved = [
        f"{GAINS[measure]} {with_interval(paired(cells, 'cast, if it helps', 'cast', measure))}"
        for measure in ("exact", "choice")
    ]
    out += ["", f"What the rule saves over all pairs, `cast, if it helps` − `cast`: {', '.join(saved)}."]
    return "\n".join([*out, *against(cells), *by_target(cells), *by_source(cells), *by_form(cells)]) + "\n"


def against(cells: Sequence[dict[str, Row]]) -> list[str]:
    """Differences between the vector and other methods over the pairs that measured both."""
    out = ["", "## Against other methods, over all pairs", ""]
    out += ["Mean difference, 95% intervals over sources, targets and queries (number of pairs):", ""]
    out += ["| difference | exact match | forced choice |", "| --- | ---: | ---: |"]
    for method in ("cast", "cast, if it helps"):
        for other in ("zero-shot", "label prior", "random direction", "cross-task few-shot", "few-shot"):
            found = [paired(cells, method, other, measure) for measure in ("exact", "choice")]
            out.append(f"| {method} − {other} | {' | '.join(map(with_interval, found))} |")
    return [*out, "", *where_the_model_knows(cells)]


def gain(cell: Mapping[str, Row], measure: str) -> float | None:
    """Of the vector over zero-shot; None where it was not measured."""
    if not all(has(dict(cell), method, measure) for method in ("cast", "zero-shot")):
        return None
    if measure == "nll":
        return float(cell["zero-shot"]["nll"] - cell["cast"]["nll"])
    return float(np.mean(cell["cast"][measure]) - np.mean(cell["zero-shot"][measure]))


def correlation(x: Sequence[float], y: Sequence[float], pairs: Sequence[tuple[str, str]]) -> tuple[float, float, float]:
    """Spearman's rank correlation over (source, target) pairs, its 95% bootstrap interval over sources and targets."""
    once = np.ones((1, len(x)), dtype=np.int64)
    value = float(spearman(x, y, once)[0])
    if np.isnan(value):
        return value, value, value
    low, high = np.nanquantile(spearman(x, y, crossed_weights(pairs, np.random.default_rng(0))), [0.025, 0.975])
    return value, float(low), float(high)


def spearman(x: Sequence[float], y: Sequence[float], times: NDArray[np.int64]) -> NDArray[np.float64]:
    """Spearman's rank correlation of data in which each point stands so many times, for each row of `times`.

    NaN where all that is left of x or of y is alike: there is no order to speak of.
    """
    total = times.sum(axis=1, keepdims=True).clip(1)
    centred = []
    for values in (x, y):
        known, place = np.unique(values, return_inverse=True)
        counts = times @ np.eye(len(known), dtype=np.int64)[place]  # of each value, in their order
        ranks = (counts.cumsum(axis=1) - (counts - 1) / 2)[:, place]  # equal values share their mean rank
        centred.append(ranks - (times * ranks).sum(axis=1, keepdims=True) / total)
    a, b = centred
    product = (times * a * a).sum(axis=1) * (times * b * b).sum(axis=1)
    found: NDArray[np.float64] = (times * a * b).sum(axis=1) / np.sqrt(np.where(product > 1e-12, product, np.nan))
    return found


def _correlation(x: Sequence[float | None], y: Sequence[float | None], cells: Sequence[Mapping[str, Row]]) -> str:
    known = [
        (a, b, (cell["cast"]["source"], cell["cast"]["target"]))
        for a, b, cell in zip(x, y, cells, strict=True)
        if a is not None and b is not None
    ]
    if len(known) < 4:
        return "-"
    value, low, high = correlation([a for a, _, _ in known], [b for _, b, _ in known], [pair for _, _, pair in known])
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f}; {len(known)})"


if __name__ == "__main__":
    main()
