import random
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from laai.errors import UserError
from laai.tasks.examples import Example, Task, same_text
from laai.tasks.loading import builtin_tasks, load_task
from laai.tasks.repeats import dedupe


def words(count: int, name: str = "words", **fields) -> Task:
    return Task(name, tuple(Example(f"in{i}", f"out{i}") for i in range(count)), **fields)


def labelled(counts: dict[str, int]) -> Task:
    choices = tuple(counts)
    return Task(
        "labelled", tuple(Example(f"{label}{i}", label, choices) for label in choices for i in range(counts[label]))
    )


def inputs(examples) -> list[str]:
    return [example.input for example in examples]


def test_label_is_filled_in_from_choices():
    assert Example("x", "b", ("a", "b")).label == 1
    assert Example("x", "b").label is None


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([Example("a", "b")], "at least 2 examples, found 1"),
        ([], "at least 2 examples, found 0"),
        ([Example("a", "b"), Example("a", "b")], "'a' occurs twice"),
        ([Example("a", "b"), Example(" ", "b")], "example 2: input must be a text that is not empty"),
        ([Example("a", "b"), Example("c", "\n")], "example 2: output must be"),
        ([Example("a", "b"), Example("c", 3)], "output must be a text that is not empty, got 3"),
        ([Example("a", "b"), Example("c", "d", ("e", "f"))], "'d' is none of its choices"),
        ([Example("a", "b"), Example("c", "d", ("d", "e"), 1)], "label 1 is not the index of 'd'"),
        ([Example("a", "b"), Example("c", "d", ("d", "e"), -2)], "label -2 is not the index"),
        ([Example("a", "b"), Example("c", "d", None, 0)], "label 0 but no choices"),
    ],
)
def test_task_rejects_bad_examples(examples, message):
    with pytest.raises(UserError, match=message) as caught:
        Task("t", tuple(examples))
    assert "\n" not in str(caught.value)


def test_repeated_choices_are_allowed_with_any_of_their_indices():
    task = Task("t", (Example("a", "x", ("x", "y", "x"), 2), Example("b", "y", ("x", "y", "x"))))
    assert [example.label for example in task.examples] == [2, 1]


def test_has_choices_needs_them_everywhere():
    with_choices = Example("a", "x", ("x", "y")), Example("b", "y", ("x", "y"))
    assert Task("t", with_choices).has_choices
    assert not Task("t", (*with_choices, Example("c", "z"))).has_choices
    assert not Task("t", with_choices, test_examples=(Example("c", "z"),)).has_choices


def test_inputs_of_the_test_set_leave_the_pool():
    task = words(5, test_examples=(Example("in1", "other"), Example("new", "out")))
    assert inputs(task.examples) == ["in0", "in2", "in3", "in4"]
    with pytest.raises(UserError, match="at least 2 examples outside its test set, found 1"):
        words(2, test_examples=(Example("in1", "other"),))


@pytest.mark.parametrize("test", [10, None])
def test_inputs_that_differ_in_case_and_spaces_are_not_trained_on_and_tested(test):
    pairs = [(f"in{i}", f"In{i}", f" in{i}") for i in range(20)]
    task = Task("t", tuple(Example(text, "out") for same in pairs for text in same))
    split = task.split(6, validation=4, test=test, seed=1)
    tested = set(map(same_text, inputs(split.test)))
    assert tested.isdisjoint(map(same_text, inputs(split.train + split.validation)))
    assert (len(split.train), len(split.validation)) == (6, 4)
    assert len(split.test) >= 10
    with pytest.raises(UserError, match="too few examples whose inputs differ in more than case and spaces for 50 to"):
        task.split(50, test=10)
    with pytest.raises(UserError, match="for 1 to train on, 0 to validate and 1 to test"):
        Task("t", (Example("hot", "out"), Example("Hot", "out"))).split(1, test=None)
    given = Task("t", task.examples, test_examples=(Example("IN3", "out"),))
    assert len(given.examples) == 57


@pytest.mark.parametrize("task", [words(60), labelled({"a": 30, "b": 20, "c": 10})], ids=["words", "labelled"])
@pytest.mark.parametrize("test", [20, None])
def test_split_is_disjoint_complete_and_seeded(task, test):
    split = task.split(10, validation=7, test=test, seed=3)
    assert [len(split.train), len(split.validation), len(split.test)] == [10, 7, test or 43]
    drawn = inputs(split.train + split.validation + split.test)
    assert len(set(drawn)) == len(drawn)
    assert split == task.split(10, validation=7, test=test, seed=3)
    assert split.train != task.split(10, validation=7, test=test, seed=4).train


@pytest.mark.parametrize("task", [words(60), labelled({"a": 30, "b": 20, "c": 10})], ids=["words", "labelled"])
def test_smaller_splits_are_nested_and_the_test_set_stays(task):
    full = task.split(30, validation=5, test=20)
    for size in (0, 1, 7, 29):
        split = task.split(size, validation=5, test=20)
        assert split.train == full.train[:size]
        assert (split.validation, split.test) == (full.validation, full.test)
    assert set(task.split(5, test=10).test) < set(full.test)


def test_split_does_not_depend_on_the_order_of_the_examples():
    task = words(40)
    shuffled = list(task.examples)
    random.Random(0).shuffle(shuffled)
    assert Task("words", tuple(shuffled)).split(10, validation=3, test=9) == task.split(10, validation=3, test=9)


def test_split_is_pinned_across_machines_and_versions():
    # Runs are compared by seed: another draw for the same seed would silently make old and new results differ.
    assert inputs(words(100).split(4, seed=0).train) == ["in55", "in65", "in32", "in81"]


def test_split_differs_between_tasks():
    assert inputs(words(50, "one").split(10).train) != inputs(words(50, "two").split(10).train)


def test_training_examples_are_balanced_over_labels():
    task = labelled({"a": 100, "b": 20, "c": 4})
    train = task.split(20, test=50).train
    outputs = [example.output for example in train]
    held = task.split(0, test=50).test
    left = 4 - sum(example.output == "c" for example in held)
    for start in range(0, 3 * left, 3):
        assert sorted(outputs[start : start + 3]) == ["a", "b", "c"]
    assert abs(outputs.count("a") - outputs.count("b")) <= 1
    orders = {tuple(e.output for e in labelled({"a": 9, "b": 9}).split(2, seed=seed).train) for seed in range(20)}
    assert orders == {("a", "b"), ("b", "a")}


def test_examples_with_their_own_choices_are_not_balanced():
    pool = (*(Example(f"q{i}", "yes", ("yes", f"no{i}")) for i in range(9)), Example("q9", "z", ("z", "y")))
    drawn = [Task("own", pool).split(2, seed=seed).train for seed in range(8)]
    assert any(all(example.output == "yes" for example in train) for train in drawn)


def test_a_given_test_set_is_used_alone():
    given = tuple(Example(f"test{i}", "out") for i in range(8))
    task = words(10, test_examples=given)
    whole = task.split(10)
    assert (len(whole.train), set(whole.test)) == (10, set(given))
    assert set(task.split(2, test=3).test) < set(given)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_examples": 11}, "at least 12 training, validation and test examples asked for, it has 10"),
        ({"num_examples": 10}, "at least 11 .* it has 10"),
        ({"num_examples": 5, "validation": 3, "test": 3}, ": 11 training, validation and test .* it has 10"),
        ({"num_examples": -1}, "num_examples=-1"),
        ({"num_examples": 1, "test": -2}, "test=-2"),
    ],
)
def test_asking_for_too_much_is_an_error_with_numbers(sizes, message):
    with pytest.raises(UserError, match=message):
        words(10).split(**sizes)


def test_asking_for_too_much_beside_a_test_set():
    task = words(10, test_examples=(Example("t1", "o"), Example("t2", "o")))
    with pytest.raises(UserError, match="3 test examples asked for, its test set has 2"):
        task.split(1, test=3)
    with pytest.raises(UserError, match="11 training and validation examples asked for, it has 10"):
        task.split(9, validation=2)
    assert len(task.split(9, validation=1, test=2).train) == 9


def test_dedupe_drops_repeats_silently_and_other_answers_with_one_warning():
    repeats = [Example("a", "x"), Example("b", "y"), Example("a", "x")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dedupe(repeats) == repeats[:2]
    several = [*repeats, Example("a", "z"), Example("b", "z")]
    with pytest.warns(UserWarning, match=r"dropped 2 of 5 .*example 4: .*'z', but 'x' at example 1") as caught:
        assert dedupe(several) == repeats[:2]
    assert len(caught) == 1


def test_dedupe_rejects_contradicting_labels_unless_told_otherwise():
    examples = [Example("a", "x", ("x", "y")), Example("a", "y", ("x", "y"))]
    with pytest.raises(UserError, match="f, line 7: input 'a' has output 'y', but 'x' at f, line 2; correct one"):
        dedupe(examples, ["f, line 2", "f, line 7"])
    with pytest.warns(UserWarning, match="dropped 1 of 2"):
        assert dedupe(examples, strict=False) == examples[:1]


def test_unknown_task_names_close_matches_and_the_command():
    with pytest.raises(UserError, match=r"unknown task 'antonyms'; close matches: antonym.*`laai tasks`"):
        load_task("antonyms")
    with pytest.raises(UserError, match=r"unknown task 'qqqq'; `laai tasks`"):
        load_task("qqqq")


def test_built_in_tasks_take_no_columns():
    assert load_task("antonym").name == "antonym"
    with pytest.raises(UserError, match=r"takes no columns; for a file of that name write \./antonym"):
        load_task("antonym", columns={"input": "word"})


def test_any_task_takes_an_instruction(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"word": "a", "output": "b"}\n{"word": "c", "output": "d"}\n')
    for name, columns in (("antonym", {}), (tmp_path / "own.jsonl", {"input": "word"})):
        plain, task = load_task(name, columns=columns), load_task(name, columns=columns | {"instruction": "Say so."})
        assert (plain.instruction, task.instruction) == ("", "Say so.")
        assert task.examples == plain.examples
    with pytest.raises(UserError, match=r"columns\['instruction'\] as a text, found 3"):
        load_task("antonym", columns={"instruction": 3})


def test_names_are_sorted_and_include_the_default_tasks():
    assert builtin_tasks() == sorted(builtin_tasks())
    assert {"antonym", "synonym", "country-capital"} <= set(builtin_tasks())


def test_a_path_that_cannot_be_looked_at_is_a_user_error():
    for spec in ("x" * 5000, "~nobody-of-this-name/x.json"):
        with pytest.raises(UserError):
            load_task(spec)


def test_import_loads_no_heavy_package():
    heavy = "{'torch', 'datasets', 'numpy', 'transformers'} & set(sys.modules)"
    code = f"import sys; import laai.tasks; sys.exit(str({heavy} or '') or 0)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr


def test_lists_become_tuples():
    """So that tasks and examples can be keys, however they were given."""
    task = Task("t", [Example("a", "b", choices=["b", "c"]), Example("d", "c", choices=["b", "c"])])
    assert {task: 1}[Task("t", (Example("a", "b", ("b", "c")), Example("d", "c", ("b", "c"))))] == 1
    assert task.examples[1].label == 1


@pytest.mark.parametrize("example", [("a\ud83d", "b"), ("a", "\ud83d"), ("a", "b", ("b", "\ud83d"))])
def test_half_a_surrogate_pair_is_refused(example):
    """A cut emoji, which JSON can hold and no tokenizer reads."""
    with pytest.raises(UserError, match="surrogate"):
        Task("t", (Example(*example), Example("c", "b")))
