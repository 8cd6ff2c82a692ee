"""`FewShotDataModule`: which examples go where, and in what order."""

from __future__ import annotations

import pytest

from laai.errors import UserError
from laai.prompts.batches import IGNORE
from laai.runtime.data import FewShotDataModule, encode_training
from laai.tasks.examples import Example, Task


@pytest.fixture
def epochs(learn, monkeypatch):
    """A function that gives the rows of every training batch of a fit."""

    def run(data, steps):
        import laai.runtime.data as module

        rows, real = [], module.collate

        def keep(prompts, pad, numbers):
            rows.append(numbers)
            return real(prompts, pad, numbers)

        monkeypatch.setattr(module, "collate", keep)
        learn(steps=steps, data=data)
        monkeypatch.undo()
        return rows

    return run


def test_all_examples_in_one_batch_in_their_order(epochs, words_data):
    assert epochs(words_data(6), 3) == [list(range(6))] * 3
    assert epochs(words_data(6, batch_size=100), 2) == [list(range(6))] * 2


def test_smaller_batches_are_shuffled_by_the_seed(epochs, words_data):
    first, again, other = (epochs(words_data(6, batch_size=4, seed=seed), 6) for seed in (0, 0, 1))
    assert [len(rows) for rows in first] == [4, 2] * 3
    for epoch in (first[:2], first[2:4], first[4:]):
        assert sorted(row for rows in epoch for row in rows) == list(range(6))
    assert first == again != other
    assert len({tuple(map(tuple, first[i : i + 2])) for i in (0, 2, 4)}) > 1, "another order each time"


def test_a_batch_holds_prompts_and_answers(tiny, words_data, learn):
    data = words_data(3)
    learn(steps=1, data=data)
    (batch,) = list(data.train_dataloader())
    for row, example in enumerate(data.splits.train):
        ids = [*batch.prefix_ids[row][batch.prefix_mask[row].bool()], *batch.suffix_ids[row][:1]]
        assert tiny.tokenizer.decode(ids) == f"Name the colour.\n\nQ: {example.input}\nA:"
        answer = batch.labels[row][batch.labels[row] != IGNORE]
        assert tiny.tokenizer.decode(answer) == f" {example.output}\n"
    encoded = encode_training(data.template(tiny.tokenizer), data.splits.train)
    assert [row for row, _ in encoded] == [0, 1, 2]


def test_no_example_is_in_two_splits(words_data):
    data = words_data(6, test=9, validation=5)
    sets = [{e.input for e in part} for part in (data.splits.train, data.splits.validation, data.splits.test)]
    assert [len(part) for part in sets] == [6, 5, 9]
    assert len(set.union(*sets)) == 20


def test_test_examples_do_not_depend_on_the_number_of_training_examples(words_data):
    assert words_data(2, test=9).splits.test == words_data(12, test=9).splits.test
    assert words_data(2, seed=0).splits.test != words_data(2, seed=1).splits.test


def test_test_examples_at_most(words_data, word_task):
    pool = len(word_task.examples)
    assert len(words_data(10, test=1000, validation=3).splits.test) == pool - 13
    assert len(words_data(pool - 1, test=100).splits.test) == 1
    assert words_data(pool, test=0).splits.test == ()
    given = Task("given", word_task.examples[:10], word_task.examples[10:14])
    assert len(FewShotDataModule(given, 5, test=100).splits.test) == 4
    assert list(words_data(2, test=3).test_dataloader().dataset) == [0, 1, 2]
    assert words_data(2).val_dataloader() == []
    for options in ({"test": 100}, {"test": None}):
        with pytest.raises(UserError, match="ask for fewer"):
            words_data(pool, **options)


@pytest.mark.parametrize(
    "wrong",
    [{"num_examples": 0}, {"validation": -1}, {"test": -1}, {"batch_size": 0}, {"eval_batch_size": 0}],
)
def test_sizes_that_make_no_sense(words_data, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        words_data(**wrong)


def test_it_needs_a_trainer(words_data):
    with pytest.raises(RuntimeError):
        words_data().train_dataloader()


def test_inputs_that_differ_in_case_alone_leave_a_smaller_test():
    """A hundred is the most: variants of tested inputs are not trained on, so that there are fewer to draw from."""
    words = [f"word {i}" for i in range(100)]
    task = Task("t", tuple(Example(text, "out") for text in [*words, *map(str.upper, words[:6])]))
    for seed in range(20):
        data = FewShotDataModule(task, 10, seed=seed, validation=5, test=100)
        assert [len(data.splits.train), len(data.splits.validation), len(data.splits.test)] == [10, 5, 85]
        FewShotDataModule(task, 10, seed=seed, test=None)


def test_examples_are_encoded_once_a_run(learn, words_data, monkeypatch):
    from laai.prompts.templates import Template

    seen, real = [], Template.encode

    def encode(self, text, shown=(), answer=None):
        seen.extend([text] if answer is not None and not shown else [])
        return real(self, text, shown, answer)

    monkeypatch.setattr(Template, "encode", encode)
    data = words_data(6)
    learn(steps=2, data=data, init="cast")
    assert seen == [example.input for example in data.splits.train]
