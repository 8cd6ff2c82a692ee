"""The strength of a CAST vector, against losses by hand."""

from __future__ import annotations

import pytest
import torch

from cast import best_scale
from laai.prompts.templates import Template
from laai.steering.intervention import Intervention
from tests.tiny_models import random_vectors, steered_by_hand


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("positions", ["last_prompt", "generated", "all"])
def test_best_scale_by_hand(character_model, letter_task, positions, sign):
    model = character_model("llama")
    template = Template(model.tokenizer, letter_task)
    prompts = [template.encode(e.input, answer=e.output) for e in letter_task.examples[:6]]
    vectors = {key: sign * v for key, v in random_vectors("llama", [("residual", 1)], 0.7).items()}
    losses = {}
    for scale in (0.0, 0.5, 1.0, 3.0):
        total, count = 0.0, 0
        for p in prompts:
            ids, start = [*p.prompt, *p.answer], len(p.prompt) - 1
            columns = {"last_prompt": [start], "generated": range(start, len(ids)), "all": range(len(ids))}[positions]
            scaled = {key: scale * v for key, v in vectors.items()}
            with steered_by_hand(model.llm, "llama", scaled, [columns]), torch.no_grad():
                logs = model.llm(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            total -= sum(float(logs[start + j, t]) for j, t in enumerate(p.answer))
            count += len(p.answer)
        losses[scale] = total / count
    vector = Intervention(vectors, positions=positions)
    assert best_scale(model, vector, prompts, list(losses)) == min(losses, key=losses.get)


def test_the_model_is_left_unhooked(character_model, letter_task, monkeypatch):
    model = character_model("llama")
    prompt = Template(model.tokenizer, letter_task).encode("a", answer="be")
    vector = Intervention(random_vectors("llama", [("heads", 1)]))

    def hooks():
        return [(*m._forward_hooks.values(), *m._forward_pre_hooks.values()) for m in model.llm.modules()]

    before = hooks()  # transformers' own stay once somebody asked the shared model for its hidden states
    best_scale(model, vector, [prompt])

    def fail(*_, **__):
        raise KeyError("failed inside the forward")

    monkeypatch.setattr(model.llm.lm_head, "forward", fail)
    with pytest.raises(KeyError):
        best_scale(model, vector, [prompt])
    assert hooks() == before
    assert "generate" not in vars(model.llm)
