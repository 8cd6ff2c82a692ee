"""`Monitor`: the vectors over time, as TensorBoard scalars and heat maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from laai.learn.figures import effect_figure, heat_map, profile_figure
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
            if pl_module.layer_profile is not None:
                log_figures(trainer, {"layers/held-out loss by layer": profile_figure(pl_module.layer_profile)})
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
        if module.validated:
            losses = torch.stack(module.validated, dim=1)
            rows = list(range(len(losses)))
            figures["val/NLL by example"] = heat_map(losses, rows, "validation", "example", "NLL per answer token")
        return figures


def _activation_norm(module: LAAIModule, layer: int, groups: int) -> float:
    """Typical norm of the activation at the site, or of one of its equal parts."""
    width = len(module.intervention[module.site, layer])
    return float(max(module.rms[layer] * (width / groups) ** 0.5, torch.finfo(torch.float32).tiny))


@rank_zero_only
def log_effects(trainer: pl.Trainer, effects: dict[int, float]) -> None:
    """Add what each layer's vector is worth (`laai.ablation`), as a figure, to every TensorBoard logger."""
    log_figures(trainer, {"vectors/loss without each layer": effect_figure(effects)})
