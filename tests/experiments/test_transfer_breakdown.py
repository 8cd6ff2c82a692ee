"""Gains by target, by source and by the form of answers, on rows whose means are known."""

from __future__ import annotations

import pytest

import laai


@pytest.fixture
def breakdown(scripts):
    return scripts("transfer_breakdown", "transfer_report")


def pair(source, target, exact=(0, 0), choice=None, zero=(1, 0), shown=(0, 0), chance=0.5, low=0.0, by_mean=0.0):
    """One cell: `zero` and `choice` are forced choice of zero-shot and of cast, `shown` the prompt's exact match."""
    common = {"source": source, "target": target, "seed": 0}
    zero = [None] * 2 if choice is None else list(zero)
    found = {
        "zero-shot": {"exact": [0, 0], "choice": zero, "choice_accuracy_low": low}
        | {"choice_accuracy_mean": by_mean, "n": 20},
        "cast": {"exact": list(exact), "choice": [None] * 2 if choice is None else list(choice), "chance": chance},
    }
    found |= {} if shown is None else {"cross-task few-shot": {"exact": list(shown), "choice": zero}}
    found["cast, if it helps"] = found["zero-shot"]
    return {method: common | row for method, row in found.items()}


def line(lines, first):
    (found,) = [line for line in lines if line.startswith(f"| {first} |")]
    return [part.strip() for part in found.strip("| ").split("|")]


def test_forms_and_how_they_go_together(breakdown):
    forms, _ = breakdown
    assert [forms.form(t) for t in ("race", "sst2", "antonym", "own")] == ["options", "labels", "words", None]
    assert forms.kind("sib200_deu_Latn", "sib200_eng_Latn") == "labels → the same labels"
    assert forms.kind("sst2", "word-sentiment") == "labels → the same labels"
    assert forms.kind("sst2", "financial_phrasebank") == "labels → other labels", "one label more"
    assert forms.kind("race", "sciq") == "options → options"
    assert forms.kind("antonym", "synonym") == "words → words"
    assert forms.kind("antonym", "country-region") == forms.kind("sst2", "sciq") == "unlike forms"
    assert forms.kind("own", "sciq") is None


def test_forms_of_the_built_in_tasks_are_as_listed(breakdown):
    forms, _ = breakdown
    built_in = [name for name in (*forms.WORDS, *forms.LABELS) if name in laai.builtin_tasks()]
    assert {*forms.WORDS, "country-region", "word-sentiment"} == {*built_in}
    for name in built_in:
        examples = laai.load_task(name).examples
        labels = forms.LABELS.get(name)
        assert {e.choices and tuple(sorted(e.choices)) for e in examples} == {labels and tuple(sorted(labels))}


def test_by_target_tells_chance_and_where_nothing_is_known(breakdown):
    forms, _ = breakdown
    cells = [
        pair("ag_news", "sciq", exact=(1, 0), choice=(0, 0), chance=0.25, low=0.25, by_mean=0.55),
        pair("race", "sciq", exact=(1, 1), choice=(1, 0), chance=0.25, low=0.25, by_mean=0.55),
        pair("race", "medmcqa", choice=(1, 1), chance=0.25, low=0.1, by_mean=0.4),
        pair("sst2", "financial_phrasebank", choice=(1, 1), chance=1 / 3, low=0.4),
        pair("antonym", "synonym", chance=None),
        pair("qqp", "unknown chance", choice=(1, 1), chance=None),
    ]
    lines = forms.by_target(cells)
    assert line(lines, "sciq") == ["sciq", "2", "+0.750", "+0.750", "0.25", "0.50", "-0.250", "+0.000"]
    assert line(lines, "synonym") == ["synonym", "1", "+0.000", "+0.000", "-", "-", "-", "-"]
    assert line(lines, "unknown chance")[4:6] == ["-", "0.50"]
    told = " ".join(lines)
    assert "on 2 of 3 targets with options (medmcqa, sciq):" in told, "the interval's end at chance is not above it"
    assert "With 2 queries" in told
    assert "by the mean over them zero-shot is above chance on sciq." in told, "0.55 of 20, not 0.4"
    assert "Zero-shot" not in " ".join(forms.by_target(cells[3:])), "there is no such target"


def test_one_source_on_many_targets(breakdown):
    forms, _ = breakdown
    cells = [
        pair("sst2", "word-sentiment", exact=(1, 1), choice=(1, 1), shown=(1, 0)),
        pair("sst2", "sciq", exact=(1, 0), choice=(0, 0), shown=None),
        pair("sst2", "synonym", exact=(0, 0), shown=(0, 0)),
        pair("antonym", "synonym", exact=(0, 0), shown=(1, 1)),
        pair("own", "sciq", exact=(1, 0), choice=(1, 0)),
    ]
    lines = forms.by_source(cells)
    many = ["sst2", "3", "2", "1", "2", "+0.500", "+0.250", "+0.000", "sciq -0.50"]
    assert line(lines, "sst2") == many
    assert line(lines, "antonym") == ["antonym", "1", "0", "0", "0", "+0.000", "-1.000", "-", "-"]
    assert line(lines, "own")[3:5] == ["-", "-"], "not listed"
    assert lines[-1] == "Mean exact match rises with 2 of 3 vectors, mean forced choice with 0 of 2 vectors."


def test_like_and_unlike_pairs(breakdown):
    forms, _ = breakdown
    cells = [
        pair("race", "sciq", exact=(1, 0), choice=(1, 1), shown=(1, 1)),
        pair("race", "medmcqa", exact=(1, 1), choice=(0, 0), shown=None),
        pair("sst2", "word-sentiment", exact=(1, 1), choice=(1, 1), shown=(0, 0)),
        pair("sst2", "sciq", exact=(0, 0), choice=(0, 0), shown=(1, 0)),
        pair("own", "sciq", choice=(1, 1)),
    ]
    lines = forms.by_form(cells)
    options = line(lines, "options → options")
    assert options[1:6] == ["2", "1", "2", "0.50", "1.00"], "the pair without a prompt is in no exact match"
    assert options[6:] == ["-0.500 (1 pair)", "+0.000 (2 pairs)"], "no interval from one source or target"
    assert line(lines, "labels → the same labels")[4:6] == ["1.00", "0.00"]
    assert line(lines, "labels → the same labels")[7] == "+0.500 (1 pair)"
    assert line(lines, "words → words")[1:] == ["0", "0", "0", "-", "-", "-", "-"]
    assert line(lines, "like forms, all")[1:6] == ["3", "2", "3", "0.75", "0.50"]
    unlike = line(lines, "unlike forms")
    assert unlike[1:6] == ["1", "1", "1", "0.00", "0.50"]
    assert [found[:6] for found in unlike[6:]] == ["-0.500", "-0.500"]
    assert lines[-1] == "Pairs left out, as the form of a task is not listed: 1."
    assert "left out" not in " ".join(forms.by_form(cells[:-1]))
