"""The pictures of `cast_analysis.py`: vectors by layer and in two dimensions, numbers of samples, layers and scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pair_cells import cells

from laai.compare import Row, heat_map, picture, plot

DRAWN = ("vectors", "samples", "profile")
"""Parts where a picture says more than a table."""
SITES = ("heads", "residual")


def file_of(part: str, path: Path) -> Path:
    """Where the picture of a part is written."""
    return path.with_name(f"{path.stem}_{part}.png")


def draw(parts: Mapping[str, Sequence[Row]], path: Path) -> None:
    """PATH_PART.png for the parts that are drawn."""
    drawn = {"vectors": draw_vectors, "samples": draw_samples, "profile": draw_profile}
    for part in [part for part in DRAWN if part in parts]:
        drawn[part](parts[part], file_of(part, path))


def with_null(row: Row) -> dict[str, list[float]]:
    """Cosines by layer, with the mean that vectors which sum to zero have whatever they are, if alike in length."""
    found: dict[str, list[float]] = row["by_layer"]
    return found | {"forced": [-1 / (len(row["names"]) - 1)] * len(row["layers"])}


def draw_vectors(rows: Sequence[Row], path: Path) -> None:
    """Cosines by layer, and the samples' differences in two dimensions."""
    row, titles = rows[-1], {"same": "halves of a task's samples", "raw": "two tasks", "centred": "two tasks, centred"}
    titles |= {"shuffled": "null: other tasks' zero-shot states", "signs": "null: random signs"}
    titles |= {"random": "null: random directions (absolute)", "forced": "null: forced by centring"}
    by_layer = with_null(row)
    with picture(path, (10, 4.2), columns=2) as axes:
        from matplotlib import colormaps

        left, right = axes[0]
        lines = {title: (row["layers"], by_layer[key]) for key, title in titles.items()}
        styles = ["--" if title.startswith("null") else "-" for title in lines]
        plot(left, lines, styles, xlabel="layer", ylabel="mean cosine", title="Difference vectors of tasks, by layer")
        left.legend(frameon=False, fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
        for number, (name, points) in enumerate(zip(row["names"], row["points"], strict=True)):
            right.scatter(*np.array(points).T, s=14, label=name, color=colormaps["tab20"](number % 20))
        right.set(xlabel="first component", ylabel="second component", title="Each sample's difference, all layers")
        right.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def draw_samples(rows: Sequence[Row], path: Path) -> None:
    """Lines over the number of samples, over the pairs and seeds that all numbers have."""
    counts, lines = sorted({r["labels"] for r in rows}), {}
    for name, title in (("exact", "cast"), ("prompted", "cross-task few-shot"), ("zero", "zero-shot")):
        found = [cells(rows, name, labels=n) for n in counts]
        if shared := set.intersection(*map(set, found)):
            lines[title] = counts, [float(np.mean([one[key] for key in shared])) for one in found]
    with picture(path, (6, 4.2)) as axes:
        axis = axes[0, 0]
        plot(axis, lines, xlabel="source samples", ylabel="mean exact match")
        axis.set_xscale("log")
        axis.set_xticks(counts, [str(n) for n in counts])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)


def draw_profile(rows: Sequence[Row], path: Path) -> None:
    """One row of panels a site: places by scales."""
    with picture(path, (10, 6), len(SITES), len(rows)) as axes:
        for (i, site), (j, row) in [(site, row) for site in enumerate(SITES) for row in enumerate(rows)]:
            own, title = row[site], f"{row['source']} → {row['target']}: {site}"
            places = [f"{a}-{b}" if a != b else str(a) for a, b in own["places"]]
            scales = [f"{scale:g}" for scale in own["scales"]]
            image = heat_map(axes[i, j], np.array(own["probability"]).T, scales, places, title=title, vmin=0)
            axes[i, j].figure.colorbar(image, ax=axes[i, j])
            axes[i, j].set(xlabel="layers", ylabel="scale")
