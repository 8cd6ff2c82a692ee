"""The common beginning of prompts, run once."""

from __future__ import annotations

import pytest
import torch

from laai.engine.beginnings import WORTHWHILE, begin, common_length
from laai.engine.forward import answer_nll
from laai.prompts.batches import Prompt, collate
from laai.steering.intervention import Intervention
from tests.tiny_models import ARCHITECTURES, model_of, random_vectors, tokens

COMMON = 12


def prompts(lengths=(3, 3, 3), common=COMMON):
    beginning = tokens(1, common, seed=9)[0].tolist()
    rests = [tokens(1, n + 3, seed=i)[0].tolist() for i, n in enumerate(lengths)]
    return [Prompt((*beginning, *rest[:n]), tuple(rest[n:])) for rest, n in zip(rests, lengths, strict=True)]


@pytest.mark.parametrize("positions", [None, "last_prompt", "generated", "all"])
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_likelihoods_are_those_of_whole_prompts(name, positions):
    model, rows = model_of(name), prompts()
    vectors = random_vectors(name, [("residual", 0), ("heads", 2)], 0.5 if positions else 0.0)
    with Intervention(vectors, positions=positions or "all").on(model):
        beginning = begin(model, rows)
        assert beginning is not None
        assert len(beginning) == COMMON
        rests = [beginning.without(row) for row in rows]
        assert all(len(rest.prefix) == 3 and rest.suffix == row.suffix for rest, row in zip(rests, rows, strict=True))
        whole = answer_nll(model, collate(rows, 0))
        for _ in range(2):  # a cache that was used is as new
            torch.testing.assert_close(
                answer_nll(model, collate(rests, 0), beginning.prefix.repeated(3)), whole, rtol=1e-4, atol=1e-4
            )


def test_no_beginning_worth_sharing():
    model = model_of("llama")
    assert begin(model, prompts(common=WORTHWHILE - 1)) is None
    assert begin(model, prompts()[:1]) is None
    assert begin(model, []) is None
    assert begin(model, prompts(common=WORTHWHILE)) is not None


def test_the_last_prompt_token_is_never_model_of():
    """A vector at that token would not act on a cache."""
    rows = [Prompt(tuple(range(3, 15)), (15, 16)), Prompt(tuple(range(3, 15)), (15, 17))]
    beginning = begin(model_of("llama"), rows)
    assert len(beginning) == 12
    assert beginning.without(rows[0]) == Prompt((), (15, 16))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(1, 2, 3), (1, 2, 4)], 2),
        ([(1, 2), (1, 2, 3)], 2),
        ([(1, 2), (1, 2)], 2),
        ([(), (1,)], 0),
        ([(2, 1), (1, 1), (3, 1)], 0),
        ([(1, 5, 2), (1, 4, 9), (1, 5, 1)], 1),
    ],
)
def test_common_length(rows, expected):
    assert common_length(rows) == expected
