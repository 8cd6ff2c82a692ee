"""A sweep against one whole evaluation for each candidate and scale."""

from __future__ import annotations

import pytest
import torch

from laai.engine import Engine, answer_logits, answer_nll
from laai.errors import UserError
from laai.prompts.batches import IGNORE, Prompt, collate
from laai.prompts.templates import Template
from laai.steering.intervention import Intervention
from tests.tiny_models import ARCHITECTURES, LAYERS, hooks_of, random_vectors

SCALES = (-0.5, 0.25, 1.0)


@pytest.fixture
def prompts(character_model, letter_task):
    template = Template(character_model("llama").tokenizer, letter_task)
    return [template.encode(e.input, (), e.output) for e in letter_task.examples[:6]]


def one_by_one(model, candidates, scales, prompts):
    """Whole forwards, one prompt at a time."""
    nll, greedy = torch.zeros(2, len(candidates), len(scales), len(prompts))
    for c, candidate in enumerate(candidates):
        for s, scale in enumerate(scales):
            with (scale * candidate).on(model), torch.no_grad():
                for i, prompt in enumerate(prompts):
                    batch = collate([prompt], 0)
                    nll[c, s, i] = answer_nll(model, batch).sum() / len(prompt.answer)
                    best = answer_logits(model, batch).argmax(-1)
                    greedy[c, s, i] = ((best == batch.labels) | (batch.labels == IGNORE)).all()
    return nll, greedy.bool()


@pytest.mark.parametrize("positions", ["last_prompt", "generated", "all"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_and_scales(character_model, prompts, name, positions):
    model = character_model(name)
    sites = ("residual", "heads")
    vectors = {(site, layer): v for site in sites for layer in range(LAYERS)
               for v in random_vectors(name, [(site, layer)], 0.6, seed=layer).values()}  # fmt: skip
    whole = Intervention(vectors, positions=positions, scale=0.5)
    candidates = [whole.select(layers=[layer], site=site) for site in sites for layer in (0, 2)] + [whole]
    before = hooks_of(model.llm)
    scores = Engine(model).sweep(candidates, SCALES, prompts, batch_size=4)
    nll, greedy = one_by_one(model, candidates, SCALES, prompts)
    torch.testing.assert_close(scores.nll, nll, rtol=1e-4, atol=1e-4)
    assert torch.equal(scores.greedy, greedy)
    assert hooks_of(model.llm) == before


def test_norms_are_preserved_where_asked(character_model, prompts):
    model = character_model("llama")
    candidate = Intervention(random_vectors("llama", [("residual", 1)], 2.0), preserve_norm=True)
    scores = Engine(model).sweep([candidate], SCALES, prompts)
    torch.testing.assert_close(scores.nll, one_by_one(model, [candidate], SCALES, prompts)[0], rtol=1e-4, atol=1e-4)


def test_a_prefix_is_run_once_for_all(character_model, prompts):
    model, runs = character_model("llama"), []
    prompts = [Prompt((*[9] * 12, *p.prefix), p.suffix) for p in prompts]
    handle = model.llm.get_input_embeddings().register_forward_hook(lambda _, __, out: runs.append(out.shape[:2]))
    candidates = [Intervention(random_vectors("llama", [("residual", layer)])) for layer in range(LAYERS)]
    try:
        Engine(model).sweep(candidates, SCALES, prompts, batch_size=len(prompts))
    finally:
        handle.remove()
    longest = max(len(p.prefix) for p in prompts)
    suffix = max(len(p.suffix) for p in prompts) - 1
    assert runs.count((len(prompts), longest)) == 1
    assert runs.count((len(prompts) * len(SCALES), suffix)) == len(candidates)


def test_candidates_of_another_model_are_refused_before_anything_runs(character_model, prompts):
    """Of the same widths too, which would be scored."""
    model, other = character_model("llama"), character_model("qwen2")
    fits, foreign = (Intervention.zeros(one, "residual", [1]) for one in (model, other))
    narrow = Intervention({("residual", 0): torch.ones(4)})
    for candidate, words in ((foreign, "was made for qwen2 .*not for llama"), (narrow, "width 4, the model has 32")):
        done = []
        with pytest.raises(UserError, match=words):
            Engine(model).sweep([fits, candidate], SCALES, prompts, on_candidate=done.append)
        assert not done
