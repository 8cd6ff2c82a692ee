"""Tasks of the transfer matrix: its suites of sources and targets, and where a task is read from."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from laai.tasks import Task, load_task

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
SUITES = {
    "paper": (PAPER_SOURCES, PAPER_TARGETS),
    "topics": (LANGUAGES, LANGUAGES),
    "words": (WORD_SOURCES, WORD_TARGETS),
}


def find_task(name: str, data: Path | None) -> Task:
    """A task by its folder below `data`, or by a name that `load_task` knows, with an instruction."""
    folder = data / name if data else None
    task = load_task(folder if folder is not None and folder.is_dir() else name)
    return replace(task, instruction=task.instruction or INSTRUCTIONS.get(name, ""))


def thinned(task: Task, most: int, seed: int) -> Task:
    """At most so many of a task's examples."""
    if len(task.examples) <= most:
        return task
    return replace(task, examples=tuple(random.Random(seed).sample(task.examples, most)))
