"""Statistics at the last prompt token against plain hooks, one prompt at a time."""

from __future__ import annotations

import pytest
import torch

from laai.engine.activations import Statistics, last_token_statistics
from laai.prompts.batches import Prompt
from tests.tiny_models import LAYERS, recorded, shared, tokens

LENGTHS = (5, 1, 9, 5, 3)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
@pytest.mark.parametrize("site", ["residual", "heads"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "bloom", "mpt"])
@torch.no_grad()
def test_means_and_squares_by_hand(name, site, batch_size):
    model, rows = shared(name), [tokens(1, n, seed=n + i)[0].tolist() for i, n in enumerate(LENGTHS)]
    by_hand = []
    for row in rows:
        with recorded(model, name) as seen:
            model(input_ids=torch.tensor([row]), use_cache=False)
        by_hand.append([seen[site, layer][0, -1] for layer in range(LAYERS)])
    prompts = [Prompt(tuple(row[:-1]), (row[-1], 7, 8)) for row in rows]  # answers are left out
    done = []
    statistics = last_token_statistics(
        model, prompts, site, [2, 0], pad=0, batch_size=batch_size, on_batch=done.append
    )  # fmt: skip
    assert set(statistics.mean) == {0, 2}
    assert statistics.count == sum(done) == len(rows)
    for layer in (0, 2):
        values = torch.stack([row[layer] for row in by_hand])
        torch.testing.assert_close(statistics.mean[layer], values.mean(0), rtol=1e-4, atol=1e-5)
        assert statistics.rms(layer) == pytest.approx(float(values.square().mean().sqrt()), rel=1e-4)


def test_batches_count_by_their_size():
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    statistics = Statistics()
    for part in (x[:1], x[1:6], x[6:]):
        statistics.update({3: part}, [3])
    torch.testing.assert_close(statistics.mean[3], x.float().mean(0))
    torch.testing.assert_close(statistics.square[3], x.float().square().mean())
    assert statistics.mean[3].dtype == torch.float32
