"""What a layer is worth, against measuring without it."""

from __future__ import annotations

import pytest

from laai.engine import Engine
from laai.evaluation.measuring import measure
from laai.learn.effects import layer_effects
from laai.prompts.templates import Template
from laai.steering.intervention import Intervention


@pytest.mark.parametrize("layers", [[0, 2], [1]])
def test_effects_are_differences_of_measured_losses(tiny, word_task, layers):
    vector = Intervention.random(tiny, "residual", layers, norm=2.0, seed=3)
    template, examples = Template(tiny.tokenizer, word_task), word_task.examples[:4]

    def loss(part):
        with part.on(tiny):
            return sum(m.nll for m in measure(tiny, template, list(enumerate(examples)))) / len(examples)

    found = layer_effects(Engine(tiny), vector, [template.encode(e.input, answer=e.output) for e in examples])
    assert list(found) == layers
    for layer in layers:
        rest = [other for other in layers if other != layer]
        without = vector.select(layers=rest) if rest else 0 * vector
        assert found[layer] == pytest.approx(loss(without) - loss(vector), abs=1e-4)
