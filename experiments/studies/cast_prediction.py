"""What tells beforehand whether a transfer will help: similarity, cosine, or the gain on development examples.

    python experiments/studies/cast_prediction.py --matrix cast_transfer_words.json --vectors cast_analysis.json

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
from typing import Any

import numpy as np
from transfer_breakdown import by_form, by_source, by_target
from transfer_cells import FEWEST, OURS, WHOLE, Cell, Cells, completed, difference, has, pair_of, pooled
from transfer_report import CONTROLS, DRAWN, differences, seed_by_seed, where_the_model_knows

from laai.compare import Row, about, counted, rank_correlation, signed, table
from laai.errors import UserError, ends_in_one_line
from laai.files import write_atomically

Tables = Mapping[str, Mapping[tuple[str, str], float]]
Values = Sequence[float | None]
RESULTS = Path(__file__).parents[1] / "results"
GAINS = {"exact": "exact match", "choice": "forced choice", "nll": "log-likelihood per token"}
COSINES = {
    "matrix": "cosine of the vectors",
    "centred_matrix": "cosine, less the mean over tasks",
    "similarity": "similarity of zero-shot states",
}
DEVELOPMENT = "gain on development examples"


@ends_in_one_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Read the files and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    suites, vectors = ("words", "topics", "paper"), ("analysis", "vectors_topics", "vectors_paper")
    several: dict[str, Any] = {"type": Path, "nargs": "+"}
    parser.add_argument("--matrix", **several, default=[RESULTS / f"cast_transfer_{suite}.json" for suite in suites])
    parser.add_argument("--vectors", **several, default=[RESULTS / f"cast_{name}.json" for name in vectors])
    parser.add_argument("--output", type=Path, default=RESULTS / "cast_prediction.md")
    run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> None:
    """Read both kinds of files and write the report.

    Raises:
        UserError: a file is not there, or they are of several models.
    """
    stems = [path.stem for path in options.matrix]
    files = {path.stem if stems.count(path.stem) == 1 else str(path): read(path) for path in options.matrix}
    vectors = {path.stem: read(path) for path in options.vectors}
    models = {name: file.get("base_model") for name, file in (files | vectors).items()}
    if len(set(models.values())) > 1:
        raise UserError(f"expected results of one model, found {', '.join(f'{n}: {m}' for n, m in models.items())}")
    cells = {name: completed(file.pop("rows")) for name, file in files.items()}
    rows = [row for file in vectors.values() for row in file.pop("parts").get("vectors", [])]
    text = report(cells, tables(rows), files | vectors)
    write_atomically(options.output, lambda file: file.write_text(text, encoding="utf-8"))
    print(text)


def read(path: Path) -> Row:
    """What a study kept."""
    if not path.exists():
        raise UserError(f"{path} is not there; make it by the study that --help names")
    found: Row = json.loads(path.read_text(encoding="utf-8"))
    return found


def tables(rows: Sequence[Row]) -> Tables:
    """Predictor -> (source, target) -> cosine."""
    found: dict[str, dict[tuple[str, str], float]] = {title: {} for title in COSINES.values()}
    for row in rows:
        for key, title in COSINES.items():
            for i, source in enumerate(row["names"]):
                found[title] |= {(source, target): row[key][i][j] for j, target in enumerate(row["names"])}
    return found


def report(matrices: Mapping[str, Cells], cosines: Tables, facts: Mapping[str, Row]) -> str:
    """The Markdown report, of each matrix' cells by source, target and seed, and the settings of all files by name."""
    by_matrix = {name: pooled(cells) for name, cells in matrices.items()}
    by_seed = [cell for own in matrices.values() for cell in own]
    cells = [cell for own in by_matrix.values() for cell in own]
    sources, targets = (set(side) for side in zip(*map(pair_of, cells), strict=True))
    out = ["# What predicts a transfer", ""]
    for name, settings in facts.items():
        own = ""
        if name in matrices:
            seeds = sorted({cell["cast"]["seed"] for cell in matrices[name]})
            own = f"{len(by_matrix[name])} pairs, seeds {seeds}" + "; " * bool(about(settings))
        out.append(f"- {name}: {own}{about(settings, '; ')}")
    out += [
        f"\n{len(cells)} pairs of {len(sources)} sources and {len(targets)} targets. Spearman's rank correlation with\n"
        "the gain over zero-shot, 95% bootstrap intervals over sources and targets (number of pairs):\n"
    ]
    out += table(["predictor", *GAINS.values()], correlations(by_matrix, cosines))
    out += ["", CONTROLS, "", *the_rule(by_seed, cells), *against(cells)]
    out += ["", *told] if (told := seed_by_seed(by_seed)) else []
    return "\n".join([*out, *by_target(cells), *by_source(cells), *by_form(cells)]) + "\n"


def correlations(matrices: Mapping[str, Cells], cosines: Tables) -> list[list[str]]:
    """A line for each predictor over all pairs, those of each matrix, and within targets."""
    cells, lines = [cell for own in matrices.values() for cell in own], []
    groups = [("", cells), *((f"the same, {name}", own) for name, own in matrices.items() if len(matrices) > 1)]
    for title in (*cosines, DEVELOPMENT):
        apart = title == COSINES["centred_matrix"] and len(matrices) > 1  # each file takes off a mean of its own
        for told, own in groups[1:] if apart else groups:
            x = predicted(title, own, cosines)
            found = [_correlation(x, [gain(cell, key) for cell in own], own) for key in GAINS]
            lines.append([told.replace("the same", title) if apart else told or title, *found])
        x = predicted(title, cells, cosines)
        within = [within_targets(x, [gain(cell, key) for cell in cells], cells) for key in GAINS]
        told = "the same, both less their means over a target's sources"
        lines.append([told, *(_correlation(*some) for some in within)])
    return lines


def predicted(title: str, cells: Cells, cosines: Tables) -> list[float | None]:
    """What a predictor says of each pair; the gain on development examples is the mean over its seeds."""
    if title in cosines:
        return [cosines[title].get(pair_of(cell)) for cell in cells]
    gains = [[place["gain"] for place in cell["cast"]["choice_of_place"]] for cell in cells]
    return [None if None in some else float(np.mean(some)) for some in gains]


def within_targets(x: Values, y: Values, cells: Cells) -> tuple[list[float], list[float], list[Cell]]:
    """Both less their means over each target's sources, where there are two or more: what tells sources apart."""
    known = [(a, b, cell) for a, b, cell in zip(x, y, cells, strict=True) if a is not None and b is not None]
    targets = [cell["cast"]["target"] for _, _, cell in known]
    found = np.array([(a, b) for a, b, _ in known]).reshape(-1, 2)
    for target in set(targets):
        own = np.array([one == target for one in targets])
        found[own] -= found[own].mean(axis=0) if own.sum() > 1 else np.nan
    found = found.round(12)  # equal values stay equal
    kept = [i for i, row in enumerate(found) if not np.isnan(row).any()]
    return found[kept, 0].tolist(), found[kept, 1].tolist(), [known[i][2] for i in kept]


def the_rule(by_seed: Cells, cells: Cells) -> list[str]:
    """What is refused and applied by the rule, and what it saves."""
    lines = []
    for title, helps in (("all", (True, False)), ("applied", (True,)), ("refused", (False,))):
        chosen = [cell for cell in by_seed if cell["cast"]["choice_of_place"]["helps"] in helps]
        changes = [found for cell in chosen if (found := gain(cell, "choice")) is not None]
        lost = f"{sum(change < 0 for change in changes)} of {len(changes)}"
        lines.append([title, len(chosen), *(difference(chosen, "cast", "zero-shot", m) for m in DRAWN), lost])
    saved = ", ".join(f"{GAINS[m]} {difference(cells, OURS[1], OURS[0], m)}" for m in DRAWN)
    return [
        "## The rule that refuses\n",
        "Mean gain over zero-shot, by pair and seed; 95% intervals over sources, targets and queries (pairs):\n",
        *table(["cells", "number", "exact match", "forced choice", "cells that lose forced choice"], lines),
        f"\nWhat the rule saves over all pairs, `cast, if it helps` − `cast`: {saved}.",
    ]


def against(cells: Cells) -> list[str]:
    """Differences between the vector and other methods over the pairs that measured both."""
    others = ("zero-shot", "label prior", "random direction", "cross-task few-shot", WHOLE, "few-shot")
    return [
        "\n## Against other methods, over all pairs\n",
        "Mean difference, 95% intervals over sources, targets and queries (number of pairs):\n",
        *table(["difference", *(GAINS[m] for m in DRAWN)], differences(cells, OURS, others, DRAWN)),
        *("", *where_the_model_knows(cells)),
    ]


def gain(cell: Cell, measure: str) -> float | None:
    """Of the vector over zero-shot; None where it was not measured."""
    if not all(has(cell, method, measure) for method in ("cast", "zero-shot")):
        return None
    if measure == "nll":
        return float(cell["zero-shot"]["nll"] - cell["cast"]["nll"])
    return float(np.mean(cell["cast"][measure]) - np.mean(cell["zero-shot"][measure]))


def _correlation(x: Values, y: Values, cells: Cells) -> str:
    known = [(a, b, pair_of(cell)) for a, b, cell in zip(x, y, cells, strict=True) if a is not None and b is not None]
    if len(known) < 4:
        return "-"
    first, second, pairs = zip(*known, strict=True)
    few = min(len(set(side)) for side in zip(*pairs, strict=True)) < FEWEST
    told = counted(len(known), "pair") if few else None
    return signed(rank_correlation(first, second, pairs), len(known), few=told, digits=2)


if __name__ == "__main__":
    main()
