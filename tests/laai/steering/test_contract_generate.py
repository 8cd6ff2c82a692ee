"""Steered `generate` against decoding by hand: one row at a time, no cache, plain hooks with hard columns."""

import functools

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import DynamicCache, MambaConfig, MambaForCausalLM

from laai.errors import UserError
from laai.steering.intervention import Intervention
from laai.steering.positions import prompts_of
from tests.tiny_models import ARCHITECTURES, build, pad, random_vectors, shared, steered_by_hand, tokens

POSITIONS = ("last_prompt", "generated", "all")
SITES = ("residual", "heads")
PROMPTS, NEW = (6, 3, 5), 4
CLOSE = {"rtol": 0, "atol": 5e-5}  # logits are of size 1.5

MODES = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "uncached": {"use_cache": False},
    "chunked": {"prefill_chunk_size": 2},
}
# What transformers itself refuses.
UNABLE = {("mpt", "static"), ("mpt", "chunked")}
ABLE = [(name, mode) for name in ARCHITECTURES for mode in MODES if (name, mode) not in UNABLE]


def rows_of():
    return [tokens(1, n, seed=n)[0] for n in PROMPTS]


def columns(positions, prompt, length):
    return {"last_prompt": [prompt - 1], "generated": range(prompt - 1, length), "all": range(length)}[positions]


def vectors_at(name, site, size=1.0):
    return random_vectors(name, [(site, 0), (site, 2)], size)


@torch.no_grad()
def full_logits(model, name, vectors, positions, row, prompt):
    with steered_by_hand(model, name, vectors, [columns(positions, prompt, len(row))]):
        return model(input_ids=row[None], use_cache=False).logits[0]


def decode_by_hand(model, name, vectors, positions, row, pick, new=NEW):
    """New tokens (new,) and the logits (new, vocabulary) they were picked from."""
    prompt, seen = len(row), []
    for _ in range(new):
        seen.append(full_logits(model, name, vectors, positions, row, prompt)[-1])
        row = torch.cat([row, pick(seen[-1]).view(1)])
    return row[prompt:], torch.stack(seen)


@functools.cache
def greedy_by_hand(name, site, positions):
    return [
        decode_by_hand(shared(name), name, vectors_at(name, site), positions, row, torch.argmax) for row in rows_of()
    ]


def generate(model, ids, mask=None, new=NEW, **options):
    """New tokens (batch, new) and their logits (batch, new, vocabulary)."""
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=new, return_dict_in_generate=True, output_logits=True,
        **{"do_sample": False, **options},
    )  # fmt: skip
    return out.sequences[:, -new:], torch.stack(out.logits, 1)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(("name", "mode"), ABLE)
def test_greedy_equals_decoding_by_hand(name, site, positions, mode):
    model, expected = shared(name), greedy_by_hand(name, site, positions)
    with Intervention(vectors_at(name, site), positions=positions).on(model):
        for side in ("left", "right"):
            ids, mask = pad(rows_of(), side)
            new, logits = generate(model, ids, mask, **MODES[mode])
            for row, (by_hand, seen) in enumerate(expected):
                torch.testing.assert_close(logits[row], seen, **CLOSE)
                assert torch.equal(new[row], by_hand)
        row, (by_hand, seen) = rows_of()[0], expected[0]
        new, logits = generate(model, row[None], **MODES[mode])
        torch.testing.assert_close(logits[0], seen, **CLOSE)
    unsteered, _ = decode_by_hand(model, name, {}, positions, row, torch.argmax)
    new, logits = generate(model, row[None], **MODES[mode])
    assert torch.equal(new[0], unsteered), "removal restores generate"
    assert not torch.allclose(logits[0, 0], seen[0], atol=1e-2)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(("name", "mode"), [pair for pair in ABLE if pair[1] != "chunked"])
def test_beam_scores_are_the_likelihoods_by_hand(name, positions, mode):
    model, vectors = shared(name), vectors_at(name, "residual")
    ids, mask = pad(rows_of(), "right")
    with Intervention(vectors, positions=positions).on(model):
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=NEW, num_beams=3, num_return_sequences=2, do_sample=False,
            length_penalty=0.0, return_dict_in_generate=True, output_scores=True, **MODES[mode],
        )  # fmt: skip
    for beam, sequence in enumerate(out.sequences[:, -NEW:]):
        row = rows_of()[beam // 2]
        whole = torch.cat([row, sequence])
        scores = full_logits(model, name, vectors, positions, whole, len(row))[len(row) - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(out.sequences_scores[beam], scores.gather(1, sequence[:, None]).sum(), **CLOSE)


@pytest.mark.parametrize("mode", ["dynamic", "uncached"])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sampling_draws_what_is_drawn_by_hand(name, positions, mode):
    model, vectors, row = shared(name), vectors_at(name, "heads", 0.5), rows_of()[0]
    torch.manual_seed(0)
    by_hand, _ = decode_by_hand(
        model, name, vectors, positions, row, lambda logits: torch.multinomial(logits.softmax(-1), 1), new=8
    )
    torch.manual_seed(0)
    with Intervention(vectors, positions=positions).on(model):
        new, _ = generate(model, row[None], new=8, do_sample=True, top_k=0, **MODES[mode])
    assert torch.equal(new[0], by_hand)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("assistant", ["llama", None])
def test_assisted_decoding(positions, assistant):
    model, row = build("llama"), rows_of()[0]
    helper = {"assistant_model": build("llama")} if assistant else {"prompt_lookup_num_tokens": 3}
    vectors = vectors_at("llama", "residual", 0.3)
    row = row.repeat(2)[:8]  # repeats give prompt look-up something to propose
    by_hand, _ = decode_by_hand(model, "llama", vectors, positions, row, torch.argmax, new=10)
    with Intervention(vectors, positions=positions).on(model):
        out = model.generate(
            row[None], attention_mask=torch.ones(1, 8).long(), max_new_tokens=10, do_sample=False, **helper
        )
    assert torch.equal(out[0, 8:], by_hand)


@pytest.mark.parametrize("whole_input", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_generate_goes_on_from_a_filled_cache(name, positions, whole_input):
    model, row = shared(name), rows_of()[0]
    vectors, cache = vectors_at(name, "residual"), DynamicCache(config=shared(name).config)
    by_hand, seen = greedy_by_hand(name, "residual", positions)[0]
    intervention, lengths = Intervention(vectors, positions=positions), torch.tensor([len(row)])
    with intervention.on(model), prompts_of(lengths), torch.no_grad():
        model(input_ids=row[None, :4], past_key_values=cache)
    with intervention.on(model):
        ids, mask = row[None] if whole_input else row[None, 4:], torch.ones(1, len(row)).long()
        new, logits = generate(model, ids, mask, past_key_values=cache)
    torch.testing.assert_close(logits[0], seen, **CLOSE)
    assert torch.equal(new[0], by_hand)


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_cache_and_right_padding_together_are_refused(positions):
    model, (ids, mask) = shared("llama"), pad(rows_of(), "right")
    with Intervention(vectors_at("llama", "residual"), positions=positions).on(model), torch.no_grad():
        cache = model(input_ids=ids[:, :2]).past_key_values
        with pytest.raises(UserError, match="cache"):
            generate(model, ids, mask, past_key_values=cache)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_generate_from_embeddings(name, positions):
    model, expected = shared(name), greedy_by_hand(name, "residual", positions)
    with Intervention(vectors_at(name, "residual"), positions=positions).on(model):
        for side in ("left", "right"):
            ids, mask = pad(rows_of(), side)
            _, logits = generate(model, None, mask, inputs_embeds=model.get_input_embeddings()(ids))
            torch.testing.assert_close(logits, torch.stack([seen for _, seen in expected]), **CLOSE)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_state_space_model_whose_cache_does_not_count(positions, use_cache):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=3, state_size=4, eos_token_id=None)
    model, vector = MambaForCausalLM(config).eval(), 3 * torch.ones(32)
    row = rows_of()[0]

    def hook(module, args, out):
        hidden = (out[0] if isinstance(out, tuple) else out).clone()
        hidden[:, list(columns(positions, len(row), hidden.shape[1]))] += vector
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    handle, whole = model.backbone.layers[1].register_forward_hook(hook), row[None]
    with torch.no_grad():
        for _ in range(NEW):
            whole = torch.cat([whole, model(input_ids=whole, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    handle.remove()
    with Intervention({("residual", 1): vector}, positions=positions).on(model):
        out = model.generate(row[None], max_new_tokens=NEW, do_sample=False, use_cache=use_cache)
    assert torch.equal(out, whole)


@pytest.mark.parametrize("positions", POSITIONS)
def test_peft_wrapped_generate(positions):
    model, row = build("llama"), rows_of()[0]
    wrapped = get_peft_model(model, LoraConfig(target_modules=["o_proj"], init_lora_weights=False)).eval()
    by_hand, _ = decode_by_hand(model, "llama", vectors_at("llama", "heads"), positions, row, torch.argmax)
    with Intervention(vectors_at("llama", "heads"), positions=positions).on(wrapped):
        out = wrapped.generate(input_ids=row[None], max_new_tokens=NEW, do_sample=False)
    assert torch.equal(out[0, -NEW:], by_hand)


def test_virtual_prompt_tokens_are_refused():
    config = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, num_attention_heads=4, num_layers=3, token_dim=32
    )
    wrapped = get_peft_model(build("llama"), config)
    with pytest.raises(UserError, match="virtual"):
        Intervention(vectors_at("llama", "residual")).attach(wrapped)


def test_nested_interventions_generate_like_their_sum():
    model, row = shared("llama"), rows_of()[0]
    vectors = vectors_at("llama", "residual")
    _, seen = greedy_by_hand("llama", "residual", "generated")[0]
    half = Intervention(vectors, positions="generated", scale=0.5)
    with half.on(model), half.on(model):
        _, logits = generate(model, row[None])
    torch.testing.assert_close(logits[0], seen, **CLOSE)
    assert "generate" not in vars(model)


def test_generate_refuses_what_it_cannot_place():
    model, ids = shared("llama"), tokens(2, 5)
    with Intervention(vectors_at("llama", "residual")).on(model):
        with pytest.raises(UserError, match="input_ids"):
            model.generate(max_new_tokens=1)
        for mask in ([[1, 0, 1, 1, 1]] * 2, [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]):
            with pytest.raises(UserError, match="gaps or an empty row"):
                model.generate(ids, attention_mask=torch.tensor(mask), max_new_tokens=1)
        # The failed calls left nothing behind: a plain forward still counts in its own rows.
        with torch.no_grad():
            ragged = model(input_ids=ids, attention_mask=torch.tensor([[1, 1, 1, 0, 0], [1] * 5])).logits
    with steered_by_hand(model, "llama", vectors_at("llama", "residual"), [[2], [4]]), torch.no_grad():
        by_hand = model(input_ids=ids, attention_mask=torch.tensor([[1, 1, 1, 0, 0], [1] * 5])).logits
    torch.testing.assert_close(ragged, by_hand, rtol=0, atol=1e-6)
