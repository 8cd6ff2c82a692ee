"""A sharded model, on two processes, computes what the whole one does; vectors that drift apart are noticed."""

from __future__ import annotations

import os
import socket

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from laai.errors import UserError
from laai.models.loading import load_model
from laai.models.sharding import load_sharded
from laai.runtime.strategy import average_gradients, check_equal
from laai.steering.intervention import Intervention
from tests.forked import CONTEXT


def on_two(work, *arguments):
    """Run `work(rank, *arguments)` in two processes that can talk; what it raises is raised here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = CONTEXT.Queue()
    workers = [CONTEXT.Process(target=_join, args=(results, rank, port, work, arguments)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    found = dict(results.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(30)
    for problem in found.values():
        assert problem is None, problem


def _join(results, rank, port, work, arguments):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    try:
        work(rank, *arguments)
        results.put((rank, None))
    except BaseException as error:
        results.put((rank, repr(error)))
    finally:
        distributed.destroy_process_group()


def shards_compute_the_same(rank, folder, dtype):
    mesh = init_device_mesh("cpu", (2,))
    whole = load_model(folder, dtype=dtype)
    model = load_sharded(folder, dtype, mesh, torch.device("cpu"))
    assert model.sharded
    assert not whole.sharded
    assert model.identity == whole.identity
    for name, parameter in model.llm.named_parameters():
        assert isinstance(parameter, DTensor), name
        assert parameter.to_local().numel() <= parameter.numel() // 2 + parameter.shape[-1], name
        assert torch.equal(parameter.full_tensor(), whole.llm.get_parameter(name)), name
    ids = torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    vectors = {("heads", 1): torch.randn(32), ("residual", 0): torch.randn(32)}
    torch.distributed.broadcast_object_list(told := [vectors], src=0)
    intervention = Intervention(told[0], positions="generated")
    losses = []
    for llm in (whole.llm, model.llm):
        with intervention.on(llm):
            logits = llm(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            logits.float().logsumexp(-1).sum().backward()
        gradients = [vector.grad.clone() for _, vector in intervention.items()]
        intervention.zero_grad()
        losses.append((logits, *gradients))
    for a, b in zip(*losses, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4 if dtype == "float32" else 2e-2, atol=1e-5)
    written = [
        llm.generate(ids, max_new_tokens=4, do_sample=False, synced_gpus=llm is model.llm)
        for llm in (whole.llm, model.llm)
    ]
    if dtype == "float32":
        assert torch.equal(*written)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards_compute_the_same(tiny_folder, dtype):
    on_two(shards_compute_the_same, str(tiny_folder), dtype)


def test_tied_weights_stay_tied(tiny, tmp_path):
    config = LlamaConfig(
        vocab_size=len(tiny.tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, tie_word_embeddings=True, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    on_two(shards_compute_the_same, str(tmp_path), "float32")


def refused_everywhere(rank):
    with pytest.raises(UserError, match="nothing there"):
        load_sharded("/nowhere/at/all", "float32", init_device_mesh("cpu", (2,)), torch.device("cpu"))


def test_a_model_that_cannot_be_read_stops_every_process():
    on_two(refused_everywhere)


def drifting(rank):
    vectors = [torch.zeros(3, requires_grad=True), torch.ones(2, requires_grad=True)]
    check_equal(vectors)
    vectors[0].grad = torch.full((3,), float(rank))
    average_gradients(vectors)
    assert torch.equal(vectors[0].grad, torch.full((3,), 0.5))
    assert vectors[1].grad is None
    with torch.no_grad():
        vectors[1][1] += 1e-7 * rank
    with pytest.raises(RuntimeError, match="the vectors of the processes differ"):
        check_equal(vectors)


def test_vectors_that_drift_apart_are_noticed():
    on_two(drifting)
