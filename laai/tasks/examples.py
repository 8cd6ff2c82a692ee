"""Examples, tasks made of them, and the seeded split into training, validation and test examples."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from laai.errors import UserError


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled example.

    ``choices`` are this example's options and ``output`` is one of them; ``label`` is the index of ``output`` in
    ``choices`` and is filled in where it is not given.
    """

    input: str
    output: str
    choices: tuple[str, ...] | None = None
    label: int | None = None

    def __post_init__(self) -> None:
        """Fill in the label; choices given as a list become a tuple."""
        if self.choices is not None:
            object.__setattr__(self, "choices", tuple(self.choices))
        if self.label is None and self.choices is not None and self.output in self.choices:
            object.__setattr__(self, "label", self.choices.index(self.output))


@dataclass(frozen=True)
class Splits:
    """Three sets of examples; no input of one is, but for case and spaces, in another."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]


@dataclass(frozen=True)
class Task:
    """Labelled examples of one task, and how a prompt presents them.

    ``examples`` is the pool from which training and validation examples are drawn, and test examples too where there is
    no ``test_examples``. What has an input of ``test_examples``, but for case and spaces, is left out of the pool.

    Raises:
        UserError: fewer than two examples, an input given twice, an empty input or output, or an output or label that
            does not fit its choices.
    """

    name: str
    examples: tuple[Example, ...]
    test_examples: tuple[Example, ...] | None = None
    instruction: str = ""
    input_prefix: str = "Q: "
    answer_prefix: str = "A:"
    source: str = ""
    licence: str = ""
    language: str = "en"

    def __post_init__(self) -> None:
        """Check the examples and take the test set's inputs out of the pool; lists become tuples."""
        for name in ("examples", "test_examples"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(given))
        _check(self.name, self.examples)
        if self.test_examples is not None:
            _check(f"{self.name}, test set", self.test_examples)
            held_out = [example.input for example in self.test_examples]
            object.__setattr__(self, "examples", tuple(excluding(self.examples, held_out)))
        if len(self.examples) < 2:
            beyond = "" if self.test_examples is None else " outside its test set"
            raise UserError(
                f"task {self.name}: needs at least 2 examples{beyond}, found {len(self.examples)}; add examples"
            )

    @property
    def has_choices(self) -> bool:
        """Whether every example has choices."""
        return all(example.choices is not None for example in (*self.examples, *(self.test_examples or ())))

    def split(self, num_examples: int, *, validation: int = 0, test: int | None = None, seed: int = 0) -> Splits:
        """Draw training, validation and test examples.

        The draw depends on the task's name, the seed and the inputs alone, not on the order of the examples. For one
        seed, the test examples do not depend on ``num_examples`` (unless ``test`` is None and there is no given test
        set), and a smaller training set is the beginning of a larger one. Where all examples share one set of choices,
        every run of as many training examples as there are labels holds each label once, until one runs out.

        Args:
            num_examples: number of training examples.
            validation: number of validation examples.
            test: number of test examples; None takes the whole given test set, or all examples that are left.
            seed: another seed gives another draw.

        Raises:
            UserError: more examples asked for than there are, or none left for the test.
        """
        if min(num_examples, validation, test or 0) < 0:
            raise UserError(
                f"split sizes must be 0 or more, got num_examples={num_examples}, validation={validation}, test={test}"
            )
        key = f"{self.name}/{seed}"
        pool = _shuffled(self.examples, key)
        given = self.test_examples is not None
        self._check_sizes(num_examples + validation, test)
        if given:
            held_out = _shuffled(self.test_examples or (), key)[:test]
        else:
            pool, held_out = _cut(pool, test or 0)
            pool = excluding(pool, [example.input for example in held_out])
        pool, validated = _cut(pool, validation)
        pool = excluding(pool, [example.input for example in validated])
        train = _balanced(pool, num_examples, key) if self._shares_choices() else pool[:num_examples]
        if not given and test is None:
            held_out = excluding(pool, [example.input for example in train])
        if len(train) < num_examples or len(validated) < validation or (test is None and not held_out):
            raise UserError(
                f"task {self.name}: too few examples whose inputs differ in more than case and spaces for "
                f"{num_examples} to train on, {validation} to validate and {test or 1} to test; ask for fewer"
            )
        return Splits(tuple(train), tuple(validated), tuple(held_out))

    def _check_sizes(self, fitted: int, test: int | None) -> None:
        """Raise if the pool or the test set is too small; ``fitted`` counts training and validation examples."""
        pool = len(self.examples)
        if self.test_examples is not None:
            if test is not None and test > (most := len(self.test_examples)):
                raise UserError(f"task {self.name}: {test} test examples asked for, its test set has {most}")
            wanted, what = fitted, "training and validation"
        else:
            wanted, what = fitted + (1 if test is None else test), "training, validation and test"
        if wanted > pool:
            least = "at least " if self.test_examples is None and test is None else ""
            asked = f"{least}{wanted} {what} examples"
            raise UserError(f"task {self.name}: {asked} asked for, it has {pool}; ask for fewer")

    def _shares_choices(self) -> bool:
        """Whether all examples of the pool have the same choices."""
        first = self.examples[0].choices
        return first is not None and all(example.choices == first for example in self.examples)


def _check(name: str, examples: Iterable[Example]) -> None:
    """Raise UserError at the first example that is not as it should be."""
    seen = set()
    for number, example in enumerate(examples, 1):
        where = f"task {name}, example {number}"
        options = (("choice", choice) for choice in example.choices or ())
        for field, text in (("input", example.input), ("output", example.output), *options):
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"{where}: {field} must be a text that is not empty, got {text!r}")
            if unreadable(text):
                raise UserError(f"{where}: {field} {short(text)} holds half of a surrogate pair; mend the text")
        if example.input in seen:
            raise UserError(f"{where}: input {short(example.input)} occurs twice; drop one, see laai.tasks.repeats")
        seen.add(example.input)
        if example.choices is None:
            if example.label is not None:
                raise UserError(f"{where}: has label {example.label} but no choices; give choices")
        elif example.output not in example.choices:
            raise UserError(f"{where}: output {short(example.output)} is none of its choices {list(example.choices)}")
        elif (example.label, example.output) not in list(enumerate(example.choices)):
            raise UserError(
                f"{where}: label {example.label} is not the index of {short(example.output)} "
                f"in its choices {list(example.choices)}"
            )


def same_text(text: str) -> str:
    """A text without its case and with single spaces: what two inputs that differ in these alone have in common."""
    return " ".join(text.casefold().split())


def excluding(examples: Iterable[Example], inputs: Iterable[str]) -> list[Example]:
    """The examples whose input is, but for case and spaces, none of these."""
    seen = set(map(same_text, inputs))
    return [example for example in examples if same_text(example.input) not in seen]


def unreadable(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, such as a cut emoji, which no tokenizer reads."""
    return text != text.encode(errors="ignore").decode()


def _rank(key: str, text: str) -> bytes:
    # A digest rather than a generator: the order is the same in every Python version and for every file order.
    return hashlib.sha256(f"{key}/{text}".encode("utf-8", "surrogatepass")).digest()


def _shuffled(examples: Iterable[Example], key: str) -> list[Example]:
    return sorted(examples, key=lambda example: _rank(key, example.input))


def _cut(examples: list[Example], size: int) -> tuple[list[Example], list[Example]]:
    """Split off the last ``size`` examples."""
    middle = len(examples) - size
    return examples[:middle], examples[middle:]


def _balanced(examples: Iterable[Example], size: int, key: str) -> list[Example]:
    """The first ``size`` examples when labels take turns, in an order that is shuffled anew each round."""
    by_label = defaultdict(list)
    for example in examples:
        by_label[example.output].append(example)
    turns = []
    for label, members in by_label.items():
        turns += [(turn, _rank(f"{key}/{turn}", label), member) for turn, member in enumerate(members)]
    turns.sort(key=lambda entry: entry[:2])
    return [member for _, _, member in turns[:size]]


def short(text: str) -> str:
    """The text in quotes, cut to one short line."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def without(task: Task, inputs: set[str]) -> Task:
    """The task without the examples of these inputs, but for case and spaces, and without a test set.

    What is tested is no source.

    Raises:
        UserError: fewer than two examples are left.
    """
    left = tuple(excluding(task.examples, inputs))
    if len(left) < 2:
        raise UserError(
            f"expected source examples that are not tested, found {len(left)} in {task.name}: give it more, or the "
            "target fewer test and development examples"
        )
    return replace(task, examples=left, test_examples=None)
