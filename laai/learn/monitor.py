"""`Monitor`: the vectors over time, as TensorBoard scalars and heat maps; and the figures of a run.

Matplotlib is imported when the first is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from laai.learn.layer_race import LayerProfile
from laai.learn.module import LAAIModule
from laai.runtime import log_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Monitor(pl.Callback):
    """Record each vector's norm and its distance from the start, and plot them at the end.

    Both are relative to the activation's norm at the site. A ratio near or above 1 is the sign of over-steering.
    """

    def __init__(self) -> None:
        self._history: list[Tensor] = []
        self._last: list[Tensor] = []
        self._start: list[Tensor] = []
        self._moved: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the start."""
        self._history, self._last, self._moved = [], [], []
        if isinstance(pl_module, LAAIModule):
            if (profile := pl_module.prepared.profile) is not None:
                log_figures(trainer, {"layers/held-out loss by layer": profile_figure(profile)})
            self._start = [v.detach().clone() for _, v in pl_module.intervention.items()]
        self._record(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Note the norms after a step."""
        self._record(pl_module)
        relative = self._history[-1]
        pl_module.log_dict({"vectors/mean relative norm": relative.mean(), "vectors/largest": relative.max()})
        zeros = torch.cat([part == 0 for part in self._last]).float().mean()
        pl_module.log("vectors/share of zero groups", zeros)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the heat maps."""
        if isinstance(pl_module, LAAIModule) and self._history:
            log_figures(trainer, self.figures(pl_module))

    def _record(self, module: pl.LightningModule) -> None:
        if isinstance(module, LAAIModule):
            norms = module.intervention.norms()
            self._last = [norm.cpu() / _activation_norm(module, key[1], len(norm)) for key, norm in norms.items()]
            units = torch.tensor([_activation_norm(module, key[1], 1) for key in norms])
            moved = [
                (v.detach() - start).norm().cpu()
                for (_, v), start in zip(module.intervention.items(), self._start, strict=True)
            ]
            self._history.append(torch.stack([norm.square().sum().sqrt().cpu() for norm in norms.values()]) / units)
            self._moved.append(torch.stack(moved) / units)

    def figures(self, module: LAAIModule) -> dict[str, Figure]:
        """Layer × step, and layer × head where there are heads."""
        layers = module.intervention.layers
        steps = torch.stack(self._history, dim=1)
        moved = torch.stack(self._moved, dim=1)
        figures = {
            "vectors/norm by layer over steps": heat_map(steps, layers, "step", "layer"),
            "vectors/distance from the start by layer over steps": heat_map(moved, layers, "step", "layer"),
        }
        if len({len(part) for part in self._last}) == 1 and len(self._last[0]) > 1:
            figures["vectors/norm by head"] = heat_map(torch.stack(self._last), layers, "head", "layer")
        if module.scoring.validated:
            losses = torch.stack(module.scoring.validated, dim=1)
            rows = list(range(len(losses)))
            figures["val/NLL by example"] = heat_map(losses, rows, "validation", "example", "NLL per answer token")
        return figures


def _activation_norm(module: LAAIModule, layer: int, groups: int) -> float:
    """Typical norm of the activation at the site, or of one of its equal parts."""
    width = len(module.intervention[module.recipe.site, layer])
    return float(max(module.prepared.rms[layer] * (width / groups) ** 0.5, torch.finfo(torch.float32).tiny))


@rank_zero_only
def log_effects(trainer: pl.Trainer, effects: dict[int, float]) -> None:
    """Add what each layer's vector is worth (`layer_effects`), as a figure, to every TensorBoard logger."""
    log_figures(trainer, {"vectors/loss without each layer": effect_figure(effects)})


def _drawn(width: float, height: float) -> tuple[Figure, Any]:
    """A figure of so many inches, and its axes, whose x axis counts in whole numbers."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(width, height), layout="constrained", dpi=160)
    axes = figure.add_subplot()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def heat_map(values: Tensor, rows: list[int], x: str, y: str, unit: str = "‖vector‖ / ‖activation‖") -> Figure:
    """A figure of values (rows, columns); by default the norm of the vector over that of the activation."""
    figure, axes = _drawn(4.5, max(2.0, 0.11 * len(rows) + 1.0))
    picture = axes.imshow(values.detach().cpu().numpy(), aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    every = max(1, len(rows) // 10)
    axes.set_yticks(range(0, len(rows), every), [str(layer) for layer in rows[::every]])
    axes.set(xlabel=x, ylabel=y)
    figure.colorbar(picture, label=unit)
    return figure


def profile_figure(profile: LayerProfile) -> Figure:
    """Held-out loss by layer after the steps that each was given; filled dots went all the way, the ring is chosen."""
    figure, axes = _drawn(5, 3)
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
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def effect_figure(effects: dict[int, float]) -> Figure:
    """Bars: rise of the training examples' loss when a layer's vector is left out."""
    figure, axes = _drawn(5, 2.6)
    shades = ["#1f77b4" if value >= 0 else "#d62728" for value in effects.values()]
    axes.bar(list(effects), list(effects.values()), color=shades)
    axes.axhline(0, color="black", lw=0.6)
    axes.set(xlabel="layer left out", ylabel="rise of NLL per token")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
