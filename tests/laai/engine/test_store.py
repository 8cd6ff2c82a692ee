"""Prefixes that are kept: rows taken apart and put together again, and what a budget holds."""

from __future__ import annotations

import pytest
import torch

from laai.engine import store as prefix_store
from laai.engine.forward import answer_nll
from laai.engine.prefix import Prefix, rows_of, run_prefix, stack_rows
from laai.engine.store import Memory, PrefixStore, free_bytes
from laai.prompts.batches import Prompt, collate
from tests.tiny_models import ARCHITECTURES, LAYERS, WINDOW, model_of, tokens

CPU = torch.device("cpu")
LENGTHS = (9, 2, 0, 5)


def example(length, seed):
    ids = tokens(1, length + 3, seed=seed + 40)[0].tolist()
    return Prompt(tuple(ids[:length]), tuple(ids[length:]))


EXAMPLES = [example(length, seed) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(params=ARCHITECTURES)
def name(request):
    return request.param


@torch.no_grad()
def test_rows_put_together_again_continue_as_before(name):
    """In another order and with less padding; windows hold no more than they can see."""
    model, order = model_of(name), [3, 1, 0]
    batch = collate(EXAMPLES, 0)
    rows = rows_of(run_prefix(model, batch.prefix_ids, batch.prefix_mask))
    assert [row.length for row in rows] == list(LENGTHS)
    sizes = {layer[0].shape[1] for layer in rows[0].layers}
    assert sizes <= {9, WINDOW - 1}
    part = collate([EXAMPLES[i] for i in order], 0)
    prefix = stack_rows([rows[i] for i in order], CPU)
    assert torch.equal(prefix.mask, part.prefix_mask)
    found = answer_nll(model, part.without_prefix(), prefix)
    torch.testing.assert_close(found, answer_nll(model, part), rtol=1e-4, atol=1e-4)


def counting(model):
    """A function that runs prefixes, and the shapes of those that it ran."""
    ran = []

    def run(ids, mask):
        ran.append(tuple(ids.shape))
        return run_prefix(model, ids, mask)

    return run, ran


def test_only_what_is_missing_is_run():
    store, (run, ran) = PrefixStore(), counting(model_of("llama"))
    store.fetch(collate(EXAMPLES[1:], 0), run)
    store.fetch(collate(EXAMPLES, 0), run)
    store.fetch(collate(EXAMPLES[::-1], 0), run)
    store.fetch(collate([EXAMPLES[0], EXAMPLES[0]], 0), run)
    assert ran == [(3, 5), (1, 9)]
    assert len(store) == len(EXAMPLES)
    assert store.size == sum(LENGTHS) * 2 * LAYERS * 16 * 4  # keys and values, two heads of width 8, fp32
    store.clear()
    assert (len(store), store.size) == (0, 0)
    store.fetch(collate([EXAMPLES[0], EXAMPLES[0]], 0), run)
    assert ran[2:] == [(1, 9)], "one prefix that two rows have is run once"


def test_a_batch_that_is_kept_whole_is_kept_without_a_copy():
    store, (run, _) = PrefixStore(), counting(model_of("llama"))
    batch = collate([example(6, 1), example(6, 2), example(5, 3)], 0)
    prefix = store.fetch(batch, run)
    storages = {layer.keys.untyped_storage().data_ptr() for layer in prefix.cache.layers}
    kept = {k.untyped_storage().data_ptr() for row in store._rows.values() for k, _ in row.layers if k.numel()}
    assert kept == storages


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text"])
def test_no_more_is_held_than_is_counted(name):
    """With much padding, tokens that slid out of a window, and batches that are known in part."""
    store, (run, _) = PrefixStore(), counting(model_of(name))
    for rows in (EXAMPLES, [*EXAMPLES, example(8, 7)], [example(30, 8), *EXAMPLES[1:3]]):
        store.fetch(collate(rows, 0), run)
    tensors = [t for row in store._rows.values() for pair in row.layers for t in pair]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    assert sum(held.values()) <= 1.25 * store.size


def test_part_of_a_batch_holds_no_memory_of_the_rest():
    per_token = 2 * LAYERS * 16 * 4
    store, (run, ran) = PrefixStore(Memory(per_token * 11)), counting(model_of("llama"))
    store.fetch(collate(EXAMPLES, 0), run)
    assert len(store) == 3  # 9 + 2 + 0 tokens
    for row in store._rows.values():
        assert all(k.untyped_storage().nbytes() == k.numel() * 4 for k, _ in row.layers)
    store.fetch(collate(EXAMPLES, 0), run)
    assert ran == [(4, 9), (1, 5)]


def test_states_of_suffixes():
    store, (run, _) = PrefixStore(), counting(model_of("llama"))
    longer = Prompt(EXAMPLES[1].prefix, (*EXAMPLES[1].suffix, 5))
    batch = collate([EXAMPLES[0], longer], 0)
    store.fetch(batch, run)
    assert store.state(batch) is None
    states = torch.randn(2, 4, 32)
    store.keep_state(batch, states)
    found = store.state(collate([longer, EXAMPLES[0]], 0))
    assert torch.equal(found[0], states[1])
    assert torch.equal(found[1, :3], states[0, :3])
    assert not found[1, 3:].any()
    assert store.state(collate([EXAMPLES[1]], 0)) is None, "the same prefix with another answer"


@pytest.mark.parametrize(
    ("device", "budget", "expected"),
    [
        ("cpu", "auto", {"cpu": 500}),
        ("cpu", 70, {"cpu": 70}),
        ("cuda", "auto", {"cuda": 30, "cpu": 500}),
        ("cuda", 70, {"cuda": 70, "cpu": 500}),
    ],
)
def test_places_in_order(monkeypatch, device, budget, expected):
    monkeypatch.setattr(prefix_store, "free_memory", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60, 100))
    assert free_bytes(torch.device(device), budget) == {torch.device(d): n for d, n in expected.items()}


def test_processes_of_a_run_share_host_memory(monkeypatch):
    monkeypatch.setattr(prefix_store, "free_memory", lambda: 1000)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 5)
    assert free_bytes(CPU, "auto") == {CPU: 100}


def test_what_the_device_cannot_hold_goes_to_the_host(monkeypatch):
    """Both are the CPU here; what counts is the second place's share."""
    meta = torch.device("meta")
    monkeypatch.setattr(prefix_store, "free_bytes", lambda *_: {CPU: 2 * LAYERS * 16 * 4 * 9, meta: 10**9})
    store, (run, _) = PrefixStore(), counting(model_of("llama"))
    store.fetch(collate(EXAMPLES, 0), run)
    homes = [row.layers[0][0].device for row in store._rows.values()]
    assert homes == [CPU, meta, CPU, meta]


def test_repeated_rows_share_or_copy():
    model = model_of("llama")
    batch = collate(EXAMPLES[:2], 0)
    prefix = run_prefix(model, batch.prefix_ids, batch.prefix_mask)
    assert isinstance(prefix, Prefix)
    assert prefix.repeated(3, copy=False).cache.layers[0].keys is prefix.cache.layers[0].keys
    copied = prefix.repeated(3)
    assert torch.equal(copied.mask, batch.prefix_mask.repeat_interleave(3, 0))
    assert torch.equal(copied.cache.layers[1].values, prefix.cache.layers[1].values.repeat_interleave(3, 0))
    assert len(prefix.cache.layers[0].keys) == 2
