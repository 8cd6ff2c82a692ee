"""Pictures of comparisons: dots and lines, heat maps; a method has one colour. Matplotlib is imported to draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laai.files import write_atomically

COLOURS = {
    "zero-shot": "#9a9a9a",
    "few-shot": "#1f77b4",
    "cross-task few-shot": "#17becf",
    "cast": "#2ca02c",
    "laai": "#d62728",
    "laai-zero": "#ff9896",
    "laai-all": "#8c1a1b",
    "random": "#c7a76c",
    "cast-ridge": "#9467bd",
}
"""Of methods; what is not listed gets one of `OTHERS`."""
OTHERS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")

MOST_DOTS = 12
"""Points of a line that are drawn as dots too."""

Points = tuple[Sequence[float], Sequence[float]]


@contextmanager
def picture(path: Path, size: tuple[float, float], rows: int = 1, columns: int = 1, **options: Any) -> Iterator[Any]:
    """Axes (rows, columns) to draw on; the picture is written to `path` (PNG) once that is done.

    Args:
        path: of the picture.
        size: inches.
        rows, columns: of axes.
        options: further arguments of `subplots`, such as sharey.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **options)
    try:
        yield axes
        write_atomically(path, lambda file: figure.savefig(file, dpi=130, format="png"))
    finally:
        pyplot.close(figure)


def plot(
    axis: Any, series: Mapping[str, Points], line: str | Sequence[str] = "-",
    colours: Mapping[str, str] = COLOURS, **titles: str,
) -> None:  # fmt: skip
    """Dots, joined by lines unless `line` is empty: one series a method, those that come later on top.

    Each is a little smaller than the one below, so that none is hidden where two are equal.

    Args:
        axis: to draw on.
        series: by name, x and y of the points.
        line: style of the lines, of all or of each; "" for dots alone.
        colours: by name.
        titles: of the axes and the panel: xlabel, ylabel, title.
    """
    styles = [line] * len(series) if isinstance(line, str) else line
    for rank, ((name, points), style) in enumerate(zip(series.items(), styles, strict=True)):
        above = len(series) - 1 - rank
        size = (4.5 if style else 6) + above * (0.5 if style else 1.2)
        marker = "o" if not style or len(points[0]) <= MOST_DOTS else None
        look = {"marker": marker, "markersize": size, "linestyle": style or "none"}
        colour = colours.get(name, OTHERS[rank % len(OTHERS)])
        axis.plot(*points, label=name, color=colour, lw=1.3 + 0.25 * above, **look)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set(**titles)


def heat_map(
    axis: Any, values: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], *, title: str = "",
    numbers: str = "", **options: Any,
) -> Any:  # fmt: skip
    """Values (rows, columns) as colours; returns the image, for a colour bar.

    Args:
        axis: to draw on.
        values: NaN is left white.
        rows, columns: their names; of many columns every so manyth is named.
        title: of the panel.
        numbers: how to write each value into its field, such as "+.2f"; "" to leave them out.
        options: of `imshow`: cmap, vmin, vmax.
    """
    image = axis.imshow(values, aspect="auto", **options)
    for i, j in np.argwhere(~np.isnan(values)) if numbers else ():
        red, green, blue, _ = image.cmap(image.norm(values[i, j]))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        axis.text(j, i, f"{values[i, j]:{numbers}}", ha="center", va="center", fontsize=8, color="wk"[not dark])
    every = max(1, len(columns) // 10) if not numbers else 1
    axis.set_xticks(range(0, len(columns), every), columns[::every], fontsize=8, rotation=40, ha="right")
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_title(title, fontsize=9)
    axis.spines[:].set_visible(False)
    return image
