"""The few-shot teacher against prompts run one by one, and the divergence from it against KL worked out by hand."""

from __future__ import annotations

import pytest
import torch

from laai.engine import Engine, answer_logits, token_divergence
from laai.learn.steered import SteeredLM
from laai.learn.teacher import few_shot_teacher
from laai.prompts.batches import IGNORE, collate
from laai.prompts.demonstrations import MAX_SHOTS, other_examples
from laai.prompts.templates import Template
from laai.runtime.data import encode_training
from laai.steering.intervention import Intervention
from laai.tasks.examples import Example, Task

TASK = Task(
    "mixed",
    tuple(
        Example(f"{word} {'x' * i}", answer)
        for i, (word, answer) in enumerate(
            [("amber", "red"), ("birch", "a zebra"), ("cedar", "dark blue"), ("delta", "42"), ("ember", "été")]
        )
    ),
    instruction="Name it.",
)


@torch.no_grad()
def log_probs_by_hand(model, prompt, answer):
    """Log-probabilities (answer tokens, vocabulary) by one plain forward, unpadded."""
    logits = model.llm(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_the_teacher_is_the_model_behind_the_other_examples(tiny, style):
    """Answers of one and of several tokens, in batches with padding on both sides."""
    template, examples = Template(tiny.tokenizer, TASK, style), TASK.examples
    teacher = few_shot_teacher(Engine(tiny), template, examples, batch_size=3)
    answers = [template.encode(e.input, answer=e.output).answer for e in examples]
    assert len({len(answer) for answer in answers}) > 1
    for i, example in enumerate(examples):
        others = [other for other in examples if other is not example]
        shown = template.encode(example.input, others, example.output)
        assert shown.answer == answers[i], "few-shot and zero-shot prompts have the same answer tokens"
        expected = log_probs_by_hand(tiny, shown.prompt, answers[i])
        assert teacher[i].shape == (len(answers[i]), tiny.llm.config.vocab_size)
        torch.testing.assert_close(teacher[i], expected, rtol=0, atol=1e-4)
        assert not teacher[i].requires_grad


def test_rows_of_a_teacher_stand_at_the_batch_s_labels(tiny):
    """Joined in the batch's order, row k of the teacher belongs to the k-th labelled token."""
    template, examples = Template(tiny.tokenizer, TASK), TASK.examples
    teacher = few_shot_teacher(Engine(tiny), template, examples)
    order = [3, 0, 4]
    batch = collate([template.encode(examples[i].input, answer=examples[i].output) for i in order], tiny.pad, order)
    joined = torch.cat([teacher[i] for i in batch.rows.tolist()])
    labels = batch.labels[batch.labels != IGNORE]
    assert len(joined) == len(labels)
    logits = torch.zeros(*batch.labels.shape, joined.shape[1])
    divergence = token_divergence(logits, joined, batch.labels)
    for row, i in enumerate(order):
        length = len(teacher[i])
        uniform = torch.full_like(teacher[i], 1 / joined.shape[1]).log()
        expected = (teacher[i].exp() * (teacher[i] - uniform)).sum(-1)
        torch.testing.assert_close(divergence[row, :length], expected)
        assert not divergence[row, length:].any()


@pytest.mark.parametrize("count", [2, 5, MAX_SHOTS + 1, MAX_SHOTS + 2, 40])
def test_an_example_never_stands_among_its_own_demonstrations(count):
    examples = [Example(f"input {i}", f"output {i}") for i in range(count)]
    others = other_examples(examples)
    assert len(others) == count
    assert {len(shown) for shown in others} == {min(count - 1, MAX_SHOTS)}
    for example, shown in zip(examples, others, strict=True):
        assert example not in shown
        assert len(set(shown)) == len(shown)
        assert set(shown) <= set(examples)
    times = [sum(example in shown for shown in others) for example in examples]
    assert set(times) == {min(count - 1, MAX_SHOTS)}, "each is shown equally often"


def test_few_others_come_in_their_order_and_many_from_the_next_one_on():
    few = [Example(str(i), "x") for i in range(4)]
    assert other_examples(few)[2] == [few[0], few[1], few[3]]
    many = [Example(str(i), "x") for i in range(MAX_SHOTS + 4)]
    last = len(many) - 1
    assert other_examples(many)[last] == many[:MAX_SHOTS]
    assert other_examples(many)[0] == many[1 : MAX_SHOTS + 1]


def test_divergence_of_two_answers_worked_out_by_hand():
    """KL((1/2, 1/2) ‖ (1/4, 3/4)) = ln 2 − ½ ln 3; KL((1, 0) ‖ (1/2, 1/2)) = ln 2."""
    logits = torch.tensor([[[0.25, 0.75], [9.0, -9.0]], [[0.5, 0.5], [1.0, 2.0]]])
    logits[0, 0], logits[1, 0] = logits[0, 0].log(), logits[1, 0].log()
    teacher = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).clamp_min(1e-30).log()
    labels = torch.tensor([[1, IGNORE], [0, IGNORE]])
    found = token_divergence(logits, teacher, labels)
    ln2, ln3 = torch.tensor([2.0, 3.0]).log()
    torch.testing.assert_close(found, torch.stack([torch.stack([ln2 - ln3 / 2, ln2]), torch.zeros(2)], dim=1))


def test_a_model_does_not_diverge_from_itself(tiny):
    template = Template(tiny.tokenizer, TASK)
    batch = collate([template.encode(e.input, answer=e.output) for e in TASK.examples], tiny.pad)
    with torch.no_grad():
        logits = answer_logits(tiny, batch)
    teacher = logits[batch.labels != IGNORE].log_softmax(-1)
    assert float(token_divergence(logits, teacher, batch.labels).abs().max()) < 1e-5
    other = token_divergence(logits, teacher.flip(-1), batch.labels)
    assert bool((other[batch.labels != IGNORE] > 0.01).all())
    assert not other[batch.labels == IGNORE].any()


@pytest.mark.parametrize("positions", ["last_prompt", "all"])
def test_the_gradient_of_the_divergence_reaches_the_vectors_alone(tiny, positions):
    template, examples = Template(tiny.tokenizer, TASK), TASK.examples
    teacher = few_shot_teacher(Engine(tiny), template, examples)
    batch = collate([template.encode(e.input, answer=e.output) for e in examples], tiny.pad)
    steered = SteeredLM(Engine(tiny), Intervention.zeros(tiny, "heads", [0, 1], positions=positions))
    try:
        losses = steered(batch, torch.cat(teacher))
        assert losses.divergence.shape == batch.labels.shape
        losses.divergence.sum().backward()
        assert all(bool(v.grad.ne(0).any()) for v in steered.intervention.parameters())
        assert not any(p.grad is not None for p in tiny.llm.parameters())
        assert not any(row.requires_grad for row in teacher)
        assert not steered(batch).divergence.any(), "none without a teacher"
    finally:
        steered.detach()


def losses_of(module, data):
    """Mean negative log-likelihood and mean divergence from the teacher per answer token, of what was learned."""
    examples, model = data.splits.train, module.language_model
    teacher = few_shot_teacher(Engine(model), module.template, examples)
    batch = collate([prompt for _, prompt in encode_training(module.template, examples)], model.pad)
    steered = SteeredLM(Engine(model), module.intervention)
    try:
        with torch.no_grad():
            losses = steered(batch, torch.cat(teacher))
    finally:
        steered.detach()
    return tuple(float(loss.sum()) / int((batch.labels != IGNORE).sum()) for loss in losses)


def test_distillation_brings_the_model_nearer_to_its_teacher(learn, words_data):
    data, found = words_data(6), {}
    for steps, weight in ((1, 0.0), (12, 0.0), (12, 20.0)):
        still = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0)} if steps == 1 else {}
        module = learn(steps=steps, layers="all", distill=weight, data=data, **still)
        assert len(module.prepared.teacher) == (6 if weight else 0)
        found[steps, weight] = losses_of(module, data)
    (_, at_first), (plain_nll, plain), (nll, distilled) = found.values()
    assert distilled < plain
    assert distilled < at_first
    assert plain_nll < nll, "at the price of the answers' likelihood"


@pytest.mark.parametrize(("examples", "taught"), [(1, 0), (2, 0), (4, 0), (5, 5)])
def test_few_examples_have_no_teacher(learn, words_data, examples, taught):
    """Behind so few others the model knows the task too badly; one has no others."""
    assert len(learn(steps=1, distill=0.5, data=words_data(examples)).prepared.teacher) == taught
