"""Measuring against loops by hand: one prompt at a time, no cache, no padding, no sharing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from laai.engine import Engine
from laai.engine import beginnings as engine_beginnings
from laai.engine.beginnings import common_length
from laai.errors import UserError
from laai.evaluation.measuring import choose_options, measure
from laai.learn.teacher import few_shot_teacher
from laai.prompts.batches import by_length
from laai.prompts.demonstrations import answer_limit
from laai.prompts.templates import Template
from laai.steering.intervention import Intervention
from laai.tasks.examples import Example, Task
from tests.tiny_models import random_vectors, steered_by_hand

ARCHITECTURES = ("llama", "mistral", "gemma2", "gpt2", "gpt_neox", "bloom", "falcon", "mpt")
POSITIONS = ("last_prompt", "generated", "all")
CLOSE = {"rel": 1e-4, "abs": 1e-4}


def columns(positions, prompt, length):
    return {"last_prompt": [prompt - 1], "generated": range(prompt - 1, length), "all": range(length)}[positions]


@torch.no_grad()
def logits_by_hand(model, ids, prompt, vectors, positions):
    with steered_by_hand(model.llm, model.name, vectors, [columns(positions, prompt, len(ids))]):
        return model.llm(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def nll_by_hand(model, prompt, vectors, positions):
    ids = [*prompt.prompt, *prompt.answer]
    logs = logits_by_hand(model, ids, len(prompt.prompt), vectors, positions).log_softmax(-1)
    return [-float(logs[len(prompt.prompt) - 1 + j, token]) for j, token in enumerate(prompt.answer)]


def greedy_by_hand(model, prompt, new, vectors, positions):
    ids = list(prompt.prompt)
    for _ in range(new):
        ids.append(int(logits_by_hand(model, ids, len(prompt.prompt), vectors, positions)[-1].argmax()))
    return ids[len(prompt.prompt) :]


def measure_by_hand(model, template, examples, shots=(), vectors=None, positions="all"):
    """(first line, exact match, mean NLL, choice by sum, choice by mean, prompt tokens) of each example."""
    vectors, rows = vectors or {}, []
    limit = max(len(template.encode(e.input, answer=e.output).answer) for e in examples)
    for e in examples:
        prompt = template.encode(e.input, shots, e.output)
        text = model.tokenizer.decode(
            greedy_by_hand(model, prompt, limit, vectors, positions), skip_special_tokens=True
        ).strip()
        line = text.split("\n")[0].strip()
        nll = nll_by_hand(model, prompt, vectors, positions)
        sums, means = None, None
        if e.choices:
            options = [template.encode(e.input, shots, o, terminate=False) for o in e.choices]
            nlls = [nll_by_hand(model, o, vectors, positions) for o in options]
            sums = min(range(len(nlls)), key=lambda i: sum(nlls[i])) == e.choices.index(e.output)
            means = min(range(len(nlls)), key=lambda i: sum(nlls[i]) / len(nlls[i])) == e.choices.index(e.output)
        rows.append((line, line == e.output, sum(nll) / len(nll), sums, means, len(prompt.prompt)))
    return rows


def assert_same(measured, by_hand):
    assert [m.row for m in measured] == list(range(len(by_hand)))
    for m, (line, exact, nll, sums, means, length) in zip(measured, by_hand, strict=True):
        assert m.nll == pytest.approx(nll, **CLOSE)
        assert (m.answer, m.exact, m.choice_sum, m.choice_mean, m.prompt_tokens) == (line, exact, sums, means, length)
        assert m.seconds > 0


def numbered(examples):
    return list(enumerate(examples))


@pytest.mark.parametrize("shots", [0, 3])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_measure_equals_loops_by_hand(character_model, letter_task, name, shots):
    model = character_model(name)
    template, examples = Template(model.tokenizer, letter_task), letter_task.examples[3:]
    demonstrations = letter_task.examples[:shots]
    measured = measure(model, template, numbered(examples), demonstrations, batch_size=4)
    assert_same(measured, measure_by_hand(model, template, examples, demonstrations))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "bloom", "mpt"])
def test_steered_behind_a_shared_beginning(character_model, letter_task, monkeypatch, name, positions):
    model = character_model(name)
    template, examples, shots = (
        Template(model.tokenizer, letter_task),
        letter_task.examples[3:],
        letter_task.examples[:3],
    )
    vectors = random_vectors(name, [("residual", 0), ("heads", 1)], 0.5)
    with Intervention(vectors, positions=positions).on(model):
        shared = measure(model, template, numbered(examples), shots, batch_size=4)
        monkeypatch.setattr(engine_beginnings, "WORTHWHILE", 10**6)
        unshared = measure(model, template, numbered(examples), shots, batch_size=4)
    by_hand = measure_by_hand(model, template, examples, shots, vectors, positions)
    assert_same(unshared, by_hand)
    assert_same(shared, by_hand)


@pytest.mark.parametrize("positions", [None, "last_prompt", "generated"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_was_run_before_is_reused(character_model, letter_task, name, positions):
    """Prefixes that were kept without any vector, used under one; and a common beginning run once for two calls."""
    model, runs = character_model(name), []
    template, examples = Template(model.tokenizer, letter_task), letter_task.examples[3:]
    shots, engine = letter_task.examples[:3], Engine(model)
    measure(model, template, numbered(examples), batch_size=4, engine=engine)
    measure(model, template, numbered(examples[:2]), shots, batch_size=4, engine=engine)
    vectors = random_vectors(name, [("residual", 0), ("heads", 1)], 0.5) if positions else {}
    handle = model.llm.get_input_embeddings().register_forward_hook(lambda _, __, out: runs.append(out.shape[1]))
    try:
        with Intervention(vectors, positions=positions or "last_prompt").on(model):
            zero_shot = measure(model, template, numbered(examples), batch_size=3, engine=engine)
            longest = max(len(template.encode(e.input, answer=e.output).suffix) for e in examples)
            assert max(runs) <= longest, "suffixes alone"
            few_shot = measure(model, template, numbered(examples), shots, batch_size=4, engine=engine)
            assert max(runs) < len(template.encode("", shots).prefix)
    finally:
        handle.remove()
    assert_same(zero_shot, measure_by_hand(model, template, examples, (), vectors, positions or "all"))
    assert_same(few_shot, measure_by_hand(model, template, examples, shots, vectors, positions or "all"))


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_a_query_behind_demonstrations_is_run_once(character_model, letter_task, name):
    """Generation, likelihood and all options of a query share it; the demonstrations are run once for all queries."""
    model, ran = character_model(name), []
    template, shots = Template(model.tokenizer, letter_task), letter_task.examples[:3]
    examples = [e for e in letter_task.examples[3:] if e.choices][:4]
    handle = model.llm.get_input_embeddings().register_forward_hook(lambda _, __, out: ran.append(out.shape[:2]))
    try:
        measure(model, template, numbered(examples), shots, engine=Engine(model))
    finally:
        handle.remove()
    prompts = [template.encode(e.input, shots, e.output) for e in examples]
    common = common_length([prompt.prefix for prompt in prompts])
    own = sum(len(prompt.prefix) - common for prompt in prompts)
    longest = max(len(prompt.suffix) for prompt in prompts)
    long = [rows * tokens for rows, tokens in ran if tokens > longest]
    assert sum(long) <= common + own
    assert sum(long) >= common


def test_a_query_is_charged_its_share_of_the_common_beginning(character_model, letter_task):
    model = character_model("llama")
    engine = Engine(model)
    template, shots = Template(model.tokenizer, letter_task), letter_task.examples[:3]
    examples = letter_task.examples[3:7]
    measure(model, template, numbered(examples), shots, engine=engine)
    kept = engine._beginnings.kept
    kept |= {ids: replace(beginning, seconds=4000.0) for ids, beginning in kept.items()}
    for one in measure(model, template, numbered(examples), shots, engine=engine):
        assert 1000 <= one.seconds < 1100


def test_batches_do_not_change_what_is_measured(tiny, word_task):
    template, examples = Template(tiny.tokenizer, word_task), numbered(word_task.examples[:9])
    one, all_at_once = (measure(tiny, template, examples, batch_size=size) for size in (1, 100))
    for a, b in zip(one, all_at_once, strict=True):
        assert a.nll == pytest.approx(b.nll, **CLOSE)
        assert (a.answer, a.choice_sum, a.choice_mean) == (b.answer, b.choice_sum, b.choice_mean)
    assert measure(tiny, template, []) == []
    assert measure(tiny, template, examples[4:5])[0].nll == pytest.approx(one[4].nll, **CLOSE)


def test_generation_is_greedy_whatever_the_model_ships_as_default(character_model, letter_task, monkeypatch):
    """Chat models come with sampling and repetition penalties, which would change answers seen in demonstrations."""
    model = character_model("llama")
    template, examples, shots = (
        Template(model.tokenizer, letter_task),
        letter_task.examples[3:],
        letter_task.examples[:3],
    )
    by_hand = measure_by_hand(model, template, examples, shots)
    before = model.llm.generation_config
    changed = type(before)(**(before.to_dict() | {"repetition_penalty": 5.0, "do_sample": True, "temperature": 3.0}))
    changed.suppress_tokens = [int(greedy_by_hand(model, template.encode("a", shots), 1, {}, "all")[0])]
    monkeypatch.setattr(model.llm, "generation_config", changed)
    assert_same(measure(model, template, numbered(examples), shots), by_hand)
    assert model.llm.generation_config is changed


def test_an_answer_that_goes_on_is_no_match(tiny, word_task):
    template = Template(tiny.tokenizer, word_task)
    longest = max(len(template.encode(e.input, answer=e.output).answer) for e in word_task.examples)
    assert answer_limit(template, word_task.examples) == longest
    assert longest >= 3, "'dark blue' and its terminator"


def test_an_option_that_begins_another_can_lose_to_it(tiny):
    """The longer one has more to pay for, always: so both are scored with their ends."""
    labels = ("agree", "agree strongly", "no")
    task = Task("views", tuple(Example(f"view {i}", labels[i % 3], labels) for i in range(6)))
    template = Template(tiny.tokenizer, task)
    (found, *_) = choose_options(tiny, template, task.examples[:1])
    with_ends = [template.encode("view 0", answer=label) for label in labels]
    by_hand = [sum(nll_by_hand(tiny, prompt, {}, "last_prompt")) for prompt in with_ends]
    assert found.nlls == pytest.approx(by_hand, **CLOSE)
    twice = ("yes", "no", "no")
    plain = replace(task, examples=tuple(Example(f"view {i}", "no", twice, 2) for i in range(2)))
    (found, *_) = choose_options(tiny, Template(tiny.tokenizer, plain), plain.examples)
    (measured, _) = measure(tiny, Template(tiny.tokenizer, plain), numbered(plain.examples))
    assert measured.choice_sum is (found.nlls[1] < found.nlls[0]), (
        "an answer that stands there twice is right as either"
    )
    without = [template.encode("view 0", answer=label, terminate=False) for label in twice]
    assert found.nlls == pytest.approx([sum(nll_by_hand(tiny, p, {}, "last_prompt")) for p in without], **CLOSE)


def test_batches_by_length():
    from laai.prompts.batches import Prompt

    prompts = [Prompt((1,) * n, (1,) * (1 + n % 2)) for n in (3, 0, 7, 3, 5)]
    assert list(by_length(prompts, 2)) == [[2, 4], [0, 3], [1]]
    assert list(by_length(prompts, 2, equal=True)) == [[2], [4], [0, 3], [1]]


def test_chat_prompts_by_hand(tiny, word_task):
    template, examples = Template(tiny.tokenizer, word_task, "chat"), word_task.examples[:4]
    shots = word_task.examples[4:6]
    measured = measure(tiny, template, numbered(examples), shots)
    for m, e in zip(measured, examples, strict=True):
        text = tiny.tokenizer.apply_chat_template(
            [
                {"role": "system", "content": word_task.instruction},
                *(turn for s in shots for turn in (
                    {"role": "user", "content": s.input}, {"role": "assistant", "content": s.output}
                )),
                {"role": "user", "content": e.input},
            ],
            tokenize=False, add_generation_prompt=True,
        )  # fmt: skip
        prompt = tiny.tokenizer.encode(text, add_special_tokens=False)
        answer = tiny.tokenizer.encode(f"{e.output}<|im_end|>", add_special_tokens=False)
        with torch.no_grad():
            logs = tiny.llm(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        nll = -sum(float(logs[len(prompt) - 1 + j, t]) for j, t in enumerate(answer)) / len(answer)
        assert m.nll == pytest.approx(nll, **CLOSE)
        assert m.prompt_tokens == len(prompt)


@pytest.mark.parametrize(("name", "learned"), [("gpt2", True), ("opt", True), ("llama", False)])
def test_prompts_longer_than_a_table_of_positions_are_refused(character_model, name, learned):
    """In one line, where PyTorch has an index error; positions that are computed go on, with a warning."""
    model = character_model(name)
    limit = model.llm.config.max_position_embeddings
    fits, long = ("a" * (limit - 4), "a" * (limit + 1))
    task = Task("long", (Example(fits, "b"), Example(long, "b")), input_prefix="", answer_prefix=">")
    template = Template(model.tokenizer, task)
    assert len(measure(model, template, [(0, Example("a", "b"))])) == 1
    if not learned:
        with pytest.warns(UserWarning, match=f"longer than the {limit} tokens that this model was made for"):
            assert len(measure(model, template, [(0, task.examples[1])])) == 1
        return
    with pytest.raises(UserError, match=f"more than {limit} positions"):
        measure(model, template, [(0, task.examples[1])])
    with pytest.raises(UserError, match=f"more than {limit} positions"):
        few_shot_teacher(Engine(model), template, 3 * task.examples)
