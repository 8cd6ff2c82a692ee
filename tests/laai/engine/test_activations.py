"""What is seen at the last prompt token against plain hooks, one prompt at a time."""

from __future__ import annotations

import pytest
import torch

from laai.engine import Engine
from laai.prompts.batches import Prompt
from tests.tiny_models import LAYERS, hooks_of, language_model, model_of, recorded, shared, tokens

LENGTHS = (5, 1, 9, 5, 3)
ROWS = [tokens(1, n, seed=n + i)[0].tolist() for i, n in enumerate(LENGTHS)]
PROMPTS = [Prompt(tuple(row[:-1]), (row[-1], 7, 8)) for row in ROWS]  # answers are left out


@torch.no_grad()
def by_hand(model, name):
    """Of each row: logits, and (site, layer) -> activation."""
    found = []
    for row in ROWS:
        with recorded(model, name) as seen:
            logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1]
        found.append((logits, {key: value[0, -1] for key, value in seen.items()}))
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 100])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "bloom", "mpt"])
def test_states_and_logits_by_hand(name, batch_size):
    model, expected = model_of(name), by_hand(shared(name), name)
    keys, before, done = [("heads", 2), ("residual", 2), ("residual", 0)], hooks_of(model.llm), []
    for read in Engine(model).activations(PROMPTS, keys, batch_size):
        assert list(read.states) == keys
        for k, row in enumerate(read.rows):
            torch.testing.assert_close(read.logits[k], expected[row][0], rtol=1e-4, atol=1e-4)
            for key in keys:
                torch.testing.assert_close(read.states[key][k], expected[row][1][key], rtol=1e-4, atol=1e-5)
        done += read.rows
    assert sorted(done) == list(range(len(ROWS)))
    assert hooks_of(model.llm) == before


@pytest.mark.parametrize("batch_size", [1, 2, 100])
@pytest.mark.parametrize("site", ["residual", "heads"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "bloom", "mpt"])
def test_root_mean_squares_by_hand(name, site, batch_size):
    expected = by_hand(shared(name), name)
    found = Engine(model_of(name)).activation_rms(PROMPTS, site, [2, 0], batch_size)
    assert list(found) == [2, 0]
    for layer in (0, 2):
        values = torch.stack([states[site, layer] for _, states in expected])
        assert found[layer] == pytest.approx(float(values.square().mean().sqrt()), rel=1e-4)


def test_means_of_squares_are_fp32_whatever_the_model_computes_in():
    """In bf16 the sum over many entries would stand still."""
    llm = shared("llama")
    wanted = Engine(language_model(llm)).activation_rms(PROMPTS, "residual", range(LAYERS))
    coarse = Engine(language_model(type(llm)(llm.config).bfloat16()))
    coarse.model.llm.load_state_dict(llm.state_dict())
    found = coarse.activation_rms(PROMPTS, "residual", range(LAYERS), batch_size=2)
    for layer, value in wanted.items():
        assert found[layer] == pytest.approx(value, rel=0.02)
        assert found[layer] != float(torch.tensor(found[layer]).bfloat16()), "no rounding to 8 bits"


@pytest.mark.parametrize("batches", ["common", "own"])
def test_of_what_is_run_already_nothing_is_run_again(batches):
    """A common beginning, or each prompt's own prefix: only the rest of each prompt is run."""
    model, runs = model_of("llama"), []
    prompts = [Prompt((*[9] * 20, *p.prefix), p.suffix) for p in PROMPTS]
    plain = {}
    for read in Engine(model).activations(prompts, [("residual", 1)], 1):
        plain[read.rows[0]] = read.states["residual", 1][0]
    engine = Engine(model)
    with engine.passes(prompts) as own:
        given = own if batches == "own" else None
        list(engine.activations(prompts, [("residual", 1)], 2, given))
        handle = model.llm.get_input_embeddings().register_forward_hook(lambda _, __, out: runs.append(out.shape[1]))
        try:
            for read in engine.activations(prompts, [("residual", 1)], 2, given):
                for k, row in enumerate(read.rows):
                    torch.testing.assert_close(read.states["residual", 1][k], plain[row], rtol=1e-4, atol=1e-5)
        finally:
            handle.remove()
    assert set(runs) == ({1} if batches == "own" else set(LENGTHS))
