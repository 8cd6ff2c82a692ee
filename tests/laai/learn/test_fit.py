"""`laai.fit`, as the package's docstring shows it."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

import cast
import laai
from laai.errors import UserError
from laai.tasks.examples import Task


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def assert_untouched(llm, before):
    after = llm.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in llm.modules())
    assert "generate" not in vars(llm)
    assert not llm.training


def test_the_lines_of_the_docstring(tiny, word_task, weights, tmp_path):
    before = weights(tiny.llm)
    start = cast.extract(tiny, source=word_task, samples=10, shots=3)
    vector = laai.fit(tiny, word_task, num_examples=10, init=start, steps=2)
    ids = torch.tensor([tiny.tokenizer.encode("Q: amber\nA:")])
    plain = tiny.llm(ids).logits
    with vector.on(tiny):
        assert not torch.allclose(tiny.llm(ids).logits, plain, atol=1e-3)
        assert tiny.llm.generate(ids, max_new_tokens=2).shape == (1, ids.shape[1] + 2)
    assert torch.equal(tiny.llm(ids).logits, plain)
    assert_untouched(tiny.llm, before)
    assert list(tmp_path.iterdir()) == [], "nothing is written"
    mixed = (vector + 0.5 * start - vector).save(tmp_path / "mix.safetensors")
    assert laai.Intervention.load(mixed, tiny).layers == [0, 1, 2]


def test_a_second_fit_gives_the_same(tiny, word_task):
    options = {"num_examples": 6, "steps": 3, "site": "residual", "layers": [1], "batch_size": 3}
    a, b = (laai.fit(tiny, word_task, **options) for _ in range(2))
    assert torch.equal(a["residual", 1], b["residual", 1])
    c = laai.fit(tiny, word_task, seed=1, **options)
    assert not torch.equal(a["residual", 1], c["residual", 1])


def test_all_of_a_tasks_examples_can_be_learned_from(tiny, word_task):
    few = Task("few", word_task.examples[:10])
    assert laai.fit(tiny, few, 10, steps=1).provenance.training["num_examples"] == 10
    with pytest.raises(UserError, match="ask for fewer"):
        laai.fit(tiny, few, 11, steps=1)


def test_starts(tiny, word_task, tmp_path):
    still = {"steps": 1, "optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "num_examples": 4}
    start = cast.extract(tiny, word_task, samples=4, shots=2, progress=False)
    given = laai.fit(tiny, word_task, init=2 * start, **still)
    torch.testing.assert_close(given["heads", 0], 2 * start["heads", 0])
    path = start.save(tmp_path / "start.safetensors")
    for init in (path, str(path)):
        read = laai.fit(tiny, word_task, init=init, init_scale=1.0, **still)
        torch.testing.assert_close(read["heads", 0], start["heads", 0])
    assert bool((laai.fit(tiny, word_task, init="zero", **still)["heads", 0] == 0).all())


class Fails(Callback):
    def __init__(self, where):
        setattr(self, where, self._fail)

    def _fail(self, *_, **__):
        raise KeyError("failed on purpose")


@pytest.mark.parametrize("where", ["setup", "on_train_start", "on_train_batch_end", "on_train_end"])
def test_the_model_is_unhooked_when_it_raises(tiny, word_task, weights, where):
    before = weights(tiny.llm)
    with pytest.raises(KeyError):
        laai.fit(tiny, word_task, steps=2, callbacks=[Fails(where)])
    assert_untouched(tiny.llm, before)


def test_validation_keeps_the_best(tiny, word_task, monkeypatch):
    from laai.learn.module import LAAIModule

    seen, scores = [], [2.0, 1.0, 3.0, 4.0, 5.0, 6.0]

    def log_scores(module):
        seen.append({key: v.detach().clone() for key, v in module.intervention.items()})
        module.log("val/nll", scores[len(seen) - 1])

    monkeypatch.setattr(LAAIModule, "on_validation_epoch_end", log_scores)
    vector = laai.fit(tiny, word_task, num_examples=6, steps=30, validation=4)
    assert len(seen) == 5, "three validations without progress"
    for key, v in vector.items():
        assert torch.equal(v, seen[1][key])
        assert not torch.equal(v, seen[-1][key])


def test_a_trainer_of_ones_own(tiny, word_task, quiet_trainer):
    vector = laai.fit(tiny, word_task, num_examples=4, trainer=quiet_trainer(max_steps=2))
    assert vector.provenance.training["steps"] == 2


@pytest.mark.parametrize("given", [{"steps": 3}, {"stop_at_loss": 0.0}, {"callbacks": [Callback()]}])
def test_what_a_trainer_of_ones_own_would_ignore_is_refused(tiny, word_task, quiet_trainer, given):
    with pytest.raises(UserError, match="in the trainer, found some beside it"):
        laai.fit(tiny, word_task, trainer=quiet_trainer(), **given)


def test_a_start_from_another_task(tiny, word_task):
    start = laai.fit(tiny, word_task, 4, steps=1, source="antonym", cast=cast.CastStart(samples=3, shots=2))
    assert [start.provenance.start[name] for name in ("source", "samples", "shots")] == ["antonym", 3, 2]


def test_a_style(tiny, word_task):
    chat = laai.fit(tiny, word_task, 4, steps=2, style="chat")
    assert chat.provenance.training["style"] == "chat"
    plain = laai.fit(tiny, word_task, 4, steps=2)
    assert not torch.allclose(chat["heads", 0], plain["heads", 0])
