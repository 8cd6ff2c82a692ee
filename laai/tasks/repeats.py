"""One example for each input."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from laai.errors import UserError
from laai.tasks.examples import Example, short


def dedupe(examples: Sequence[Example], places: Sequence[str] | None = None, *, strict: bool = True) -> list[Example]:
    """Keep the first example of each input.

    A repeated example is dropped silently. Another output for the same input can be right where answers are open
    (several translations of a word): it is dropped too, with one warning that counts them. With the same choices it
    cannot be right.

    Args:
        examples: the examples in order.
        places: where each comes from, such as "data.csv, line 3"; by default their numbers.
        strict: raise on contradicting choices; otherwise they are dropped with the warning.

    Raises:
        UserError: an input occurs with the same choices and two outputs.
    """
    kept: dict[str, int] = {}
    dropped: list[str] = []
    for number, example in enumerate(examples):
        first = kept.setdefault(example.input, number)
        if examples[first].output == example.output:
            continue
        where, before = (places[i] if places else f"example {i + 1}" for i in (number, first))
        conflict = (
            f"{where}: input {short(example.input)} has output {short(example.output)}, "
            f"but {short(examples[first].output)} at {before}"
        )
        if strict and example.choices is not None and example.choices == examples[first].choices:
            raise UserError(f"{conflict}; correct one of them")
        dropped.append(conflict)
    if dropped:
        rule = "as the first output of an input is kept"
        warnings.warn(f"dropped {len(dropped)} of {len(examples)} examples, {rule}; {dropped[0]}", stacklevel=2)
    return [examples[number] for number in kept.values()]
