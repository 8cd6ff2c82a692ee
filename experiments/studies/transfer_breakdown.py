"""Where a transfer gains and where it costs: by target, by source, and by the form of both tasks' answers."""

from __future__ import annotations

import textwrap

import numpy as np
from scipy.stats import binom
from transfer_cells import OURS, Cell, Cells, above_chance, changes_of, difference, has, having, mean

from laai.compare import number, table

# The form of a task's answers. `options`: one of the options that the query lists, written out, not its letter.
OPTIONS = ("arc_challenge", "arc_easy", "commonsense_qa", "medmcqa", "race", "sciq", "social_i_qa")
# `labels`: one of these, the same for all queries.
_TOPICS = ("science/technology", "travel", "politics", "sports", "health", "entertainment", "geography")
_LANGUAGES = ("deu_Latn", "eng_Latn", "fra_Latn", "jpn_Jpan", "spa_Latn", "zho_Hans")
LABELS = {
    **{f"sib200_{language}": _TOPICS for language in _LANGUAGES},
    "ag_news": ("world", "sports", "business", "technology"),
    "boolq": ("False", "True"),
    "country-region": ("Africa", "Americas", "Asia", "Europe", "Oceania"),
    "financial_phrasebank": ("negative", "neutral", "positive"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "qqp": ("not duplicate", "duplicate"),
    "sst2": ("negative", "positive"),
    "word-sentiment": ("negative", "positive"),
}
# `words`: free answers of a word or a few; there are no options.
WORDS = (
    *("adjective-comparative", "antonym", "capital-country", "country-capital", "country-currency"),
    *("country-language", "english-french", "english-german", "english-spanish", "present-gerund", "present-past"),
    *("singular-plural", "synonym"),
)
SAME, OTHER, UNLIKE = "labels → the same labels", "labels → other labels", "unlike forms"
LIKE = ("options → options", SAME, OTHER, "words → words")


def form(task: str) -> str | None:
    """Of a task's answers; None for a task that is not listed."""
    forms = {"options": OPTIONS, "labels": LABELS, "words": WORDS}
    return next((name for name, tasks in forms.items() if task in tasks), None)


def kind(source: str, target: str) -> str | None:
    """How the forms of two tasks' answers go together; None where one is not listed."""
    a, b = form(source), form(target)
    if a is None or b is None:
        return None
    if a != b:
        return UNLIKE
    if a == "labels":
        return SAME if set(LABELS[source]) == set(LABELS[target]) else OTHER
    return f"{a} → {a}"


def by_target(cells: Cells) -> list[str]:
    """Means over each target's sources: where the vector gains, and where it costs forced choice."""
    out = ["", "## By target", "", *_what_shows_no_knowledge(cells)]
    out += ["Means over a target's sources, `cast` against others; forced choice also with the rule that refuses:", ""]
    head = ["target", "sources", "exact match − zero-shot", "− cross-task few-shot", "chance"]
    head += ["forced choice, zero-shot", "− zero-shot", "if it helps"]
    lines = []
    for target, own in _grouped(cells, "target").items():
        shown = [_signed(own, "cast", other, "exact") for other in ("zero-shot", "cross-task few-shot")]
        shown += [number(chance(own), 2), number(mean(own, "zero-shot", "choice"), 2)]
        shown += [_signed(own, method, "zero-shot", "choice") for method in OURS]
        lines.append([target, len(own), *shown])
    return out + table(head, lines)


def chance(cells: Cells) -> float:
    """Forced choice by guessing, the mean over cells; NaN where none says it."""
    values = [cell["cast"]["chance"] for cell in cells if cell["cast"].get("chance") is not None]
    return float(np.mean(values)) if values else float("nan")


def _what_shows_no_knowledge(cells: Cells) -> list[str]:
    """A sentence on the targets where zero-shot forced choice is not above chance, and on what scores it otherwise."""
    scored = _grouped([cell for cell in cells if has(cell, "zero-shot", "choice")], "target")
    tested = {target: own for target, own in scored.items() if not np.isnan(chance(own))}
    guessed = {target: own for target, own in tested.items() if not any(map(above_chance, own))}
    if not guessed:
        return []
    counts = sorted({len(cell["zero-shot"]["choice"]) for own in guessed.values() for cell in own})
    queries = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    told = (
        f"Zero-shot forced choice is not above chance, by its 95% interval, on {len(guessed)} of {len(tested)} targets "
        f"with options ({', '.join(guessed)}): on these this model cannot show that knowledge is kept or lost. With "
        f"{queries} queries a small lead over chance would not show either."
    )
    if other := [target for target, own in guessed.items() if any(map(_above_by_mean, own))]:
        told += " Options are scored by the sum over their tokens; by the mean over them zero-shot is above chance on "
        told += f"{', '.join(other)}."
    return _paragraph(told)


def _above_by_mean(cell: Cell) -> bool:
    """Whether zero-shot is above chance where options are scored by the mean over their tokens."""
    row = cell["zero-shot"]
    accuracy = row.get("choice_accuracy_mean")
    if accuracy is None:
        return False
    return bool(binom.ppf(0.025, row["n"], accuracy) / row["n"] > (cell["cast"].get("chance") or 1))


def by_source(cells: Cells) -> list[str]:
    """Means over each source's targets: one vector on many."""
    out = ["", "## One vector on many targets", ""]
    out += _paragraph(
        "Means over a source's targets. Its vector knows none of them; layers, scale and label prior are chosen for "
        "each on development examples. `same labels` counts the targets with the source's own labels, `unlike` those "
        "whose answers have another form (last section):"
    )
    head = ["source", "targets", "with options", "same labels", "unlike", "exact match − zero-shot"]
    head += ["− cross-task few-shot", "forced choice − zero-shot", "worst target, its forced choice − zero-shot"]
    lines, rises, known = [], {"exact": 0, "choice": 0}, {"exact": 0, "choice": 0}
    for source, own in _grouped(cells, "source").items():
        for measure in rises:
            rises[measure] += change(own, "cast", "zero-shot", measure) > 0
            known[measure] += bool(having(own, "cast", "zero-shot", measure))
        by_target = _grouped(own, "target")
        means = {t: [mean(some, m, "choice") for m in ("cast", "zero-shot")] for t, some in by_target.items()}
        changes = {target: _plain_zero(a - b) for target, (a, b) in means.items() if not np.isnan(b)}
        worst = min(changes, key=lambda target: changes[target], default=None)
        kinds = [kind(source, target) for target in by_target]
        shown = [str(len(kinds)), str(len(changes))]
        shown += ["-" if None in kinds else str(kinds.count(one)) for one in (SAME, UNLIKE)]
        shown += [_signed(own, "cast", other, "exact") for other in ("zero-shot", "cross-task few-shot")]
        shown.append(_signed(own, "cast", "zero-shot", "choice"))
        lines.append([source, *shown, "-" if worst is None else f"{worst} {changes[worst]:+.2f}"])
    exact, choice = (f"{rises[measure]} of {known[measure]} vectors" for measure in rises)
    return [*out, *table(head, lines), "", f"Mean exact match rises with {exact}, mean forced choice with {choice}."]


def by_form(cells: Cells) -> list[str]:
    """The vector beside cross-task prompts where the two tasks' answers have one form, and where they do not."""
    groups: dict[str | None, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(kind(cell["cast"]["source"], cell["cast"]["target"]), []).append(cell)
    out = ["", "## Like and unlike pairs", ""]
    out += _paragraph(
        "Pairs by the form of their tasks' answers: `options`, one of the options that the query lists, written out; "
        "`labels`, the same options for all queries; `words`, free answers. Exact match is over the pairs that have a "
        "cross-task prompt. 95% intervals over sources, targets and queries (number of pairs), rough where there are "
        "few of them:"
    )
    head = ["answers", "pairs", "sources", "targets", "exact match, cast", "cross-task few-shot", "difference"]
    head.append("forced choice, cast − zero-shot")
    like = [cell for name in LIKE for cell in groups.get(name, [])]
    lines, rows = [], [*((name, groups.get(name, [])) for name in LIKE), ("like forms, all", like)]
    for name, own in (*rows, (UNLIKE, groups.get(UNLIKE, []))):
        both = [cell for cell in own if has(cell, "cross-task few-shot", "exact")]
        shown = [number(mean(both, method, "exact"), 2) for method in ("cast", "cross-task few-shot")]
        against = {"cross-task few-shot": "exact", "zero-shot": "choice"}
        shown += [difference(own, "cast", other, measure) for other, measure in against.items()]
        lines.append([name, len(own), *(len(_grouped(own, side)) for side in ("source", "target")), *shown])
    out += table(head, lines)
    if left := groups.get(None):
        out += ["", f"Pairs left out, as the form of a task is not listed: {len(left)}."]
    return out


def _paragraph(text: str) -> list[str]:
    return [*textwrap.wrap(text, 115, break_on_hyphens=False), ""]


def _grouped(cells: Cells, side: str) -> dict[str, list[Cell]]:
    """Cells of each source or target, by name."""
    names = sorted({cell["cast"][side] for cell in cells})
    return {name: [cell for cell in cells if cell["cast"][side] == name] for name in names}


def _signed(cells: Cells, a: str, b: str, measure: str) -> str:
    found = change(cells, a, b, measure)
    return "-" if np.isnan(found) else f"{found:+.3f}"


def change(cells: Cells, a: str, b: str, measure: str) -> float:
    """Mean of a − b over the cells that have both, without what summing leaves of a zero; NaN where none has."""
    values = [own.mean() for own in changes_of(cells, a, b, measure)]
    return _plain_zero(float(np.mean(values))) if values else float("nan")


def _plain_zero(value: float) -> float:
    return 0.0 if abs(value) < 1e-9 else value
