"""Hooks come and go whole, and threads that share a steered model do not disturb each other."""

from functools import partial
from threading import Barrier, Thread

import pytest
import torch

from laai.errors import UserError
from laai.steering.hooks import Attachment
from laai.steering.intervention import Intervention
from tests.tiny_models import build, hooks_of, random_vectors, tokens

VECTORS = random_vectors("llama", [("residual", 1), ("heads", 2)], 0.3)


@pytest.mark.parametrize("key", [("residual", 9), ("heads", -1)])
def test_an_edit_that_cannot_be_hooked_leaves_no_other_behind(key):
    model = build("llama")
    edits = {("residual", 0): lambda hidden, where: hidden, key: lambda hidden, where: hidden}
    with pytest.raises(UserError, match="layers 0 to 2"):
        Attachment(model, edits, "all")
    assert not hooks_of(model)
    assert "generate" not in vars(model)


def test_a_broken_with_detaches():
    model = build("llama")
    with pytest.raises(KeyError), Intervention(VECTORS).attach(model):
        raise KeyError
    assert not hooks_of(model)


def in_step(model, jobs):
    """Run functions in threads of their own, whose forwards meet between the decoder's beginning and its layers."""
    meeting, found = Barrier(len(jobs), timeout=60), {}

    def run(number, job):
        try:
            found[number] = job()
        except BaseException as error:
            meeting.abort()
            found[number] = error

    def meet(*_):
        meeting.wait()

    handle = model.model.layers[0].register_forward_pre_hook(meet)
    threads = [Thread(target=run, args=one) for one in enumerate(jobs)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        handle.remove()
    for one in found.values():
        if isinstance(one, BaseException):
            raise one
    return [found[number] for number in range(len(jobs))]


@pytest.mark.parametrize("positions", ["last_prompt", "generated"])
def test_threads_generate_and_run_side_by_side(positions):
    model = build("llama")
    prompts = [tokens(1, 7), torch.cat([tokens(1, 3, seed=4), torch.zeros(1, 4).long()], 1)]
    masks = [torch.ones(1, 7).long(), torch.tensor([[1, 1, 1, 0, 0, 0, 0]])]
    options = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}

    def generate(i):
        width = 7 - 2 * i  # the second has two pads on the right
        return torch.stack(model.generate(prompts[i][:, :width], attention_mask=masks[i][:, :width], **options).logits)

    @torch.no_grad()
    def forward(i):
        return model(input_ids=prompts[i], attention_mask=masks[i]).logits

    for job in (generate, forward):
        with Intervention(VECTORS, positions=positions).on(model):
            alone = [job(i) for i in (0, 1)]
            together = in_step(model, [partial(job, i) for i in (0, 1)])
        assert all(map(torch.equal, alone, together))


@pytest.mark.parametrize("reentrant", [False, True])
def test_threads_recompute_their_own_forwards(reentrant):
    """The CPU's backward runs in the thread that calls it."""
    model = build("llama").requires_grad_(False)
    if reentrant:
        model.enable_input_require_grads()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    ids, masks = tokens(1, 6), (torch.ones(1, 6).long(), torch.tensor([[1, 1, 1, 0, 0, 0]]))
    vectors, found = Intervention(VECTORS), []

    def learn(mask):
        model(input_ids=ids, attention_mask=mask, use_cache=False).logits.square().sum().backward()

    jobs = [partial(learn, mask) for mask in masks]
    with vectors.on(model):
        for run in (lambda: [job() for job in jobs], lambda: in_step(model, jobs)):
            vectors.zero_grad()
            run()
            found.append([vector.grad.clone() for vector in vectors.parameters()])
    for alone, together in zip(*found, strict=True):
        torch.testing.assert_close(together, alone)


def test_a_backward_in_another_thread_than_its_forward():
    """As those of GPUs are; where several threads have run different forwards, none can be told."""
    model = build("llama").requires_grad_(False)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    ids, mask = tokens(1, 6), torch.tensor([[1, 1, 1, 0, 0, 0]])
    vectors = Intervention(VECTORS)

    def loss(mask):
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits.square().sum()

    with vectors.on(model):
        expected = torch.autograd.grad(loss(mask), list(vectors.parameters()))
        kept = loss(mask)
        (found,) = in_step(model, [lambda: torch.autograd.grad(kept, list(vectors.parameters()))])
        assert all(map(torch.equal, found, expected))
        kept, other = loss(mask), Thread(target=lambda: loss(torch.ones(1, 6).long()))
        other.start()
        other.join()
        with pytest.raises(RuntimeError, match="cannot tell which"):
            in_step(model, [kept.backward])
