"""Figures of a run, for TensorBoard. Matplotlib is imported when the first is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from laai.learn.layer_race import LayerProfile

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def heat_map(values: Tensor, rows: list[int], x: str, y: str, unit: str = "‖vector‖ / ‖activation‖") -> Figure:
    """A figure of values (rows, columns); by default the norm of the vector over that of the activation."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.5, max(2.0, 0.11 * len(rows) + 1.0)), layout="constrained", dpi=160)
    axes = figure.add_subplot()
    picture = axes.imshow(values.detach().cpu().numpy(), aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    every = max(1, len(rows) // 10)
    axes.set_yticks(range(0, len(rows), every), [str(layer) for layer in rows[::every]])
    axes.set(xlabel=x, ylabel=y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(picture, label=unit)
    return figure


def profile_figure(profile: LayerProfile) -> Figure:
    """Held-out loss by layer after the steps that each was given; filled dots went all the way, the ring is chosen."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5, 3), layout="constrained", dpi=160)
    axes = figure.add_subplot()
    layers = sorted(profile.nll)
    axes.plot(layers, [profile.nll[layer] for layer in layers], color="#c0c0c0", zorder=1)
    longest = max(profile.steps.values())
    for steps in sorted(set(profile.steps.values())):
        chosen = [layer for layer in layers if profile.steps[layer] == steps]
        shade = "#1f77b4" if steps == longest else "white"
        axes.scatter(chosen, [profile.nll[i] for i in chosen], color=shade, edgecolor="#1f77b4", zorder=2)
        for layer in chosen:
            axes.annotate(str(steps), (layer, profile.nll[layer]), (0, 7), textcoords="offset points", fontsize=7)
    best = profile.best
    axes.scatter([best], [profile.nll[best]], s=160, facecolor="none", edgecolor="#d62728", zorder=3)
    axes.set(xlabel="layer", ylabel="held-out NLL per token", title=f"layer {best} chosen; numbers are steps")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def effect_figure(effects: dict[int, float]) -> Figure:
    """Bars: rise of the training examples' loss when a layer's vector is left out."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5, 2.6), layout="constrained", dpi=160)
    axes = figure.add_subplot()
    shades = ["#1f77b4" if value >= 0 else "#d62728" for value in effects.values()]
    axes.bar(list(effects), list(effects.values()), color=shades)
    axes.axhline(0, color="black", lw=0.6)
    axes.set(xlabel="layer left out", ylabel="rise of NLL per token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    return figure
