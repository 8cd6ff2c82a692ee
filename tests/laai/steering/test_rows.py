"""Each row of a batch steered by vectors of its own equals that row steered alone."""

import pytest
import torch

from laai.errors import UserError
from laai.steering.intervention import Intervention
from laai.steering.positions import prompts_of
from laai.steering.rows import attach_rows
from tests.tiny_models import ARCHITECTURES, build, hooks_of, pad, positions_of, random_vectors, shared, tokens

PROMPTS, EXTRA, NEW = (6, 3, 5), 2, 4
POSITIONS = ("last_prompt", "generated", "all")
CLOSE = {"rtol": 0, "atol": 5e-5}  # logits are of size 1.5


def interventions(name, **options):
    keys = [("residual", 0), ("heads", 1)]
    scales = (1.0, 0.5, -2.0)
    return [Intervention(random_vectors(name, keys, seed=3 + i), scale=scales[i], **options) for i in range(3)]


@torch.no_grad()
def logits_of(model, rows, lengths):
    ids, mask = pad(rows, "left")
    options = {} if type(model).__name__.startswith(("Bloom", "Mpt")) else {"position_ids": positions_of(mask)}
    with prompts_of(torch.tensor(lengths)):
        return model(input_ids=ids, attention_mask=mask, use_cache=False, **options).logits


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_forward_and_generate(name, positions):
    model, own = shared(name), interventions(name, positions=positions)
    hooks = hooks_of(model)
    rows = [tokens(1, n + EXTRA, seed=n)[0] for n in PROMPTS]
    ids, mask = pad([row[:n] for row, n in zip(rows, PROMPTS, strict=True)], "right")
    options = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with attach_rows(own, model):
        together, written = logits_of(model, rows, PROMPTS), model.generate(ids, attention_mask=mask, **options)
    assert hooks_of(model) == hooks
    for i, (vector, row, prompt) in enumerate(zip(own, rows, PROMPTS, strict=True)):
        with vector.on(model):
            alone = logits_of(model, [row], [prompt])[0]
            by_itself = model.generate(row[None, :prompt], **options)
        torch.testing.assert_close(together[i, -len(row) :], alone, **CLOSE)
        torch.testing.assert_close(torch.stack(written.logits, 1)[i], torch.stack(by_itself.logits, 1)[0], **CLOSE)


def test_beams_follow_the_vector_of_their_prompt():
    model, own, rows = shared("llama"), interventions("llama"), [tokens(1, 5, seed=n) for n in range(3)]
    options = {"max_new_tokens": NEW, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    with attach_rows(own, model):
        together = model.generate(torch.cat(rows), **options)
    for i, vector in enumerate(own):
        with vector.on(model):
            assert torch.equal(model.generate(rows[i], **options), together[2 * i : 2 * i + 2])


def test_gradients_reach_the_vectors_of_their_rows():
    model, ids = build("gpt2").requires_grad_(False), tokens(3, 5)
    own, alone = interventions("gpt2", preserve_norm=True), interventions("gpt2", preserve_norm=True)
    with attach_rows(own, model):
        model(input_ids=ids).logits.square().sum().backward()
    for i, vector in enumerate(alone):
        with vector.on(model):
            model(input_ids=ids[i : i + 1]).logits.square().sum().backward()
        for key, one in vector.items():
            torch.testing.assert_close(own[i][key].grad, one.grad, rtol=1e-4, atol=1e-4)


def test_what_no_batch_can_hold_is_refused():
    model, (a, b, _) = shared("llama"), interventions("llama")
    for others, words in (
        ([], "positions"),
        ([a, Intervention(dict(b.items()), positions="all")], "equal positions"),
        ([a, Intervention(dict(b.items()), preserve_norm=True)], "equal preserve_norm"),
        ([a, b.select(site="heads")], "sites and layers"),
        ([Intervention({("residual", 0): torch.ones(4)})], "width 4"),
    ):
        with pytest.raises(UserError, match=words):
            attach_rows(others, model)
    with attach_rows([a, b], model), pytest.raises(UserError, match="a batch of 2 rows, or a multiple, found 3"):
        model(input_ids=tokens(3, 5))
    assert "generate" not in vars(model)
