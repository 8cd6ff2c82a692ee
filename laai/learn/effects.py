"""What vectors are worth: their scores on examples, and the loss without those of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from laai.engine import Engine
from laai.evaluation import TaskMetrics, measure
from laai.prompts import Prompt, answer_limit
from laai.runtime import FewShotDataModule
from laai.steering import Intervention
from laai.tasks import Example


class Scoring(nn.Module):
    """Measures the steered model on validation or test examples, batch by batch, and logs the scores of all."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = TaskMetrics()
        self.validated: list[Tensor] = []
        """NLL of every validation example, (examples,), by validation."""
        self._limits: dict[Sequence[Example], int] = {}

    def add(self, engine: Engine, data: FewShotDataModule, examples: Sequence[Example], rows: Tensor) -> None:
        """Measure those of the examples that `rows` numbers."""
        template = data.template(engine.model.tokenizer)
        if examples not in self._limits:
            self._limits[examples] = answer_limit(template, examples)
        chosen = [(row, examples[row]) for row in rows.tolist()]
        how: dict[str, Any] = {"max_new_tokens": self._limits[examples], "batch_size": data.eval_batch_size}
        self.metrics.update(measure(engine.model, template, chosen, engine=engine, **how))

    def log(self, module: LightningModule, stage: str) -> None:
        """Log the scores of all that was measured as those of a stage, `val` or `test`, and start anew."""
        scores = self.metrics.compute("laai")
        if stage == "val":
            self.validated.append(self.metrics.nll.compute().view(-1).cpu())
        self.metrics.reset()
        module.log(f"{stage}/exact_match", scores.exact_match, prog_bar=stage == "val")
        module.log(f"{stage}/nll", scores.nll)
        if scores.choice_accuracy is not None:
            module.log(f"{stage}/choice_accuracy", scores.choice_accuracy)


def layer_effects(engine: Engine, intervention: Intervention, prompts: Sequence[Prompt]) -> dict[int, float]:
    """Rise of the mean negative log-likelihood per answer token when one layer's vectors are left out, by layer.

    Args:
        engine: of the language model, with no vectors attached.
        intervention: the vectors; one forward for each of their layers.
        prompts: with answers.

    Returns:
        layer -> nats; negative where the layer does harm.
    """
    layers = intervention.layers
    rests = [[other for other in layers if other != layer] for layer in layers]
    without = [intervention.select(layers=rest) if rest else 0 * intervention for rest in rests]
    found = engine.sweep([intervention, *without], [1.0], prompts).nll.mean(dim=-1).squeeze(-1)
    return {layer: float(nll - found[0]) for layer, nll in zip(layers, found[1:], strict=True)}
