"""The label prior against logits by hand: it shifts the labels as asked, and nothing where it cannot."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cast.extraction import calibration as module
from cast.extraction.calibration import CLOSE, first_tokens, label_prior, reach, with_label_prior
from cast.transfers.search import choose_placement
from laai.evaluation import metrics
from laai.evaluation.measuring import choose_options
from laai.evaluation.metrics import label_offsets
from laai.prompts.templates import Template
from laai.steering.intervention import Intervention
from laai.tasks.examples import Example, Task
from tests.tiny_models import LAYERS


@pytest.fixture
def task():
    labels = ("red", "blue", "stone")
    examples = tuple(Example(f"{word} {i}", labels[i % 3], labels, i % 3) for i, word in enumerate("abcdefghijkl"))
    return Task("kinds", examples)


def logits_by_hand(model, template, examples, steering, ids):
    rows = []
    with steering.on(model), torch.no_grad():
        for example in examples:
            prompt = torch.tensor([template.encode(example.input).prompt])
            rows.append(model.llm(input_ids=prompt, use_cache=False).logits[0, -1, ids])
    return torch.stack(rows)


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_labels_are_shifted_by_the_label_offsets(character_model, letter_task, monkeypatch, name, scale):
    model, ids = character_model(name), [4, 9]
    monkeypatch.setattr(module, "first_tokens", lambda *_: ids)  # letter by letter all answers begin with a space
    monkeypatch.setattr(metrics, "MEAN_FLOOR", 0.2)
    examples = [e for e in letter_task.examples if e.choices]
    options = examples[0].choices
    examples = [replace(e, choices=options, output=options[0], label=0) for e in examples]
    template = Template(model.tokenizer, letter_task)
    assert first_tokens(template, examples) is None
    vector = scale * Intervention.random(model, "heads", range(LAYERS), norm=1.0, seed=1)
    prior = label_prior(model, vector, template, examples)
    plain = logits_by_hand(model, template, examples, vector, ids)
    change = (logits_by_hand(model, template, examples, vector + prior, ids) - plain).mean(dim=0)
    wanted = label_offsets(plain)
    torch.testing.assert_close(change - change.mean(), wanted, rtol=0.03, atol=0.02)
    assert wanted.abs().min() > 0.01
    assert list(prior.provenance.label_prior.values()) == pytest.approx(wanted.tolist(), abs=1e-3)


def test_labels_become_equally_likely(tiny, task, monkeypatch):
    monkeypatch.setattr(metrics, "MEAN_FLOOR", 0.02)  # what the final norm of so small a model lets through
    template, vector = Template(tiny.tokenizer, task), Intervention.random(tiny, "heads", range(3), norm=2.0, seed=3)
    both = with_label_prior(tiny, 0.5 * vector, template, task.examples)
    assert both.sites == ["heads", "residual"]
    assert set(both.provenance.label_prior) == {"red", "blue", "stone"}

    def odds(steering):
        """Mean log-probabilities of the whole labels, less their mean."""
        with steering.on(tiny):
            found = choose_options(tiny, template, task.examples)
        mean = -torch.tensor([one.nlls for one in found]).mean(dim=0)
        return mean - mean.mean()

    wanted = torch.tensor(list(both.provenance.label_prior.values()))
    torch.testing.assert_close(odds(both) - odds(0.5 * vector), wanted, rtol=0.1, atol=0.05)
    shuffled = [replace(e, label=(e.label + 1) % 3, output=e.choices[(e.label + 1) % 3]) for e in task.examples]
    blind = with_label_prior(tiny, 0.5 * vector, template, shuffled)
    assert blind.provenance == both.provenance, "which label is right is not looked at"


def test_no_query_loses_its_likeliest_label_to_other_words(tiny, task, monkeypatch):
    """Lowering the label that the model leans to, alone, would."""
    monkeypatch.setattr(metrics, "MEAN_FLOOR", 0.02)
    template, vector = Template(tiny.tokenizer, task), Intervention.random(tiny, "heads", range(3), norm=2.0, seed=3)
    ids = first_tokens(template, task.examples)

    def odds(steering):
        logits = logits_by_hand(tiny, template, task.examples, steering, slice(None))
        others = [i for i in range(logits.shape[1]) if i not in ids]
        return (logits[:, ids] - logits[:, others].logsumexp(dim=-1, keepdim=True)).amax(dim=-1)

    before, after = odds(vector), odds(with_label_prior(tiny, vector, template, task.examples))
    assert (after - before).min() > -0.5, "as far as the final norm lets so small a model go"
    assert (after - before).mean() > 0


def test_where_it_cannot_serve(tiny, task, word_task):
    template, vector = Template(tiny.tokenizer, task), Intervention.random(tiny, "heads", [1], seed=0)
    examples = task.examples
    everywhere = vector.with_vectors(dict(vector.items()), positions="generated")
    kept = vector.with_vectors(dict(vector.items()), preserve_norm=True)
    for other in (everywhere, kept):
        assert label_prior(tiny, other, template, examples) is None
    same = [replace(e, choices=("red", "red hot", "stone"), label=0, output="red") for e in examples]
    differing = [replace(examples[0], choices=("red", "blue"), output="red", label=0), *examples[1:]]
    for bad in (same, differing, [], [replace(e, choices=None, label=None) for e in examples]):
        assert label_prior(tiny, vector, template, bad) is None
        assert with_label_prior(tiny, vector, template, bad) is vector


def test_offsets():
    logits = torch.tensor([[0.9, 0.1], [0.7, 0.3]]).log()
    found = label_offsets(logits)
    torch.testing.assert_close(found[1] - found[0], torch.tensor(4.0).log())
    assert found.sum().abs() < 1e-6
    assert label_offsets(torch.tensor([[0.0, -100.0]])).max() < 4, "what is never likely is not blown up"


def test_examples_on_which_the_model_overflows_are_left_out(tiny, word_task):
    """One word's token becomes NaN, which spreads over its own prompt alone."""
    template, examples = Template(tiny.tokenizer, word_task), word_task.examples[:8]
    vector = 2.0 * Intervention.random(tiny, "heads", range(3), seed=1)
    others = {token for e in examples[1:] for token in template.encode(e.input).prefix}
    own = next(token for token in template.encode(examples[0].input).prefix if token not in others)
    embedding = tiny.llm.get_input_embeddings()
    handle = embedding.register_forward_hook(
        lambda _, ids, out: out.masked_fill((ids[0] == own)[..., None], float("nan"))
    )
    try:
        found, none = (label_prior(tiny, vector, template, shown) for shown in (examples, examples[:1]))
        choice = choose_placement(tiny, vector, template, examples, progress=False)
    finally:
        handle.remove()
    assert none is None
    expected = label_prior(tiny, vector, template, examples[1:])
    assert found.provenance.label_prior == pytest.approx(expected.provenance.label_prior, abs=1e-3)
    torch.testing.assert_close(found["residual", 2], expected["residual", 2], rtol=1e-3, atol=1e-4)
    kept = choose_placement(tiny, vector, template, examples[1:], progress=False)
    assert (choice.layers, choice.scale, choice.examples) == (kept.layers, kept.scale, 7)
    assert choice.gain == pytest.approx(kept.gain, rel=1e-3)
    assert choice.choice_gain == pytest.approx(kept.choice_gain, abs=1e-4)


TURN = torch.tensor([[2.0, 0.5], [-0.5, 1.0]])


@pytest.mark.parametrize(
    "change",
    [
        lambda w: TURN @ w,
        lambda w: (TURN @ w).sinh(),  # ever steeper: a response that is measured at 0 and kept overshoots for good
        lambda w: 3 * (TURN @ w / 3).tanh(),  # ever flatter
        lambda w: TURN @ w - 0.2 * w.square().sum(),  # all labels fall behind other tokens as the vector grows
    ],
    ids=["straight", "steeper", "flatter", "falling"],
)
@pytest.mark.parametrize("length", [1e-2, 10.0])
def test_the_wanted_shift_is_reached(change, length):
    """By probes too short to see the bend, and too long to see anything else."""
    wanted = torch.tensor([2.0, -1.5])
    found = reach(change, wanted, length)
    torch.testing.assert_close(change(found), wanted, atol=CLOSE, rtol=0)


def test_what_is_out_of_reach_is_told():
    wanted = torch.tensor([2.0, -1.5])
    assert reach(lambda w: w.tanh(), wanted, 0.1) is None
    assert reach(lambda w: w * float("nan"), wanted, 0.1) is None


def test_no_prior_where_the_shifts_are_out_of_reach(tiny, task, monkeypatch):
    vector, template = Intervention.random(tiny, "heads", range(3), seed=0), Template(tiny.tokenizer, task)
    assert label_prior(tiny, vector, template, task.examples) is not None
    monkeypatch.setattr(module, "reach", lambda *_: None)
    assert label_prior(tiny, vector, template, task.examples) is None
