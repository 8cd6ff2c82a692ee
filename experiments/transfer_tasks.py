"""Tasks of the transfer matrix: its suites of sources and targets, and where a task is read from."""

from __future__ import annotations

import random
import string
from dataclasses import replace
from pathlib import Path

from laai.errors import UserError
from laai.tasks import Example, Task, load_task

PAPER_SOURCES = ("ag_news", "arc_easy", "boolq", "commonsense_qa", "mnli", "qqp", "race", "sst2")
PAPER_TARGETS = ("arc_challenge", "financial_phrasebank", "medmcqa", "sciq", "social_i_qa")
LANGUAGES = tuple(f"sib200_{code}" for code in ("eng_Latn", "deu_Latn", "fra_Latn", "jpn_Jpan", "spa_Latn", "zho_Hans"))
WORD_SOURCES = ("antonym", "country-capital", "present-past", "english-french", "word-sentiment")
WORD_TARGETS = ("synonym", "country-language", "singular-plural", "english-german", "country-region")
# Without an instruction a prompt of these tables does not say what is asked.
INSTRUCTIONS = {
    "antonym": "Give the opposite of the word.",
    "synonym": "Give another word with the same meaning.",
    "country-capital": "Name the capital of the country.",
    "country-language": "Name the main language of the country.",
    "present-past": "Give the past tense of the verb.",
    "singular-plural": "Give the plural of the noun.",
    "english-french": "Translate the English word into French.",
    "english-german": "Translate the English word into German.",
    "word-sentiment": "Say whether the word is positive or negative.",
    "country-region": "Name the region of the world that the country belongs to.",
}
LETTERS = "@letters"
"""Behind a task's name: its queries list lettered options, and the answer is the letter instead of the option."""
LETTER_SOURCES = tuple(name + LETTERS for name in ("arc_easy", "commonsense_qa", "race"))
LETTER_TARGETS = tuple(name + LETTERS for name in PAPER_TARGETS if name != "financial_phrasebank")
SUITES = {
    "paper": (PAPER_SOURCES, PAPER_TARGETS),
    "letters": (LETTER_SOURCES, LETTER_TARGETS),
    "topics": (LANGUAGES, LANGUAGES),
    "words": (WORD_SOURCES, WORD_TARGETS),
}


def find_task(name: str, data: Path | None) -> Task:
    """A task by its folder below `data`, or by a name that `load_task` knows, with an instruction.

    Raises:
        UserError: it cannot be read, or is to be answered by letters and does not list its options with them.
    """
    plain = name.removesuffix(LETTERS)
    folder = data / plain if data else None
    task = load_task(folder if folder is not None and folder.is_dir() else plain)
    task = replace(task, instruction=task.instruction or INSTRUCTIONS.get(plain, ""))
    return task if name == plain else by_letter(task)


def by_letter(task: Task) -> Task:
    """The task with the letters of its options for answers, and an instruction that says so.

    Its name stays, and with it what a seed draws: the queries are those that are answered by text.
    """

    def lettered(example: Example) -> Example:
        options = dict(zip(string.ascii_uppercase, example.choices or (), strict=False))
        lines, letters, label = f"\n{example.input}\n", tuple(options), example.label
        listed = all(f"\n{letter}. {option}\n" in lines for letter, option in options.items())
        if label is None or label >= len(letters) or not listed:
            raise UserError(f"expected queries of {task.name} to list all options, as 'A. …', found {example.input!r}")
        return Example(example.input, letters[label], letters, label)

    return replace(
        task,
        examples=tuple(map(lettered, task.examples)),
        test_examples=task.test_examples and tuple(map(lettered, task.test_examples)),
        instruction=f"{task.instruction} Reply with its letter.".lstrip(),
    )


def thinned(task: Task, most: int, seed: int) -> Task:
    """At most so many of a task's examples."""
    if len(task.examples) <= most:
        return task
    return replace(task, examples=tuple(random.Random(seed).sample(task.examples, most)))
