"""What tells beforehand whether a transfer will help: similarity, cosine, or the gain on development examples.

    python experiments/cast_prediction.py --matrix results/cast_transfer_words.json --vectors results/cast_analysis.json

Reads the cells of `cast_transfer.py` and the tasks' cosines that `cast_analysis.py --parts vectors` kept. Prints, and
writes to --output, Spearman's rank correlation of each predictor with each gain over zero-shot, with 95% bootstrap
intervals over sources and targets, over all pairs, those of each matrix, and within targets; what the rule saves that
leaves the model alone where no gain is expected; then the vector against other methods over all pairs, by seed, by
target, by source and by the form of answers. A pair's seeds are taken together.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from cast_report import CONTROLS, seed_by_seed, where_the_model_knows
from crossed_bootstrap import crossed_weights
from numpy.typing import NDArray
from transfer_breakdown import by_form, by_source, by_target
from transfer_cells import FEWEST, WHOLE, Cell, Row, completed, has, paired, pooled, with_interval

from laai.files import write_atomically

Tables = Mapping[str, Mapping[tuple[str, str], float]]
RESULTS = Path(__file__).parent / "results"
GAINS = {"exact": "exact match", "choice": "forced choice", "nll": "log-likelihood per token"}
COSINES = {
    "matrix": "cosine of the vectors",
    "centred_matrix": "cosine, less the mean over tasks",
    "similarity": "similarity of zero-shot states",
}
DEVELOPMENT = "gain on development examples"


def main() -> None:
    """Read both files and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--matrix",
        type=Path,
        nargs="+",
        default=[RESULTS / f"cast_transfer_{suite}.json" for suite in ("words", "topics", "paper")],
    )
    parser.add_argument(
        "--vectors",
        type=Path,
        nargs="+",
        default=[RESULTS / f"cast_{name}.json" for name in ("analysis", "vectors_topics", "vectors_paper")],
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "cast_prediction.md")
    options = parser.parse_args()
    for path in (*options.matrix, *options.vectors):
        if not path.exists():
            parser.error(f"{path} is not there; make it by the script that {parser.prog} --help names")
    stems = [path.stem for path in options.matrix]
    named = {path.stem if stems.count(path.stem) == 1 else str(path): path for path in options.matrix}
    files = {name: json.loads(path.read_text()) for name, path in named.items()}
    cells = {name: completed(file["rows"]) for name, file in files.items()}
    facts = {name: {key: value for key, value in file.items() if key != "rows"} for name, file in files.items()}
    vectors = {path.stem: json.loads(path.read_text()) for path in options.vectors}
    models = {name: file.get("base_model") for name, file in (files | vectors).items()}
    if len(set(models.values())) > 1:
        parser.error(f"expected results of one model, found {', '.join(f'{n}: {m}' for n, m in models.items())}")
    rows = [row for file in vectors.values() for row in file["parts"].get("vectors", [])]
    facts |= {name: {key: value for key, value in file.items() if key != "parts"} for name, file in vectors.items()}
    text = report(cells, tables(rows), facts)
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


def report(matrices: Mapping[str, Sequence[Cell]], cosines: Tables, facts: Mapping[str, Row]) -> str:
    """The Markdown report, of each matrix' cells by source, target and seed, and the settings of all files by name."""
    by_matrix = {name: pooled(cells) for name, cells in matrices.items()}
    by_seed = [cell for own in matrices.values() for cell in own]
    cells = [cell for own in by_matrix.values() for cell in own]
    sources, targets = ({cell["cast"][side] for cell in cells} for side in ("source", "target"))
    out = ["# What predicts a transfer", ""]
    for name, settings in facts.items():
        about = [f"{key} {value}" for key, value in settings.items() if value is not None]
        if name in matrices:
            seeds = sorted({cell["cast"]["seed"] for cell in matrices[name]})
            about = [f"{len(by_matrix[name])} pairs, seeds {seeds}", *about]
        out.append(f"- {name}: {'; '.join(about)}")
    out += [
        "",
        f"{len(cells)} pairs of {len(sources)} sources and {len(targets)} targets. Spearman's rank correlation with",
    ]
    out += ["the gain over zero-shot, 95% bootstrap intervals over sources and targets (number of pairs):", ""]
    out += [f"| predictor | {' | '.join(GAINS.values())} |", "| --- |" + " ---: |" * len(GAINS)]
    out += correlations(by_matrix, cosines)
    out += ["", CONTROLS, "", "## The rule that refuses", ""]
    refused = [cell for cell in by_seed if not cell["cast"]["choice_of_place"]["helps"]]
    applied = [cell for cell in by_seed if cell["cast"]["choice_of_place"]["helps"]]
    out += ["Mean gain over zero-shot, by pair and seed; 95% intervals over sources, targets and queries (pairs):", ""]
    out += ["| cells | number | exact match | forced choice | cells that lose forced choice |"]
    out += ["| --- | ---: | ---: | ---: | ---: |"]
    for title, chosen in (("all", by_seed), ("applied", applied), ("refused", refused)):
        means = [paired(chosen, "cast", "zero-shot", measure) for measure in ("exact", "choice")]
        losses = [gain(cell, "choice") for cell in chosen]
        known = [loss for loss in losses if loss is not None]
        lost = f"{sum(loss < 0 for loss in known)} of {len(known)}"
        shown = " | ".join(map(with_interval, means))
        out.append(f"| {title} | {len(chosen)} | {shown} | {lost} |")
    saved = [
        f"{GAINS[measure]} {with_interval(paired(cells, 'cast, if it helps', 'cast', measure))}"
        for measure in ("exact", "choice")
    ]
    out += ["", f"What the rule saves over all pairs, `cast, if it helps` − `cast`: {', '.join(saved)}."]
    out += [*against(cells), *(["", *told] if (told := seed_by_seed(by_seed)) else [])]
    return "\n".join([*out, *by_target(cells), *by_source(cells), *by_form(cells)]) + "\n"


def correlations(matrices: Mapping[str, Sequence[Cell]], cosines: Tables) -> list[str]:
    """A line for each predictor over all pairs, those of each matrix, and within targets."""
    cells, out = [cell for own in matrices.values() for cell in own], []
    groups = [("", cells), *((f"the same, {name}", own) for name, own in matrices.items() if len(matrices) > 1)]
    for title in (*cosines, DEVELOPMENT):
        apart = title == COSINES["centred_matrix"] and len(matrices) > 1  # each file takes off a mean of its own
        for told, own in groups[1:] if apart else groups:
            gains = [[gain(cell, key) for cell in own] for key in GAINS]
            found = [_correlation(predicted(title, own, cosines), some, own) for some in gains]
            out.append(f"| {told.replace('the same', title) if apart else told or title} | {' | '.join(found)} |")
        within = [
            within_targets(predicted(title, cells, cosines), [gain(cell, key) for cell in cells], cells)
            for key in GAINS
        ]
        found = [_correlation(*some) for some in within]
        out.append(f"| the same, both less their means over a target's sources | {' | '.join(found)} |")
    return out


def predicted(title: str, cells: Sequence[Cell], cosines: Tables) -> list[float | None]:
    """What a predictor says of each pair; the gain on development examples is the mean over its seeds."""
    if title in cosines:
        return [cosines[title].get(_pair(cell)) for cell in cells]
    gains = [[place["gain"] for place in cell["cast"]["choice_of_place"]] for cell in cells]
    return [None if None in some else float(np.mean(some)) for some in gains]


def _pair(cell: Cell) -> tuple[str, str]:
    return cell["cast"]["source"], cell["cast"]["target"]


def within_targets(
    x: Sequence[float | None], y: Sequence[float | None], cells: Sequence[Cell]
) -> tuple[list[float], list[float], list[Cell]]:
    """Both less their means over each target's sources, where there are two or more: what tells sources apart."""
    known = [(a, b, cell) for a, b, cell in zip(x, y, cells, strict=True) if a is not None and b is not None]
    targets = [cell["cast"]["target"] for _, _, cell in known]
    table = np.array([(a, b) for a, b, _ in known]).reshape(-1, 2)
    for target in set(targets):
        own = np.array([one == target for one in targets])
        table[own] -= table[own].mean(axis=0) if own.sum() > 1 else np.nan
    table = table.round(12)  # equal values stay equal
    kept = [i for i, row in enumerate(table) if not np.isnan(row).any()]
    return table[kept, 0].tolist(), table[kept, 1].tolist(), [known[i][2] for i in kept]


def against(cells: Sequence[Cell]) -> list[str]:
    """Differences between the vector and other methods over the pairs that measured both."""
    out = ["", "## Against other methods, over all pairs", ""]
    out += ["Mean difference, 95% intervals over sources, targets and queries (number of pairs):", ""]
    out += ["| difference | exact match | forced choice |", "| --- | ---: | ---: |"]
    for method in ("cast", "cast, if it helps"):
        for other in ("zero-shot", "label prior", "random direction", "cross-task few-shot", WHOLE, "few-shot"):
            found = [paired(cells, method, other, measure) for measure in ("exact", "choice")]
            out.append(f"| {method} − {other} | {' | '.join(map(with_interval, found))} |")
    return [*out, "", *where_the_model_knows(cells)]


def gain(cell: Cell, measure: str) -> float | None:
    """Of the vector over zero-shot; None where it was not measured."""
    if not all(has(cell, method, measure) for method in ("cast", "zero-shot")):
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


def _correlation(x: Sequence[float | None], y: Sequence[float | None], cells: Sequence[Cell]) -> str:
    known = [(a, b, _pair(cell)) for a, b, cell in zip(x, y, cells, strict=True) if a is not None and b is not None]
    if len(known) < 4:
        return "-"
    value, low, high = correlation([a for a, _, _ in known], [b for _, b, _ in known], [pair for _, _, pair in known])
    if min(len(set(side)) for side in zip(*(pair for _, _, pair in known), strict=True)) < FEWEST:
        return f"{value:+.2f} ({len(known)} pairs)"
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f}; {len(known)})"


if __name__ == "__main__":
    main()
