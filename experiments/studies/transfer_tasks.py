"""Tasks of the transfer matrix: its suites of sources and targets, and where a task is read from."""

from __future__ import annotations

import random
import string
from dataclasses import replace
from pathlib import Path

from laai.compare import Options
from laai.engine import Engine
from laai.errors import UserError
from laai.models import LanguageModel
from laai.runtime import FewShotDataModule
from laai.tasks import Example, Task, load_task, without

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


class Tasks:
    """Tasks of pairs by name, read once: queries of a target, and examples of a source that it leaves.

    The options: `data`, `shots`, `development`, `queries`, `pool`, and perhaps `hub_tasks` (place and columns by name).
    """

    def __init__(self, options: Options) -> None:
        self.options, self._hub = options, getattr(options, "hub_tasks", {})
        self._tasks: dict[str, Task] = {}
        self._engines: dict[tuple[str, int], Engine] = {}

    def task(self, name: str) -> Task:
        """A task by its folder, its place on the hub, or a name that `load_task` knows."""
        if name not in self._tasks:
            plain = name.removesuffix(LETTERS)
            self._tasks[name] = find_task(name, self.options.data) if plain not in self._hub else self._of_hub(name)
        return self._tasks[name]

    def data(self, target: str, seed: int) -> FewShotDataModule:
        """Test, development and training examples of a target."""
        o = self.options
        sizes = {"validation": o.development, "test": o.queries, "eval_batch_size": 20}
        return FewShotDataModule(self.task(target), o.shots, seed=seed, **sizes)

    def pool(self, source: str, target: str, seed: int) -> Task:
        """Source examples that are neither tested nor chosen on: tables can share inputs with another."""
        splits = self.data(target, seed).splits
        seen = {example.input for example in (*splits.test, *splits.validation)}
        return thinned(without(self.task(source), seen), self.options.pool, seed)

    def engine(self, model: LanguageModel, target: str, seed: int) -> Engine:
        """Prefixes of a target's queries that were run before."""
        return self._engines.setdefault((target, seed), Engine(model))

    def _of_hub(self, name: str) -> Task:
        found = self._hub[name.removesuffix(LETTERS)]
        task = load_task(found["task"], columns=found["columns"])
        task = replace(task, **{key: found[key] for key in ("instruction", "answer_prefix") if key in found})
        return by_letter(task) if name.endswith(LETTERS) else task


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
