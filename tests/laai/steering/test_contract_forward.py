"""Steered plain forwards, for every site and architecture, against plain hooks with hard columns."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from laai.errors import UserError
from laai.steering.hooks import record_last_token
from laai.steering.intervention import Intervention
from laai.steering.positions import prompts_of
from tests.tiny_models import (
    ARCHITECTURES,
    LAYERS,
    build,
    hooks_of,
    pad,
    positions_of,
    random_vectors,
    recorded,
    shared,
    site_module,
    steered_by_hand,
    tokens,
)

SITES = ("residual", "heads")
POSITIONS = ("last_prompt", "generated", "all")
BATCHED = 2e-5  # logits are of size 1.5; other batch shapes add in another order
PROMPTS = (7, 3, 5)  # prompt tokens a row
EXTRA = 2  # tokens after each prompt


@pytest.fixture(params=ARCHITECTURES)
def name(request):
    return request.param


def rows_of(extra=0):
    return [tokens(1, n + extra, seed=n)[0] for n in PROMPTS]


def steered_columns(positions, prompt, length, start=0):
    """Columns of the padded input for a prompt of `prompt` tokens in a row of `length` that starts at `start`."""
    first = {"last_prompt": prompt - 1, "generated": prompt - 1, "all": 0}[positions]
    end = prompt if positions == "last_prompt" else length
    return range(start + first, start + end)


@torch.no_grad()
def forward(model, ids, mask=None, **options):
    if mask is not None:
        options |= {"attention_mask": mask}
        if not type(model).__name__.startswith(("Bloom", "Mpt")):
            options |= {"position_ids": positions_of(mask)}
    return model(input_ids=ids, use_cache=False, **options)


@pytest.mark.parametrize("site", SITES)
def test_zero_vector_is_the_identity_bitwise(name, site):
    model = shared(name)
    ids, mask = pad(rows_of(), "left")
    before = forward(model, ids, mask).logits
    for positions in POSITIONS:
        with Intervention.zeros(model, site, range(LAYERS), positions=positions).on(model):
            assert torch.equal(forward(model, ids, mask).logits, before)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("site", SITES)
def test_adds_exactly_the_vector_there_and_nothing_elsewhere(name, site, positions):
    model = shared(name)
    ids, mask = pad(rows_of(EXTRA), "left")
    vector, hooks = random_vectors(name, [(site, 1)]), hooks_of(model)
    with recorded(model, name) as plain:
        before = forward(model, ids, mask).logits
    lengths = torch.tensor(PROMPTS)
    with Intervention(vector, positions=positions).on(model), recorded(model, name) as steered, prompts_of(lengths):
        during = forward(model, ids, mask).logits
    chosen = torch.zeros(ids.shape, dtype=torch.bool)
    for row, prompt in enumerate(PROMPTS):
        chosen[row, steered_columns(positions, prompt, prompt + EXTRA, ids.shape[1] - prompt - EXTRA)] = True
    if positions == "all":
        chosen[:] = True  # pads too: they are masked, and the cheapest rule needs no mask
    expected = torch.where(chosen[:, :, None], plain[site, 1] + vector[site, 1], plain[site, 1])
    assert torch.equal(steered[site, 1], expected)
    earlier = [("residual", 0), ("heads", 0)] + ([("heads", 1)] if site == "residual" else [])
    for key in earlier:
        assert torch.equal(steered[key], plain[key])
    assert not torch.allclose(during, before, atol=1e-2)
    assert torch.equal(forward(model, ids, mask).logits, before), "removal restores the model"
    assert hooks_of(model) == hooks
    assert "generate" not in vars(model)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_padded_batch_equals_hooks_by_hand_and_single_rows(name, positions, side):
    model, rows = shared(name), rows_of(EXTRA)
    ids, mask = pad(rows, side)
    vectors = random_vectors(name, [("residual", 1), ("heads", 1), ("heads", 2)])
    intervention = Intervention(vectors, positions=positions)
    with intervention.on(model), prompts_of(torch.tensor(PROMPTS)):
        logits = forward(model, ids, mask).logits
    for row, (prompt, line) in enumerate(zip(PROMPTS, rows, strict=True)):
        start = ids.shape[1] - len(line) if side == "left" else 0
        with steered_by_hand(model, name, vectors, [steered_columns(positions, prompt, len(line))]):
            alone = forward(model, line[None]).logits[0]
        torch.testing.assert_close(logits[row, start : start + len(line)], alone, rtol=0, atol=BATCHED)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["last_prompt", "generated"])
def test_without_prompt_lengths_the_whole_row_is_the_prompt(name, positions, side):
    model, rows = shared(name), rows_of()
    ids, mask = pad(rows, side)
    vectors = random_vectors(name, [("residual", 0), ("heads", 2)])
    lasts = [[ids.shape[1] - 1] if side == "left" else [len(row) - 1] for row in rows]
    with Intervention(vectors, positions=positions).on(model):
        logits = forward(model, ids, mask).logits
    with steered_by_hand(model, name, vectors, lasts):
        torch.testing.assert_close(logits, forward(model, ids, mask).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("site", SITES)
def test_hidden_states_and_recording_show_the_steered_stream(name, site):
    model, ids = shared(name), tokens(2, 5)
    forward(model, ids, output_hidden_states=True)  # lets transformers install its own hooks first
    with Intervention(random_vectors(name, [(site, 0)])).on(model), recorded(model, name) as seen:
        with record_last_token(model, "residual", [0, 1]) as last, record_last_token(model, "heads", [0]) as heads:
            hidden = forward(model, ids, output_hidden_states=True).hidden_states
        for layer in range(LAYERS - 1):  # the last entry is after the final norm
            assert torch.equal(hidden[layer + 1], seen["residual", layer])
        for layer in (0, 1):
            assert torch.equal(last[layer], seen["residual", layer][:, -1])
        assert torch.equal(heads[0], seen["heads", 0][:, -1])


@pytest.mark.parametrize("site", SITES)
def test_nested_interventions_add_up(name, site):
    model, ids = shared(name), tokens(2, 5)
    a, b = (random_vectors(name, [(site, 1), ("residual", 2)], seed=seed) for seed in (3, 4))
    a, b = Intervention(a, positions="all"), Intervention(b, positions="all", scale=0.5)
    with a.on(model), b.on(model):
        both = forward(model, ids).logits
    with (a + b).on(model):
        torch.testing.assert_close(both, forward(model, ids).logits, rtol=0, atol=BATCHED)
    summed = {key: v.detach() + 0.5 * b[key].detach() for key, v in a.items()}
    with steered_by_hand(model, name, summed, [range(5)] * 2):
        torch.testing.assert_close(both, forward(model, ids).logits, rtol=0, atol=BATCHED)


@pytest.mark.parametrize("site", SITES)
def test_preserve_norm_turns_the_activation_and_keeps_its_length(name, site):
    model, ids = shared(name), tokens(2, 5)
    vector = random_vectors(name, [(site, 1)])
    with recorded(model, name) as plain:
        forward(model, ids)
    with Intervention(vector, preserve_norm=True).on(model), recorded(model, name) as steered:
        forward(model, ids)
    before, after = plain[site, 1], steered[site, 1]
    sums = before[:, -1] + vector[site, 1]
    torch.testing.assert_close(after[:, -1].norm(dim=-1), before[:, -1].norm(dim=-1), rtol=1e-5, atol=0)
    torch.testing.assert_close(after[:, -1], sums * (before[:, -1].norm(dim=-1) / sums.norm(dim=-1))[:, None])
    assert torch.equal(after[:, :-1], before[:, :-1])


@pytest.mark.parametrize("site", SITES)
def test_save_and_load_give_the_same_logits(name, site, tmp_path):
    model, ids = shared(name), tokens(2, 5)
    intervention = Intervention.random(model, site, range(LAYERS), norm=3.0, scale=0.7, positions="generated")
    with intervention.on(model):
        expected = forward(model, ids).logits
    loaded = Intervention.load(intervention.save(tmp_path / "vector.safetensors"), model)
    with loaded.on(model):
        assert torch.equal(forward(model, ids).logits, expected)


@pytest.mark.parametrize("site", SITES)
def test_peft_wrapped_model(name, site):
    model = build(name)
    base_module = site_module(model, name, "heads", 1)
    target = next(n for n, m in model.named_modules() if m is base_module).rsplit(".", 1)[1]
    vectors, ids = random_vectors(name, [(site, 1)]), tokens(2, 5)
    wrapped = get_peft_model(
        model, LoraConfig(target_modules=[target], init_lora_weights=False, fan_in_fan_out=name == "gpt2")
    )
    plain = forward(wrapped.eval(), ids).logits
    with Intervention(vectors).on(wrapped):
        steered = forward(wrapped, ids).logits
        unwrapped = forward(wrapped.get_base_model(), ids).logits
    with steered_by_hand(wrapped.get_base_model(), name, vectors, [[4]] * 2):
        torch.testing.assert_close(steered, forward(wrapped, ids).logits, rtol=0, atol=1e-6)
    assert torch.equal(steered, unwrapped)
    assert not torch.allclose(steered, plain, atol=1e-2)
    assert torch.equal(forward(wrapped, ids).logits, plain)


def test_manual_decoding_with_a_cache_equals_the_full_forward(name):
    model, rows = shared(name), rows_of(EXTRA)
    vectors = random_vectors(name, [("residual", 0), ("heads", 1)])
    ids, mask = pad([row[:n] for row, n in zip(rows, PROMPTS, strict=True)], "left")
    extra = torch.stack([row[n:] for row, n in zip(rows, PROMPTS, strict=True)])
    whole, ones = torch.cat([ids, extra], 1), torch.cat([mask, torch.ones_like(extra)], 1)
    intervention, lengths = Intervention(vectors, positions="generated"), torch.tensor(PROMPTS)
    with intervention.on(model), prompts_of(lengths), torch.no_grad():
        full, cache, steps = forward(model, whole, ones).logits, None, []
        for end in (4, ids.shape[1], ids.shape[1] + 1, whole.shape[1]):  # the prompt itself in two parts
            start = 0 if cache is None else cache.get_seq_length()
            options = {"position_ids": positions_of(ones)[:, start:end]} if "Bloom" not in type(model).__name__ else {}
            options = {} if "Mpt" in type(model).__name__ else options
            out = model(
                input_ids=whole[:, start:end],
                attention_mask=ones[:, :end],
                past_key_values=cache,
                use_cache=True,
                **options,
            )
            cache = out.past_key_values
            steps.append(out.logits)
    real = ones.bool()
    torch.testing.assert_close(torch.cat(steps, 1)[real], full[real], rtol=0, atol=BATCHED)


@pytest.mark.parametrize("positions", ["last_prompt", "generated"])
def test_what_cannot_be_known_is_refused(positions):
    model, ids = shared("llama"), tokens(1, 6)
    intervention = Intervention(random_vectors("llama", [("residual", 0)]), positions=positions)
    with torch.no_grad(), intervention.on(model):
        cache = model(input_ids=ids, use_cache=True).past_key_values
        with pytest.raises(UserError, match="prompts_of"):
            model(input_ids=ids[:, :1], past_key_values=cache)
        for packed in ([0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 2, 3], [4, 5, 6, 7, 8, 9]):
            with pytest.raises(UserError, match="position_ids"):
                model(input_ids=ids, position_ids=torch.tensor([packed]), use_cache=False)
        with pytest.raises(UserError, match="position_ids"):
            model(input_ids=ids, attention_mask=torch.ones(1, 1, 6, 6).tril().bool(), use_cache=False)
        with prompts_of(torch.tensor([6])):
            model(input_ids=ids[:, :1], past_key_values=cache)


def test_a_call_that_passes_by_the_decoder_is_refused():
    model = shared("llama")
    with Intervention(random_vectors("llama", [("heads", 0)])).on(model), pytest.raises(RuntimeError, match="decoder"):
        model.model.layers[0].self_attn.o_proj(torch.zeros(1, 2, 32))
