"""From source tasks to a tested target: what is compared, what is kept apart, what is refused."""

from __future__ import annotations

import dataclasses
import json
import warnings

import pytest
import torch

from cast.extraction.mixing import centred, combined, own_seed
from cast.extraction.vectors import extract
from cast.transfers import baselines, course
from cast.transfers.baselines import BASELINES
from cast.transfers.cross_task import transfer
from cast.transfers.draws import weighted
from laai.errors import UserError
from laai.prompts import demonstrations as cross_task_prompt
from laai.prompts.templates import Template
from laai.runtime.data import FewShotDataModule
from laai.tasks.examples import Example, Task, without
from laai.tasks.loading import load_task

SMALL = {"samples": 6, "shots": 2, "development": 5, "test": 6, "progress": False}


@pytest.fixture(scope="module")
def other_task(word_task):
    options = ("stone", "plant")
    words = [f"{e.input}{i}" for i, e in enumerate(word_task.examples[:30])]
    examples = tuple(Example(w, options[i % 2], options) for i, w in enumerate(words))
    return Task("kinds", examples, instruction="Name the kind.")


def test_all_methods_are_measured_on_the_same_queries(tiny, word_task, other_task):
    found = transfer(tiny, other_task, word_task, strategy="k_center", site="heads", **SMALL)
    names = [
        "zero-shot",
        "cross-task few-shot",
        "few-shot",
        "label prior",
        "cast",
        "random direction",
        "random samples",
    ]
    assert [row.method for row in found.scores] == names
    assert {row.n for row in found.scores} == {6}
    assert all(row.choice_accuracy_low <= row.choice_accuracy <= row.choice_accuracy_high for row in found.scores)
    tokens = {row.method: row.prompt_tokens for row in found.scores}
    assert tokens["zero-shot"] == tokens["cast"] == tokens["random direction"]
    assert min(tokens["few-shot"], tokens["cross-task few-shot"]) > tokens["zero-shot"]
    assert found.chosen_on == "target"
    facts = json.loads(json.dumps(found.as_json()))
    assert facts["choice"]["examples"] == 5
    assert facts["few_shot"] == 2
    assert set(facts["label_prior"]) == {"red", "dark blue"}
    assert found.vector.sites == ["heads", "residual"]
    bare = transfer(tiny, other_task, word_task, calibrate=False, baselines=BASELINES[:2], **SMALL)
    assert bare.vector.sites == [bare.choice.site], "both were looked at, and one is kept"
    assert bare.as_json()["label_prior"] is None
    unlabelled = dataclasses.replace(
        word_task, examples=tuple(dataclasses.replace(e, choices=None, label=None) for e in word_task.examples)
    )
    plain = transfer(tiny, other_task, unlabelled, baselines=["label prior"], **SMALL)
    assert [row.method for row in plain.scores] == ["cast"]


def test_the_answer_can_be_steered_too(tiny, word_task, other_task):
    """The chosen place, the control and the file say so; there is no label prior then."""
    options = {"positions": "generated", "refuse": False, "baselines": ["random direction"]}
    found = transfer(tiny, other_task, word_task, **options, **SMALL)
    steered = [e.arm.steering for e in found.evaluations]
    assert [e.arm.name for e in found.evaluations] == ["cast", "random direction"]
    assert {found.vector.positions, *(one.positions for one in steered)} == {"generated"}
    assert found.as_json()["label_prior"] is None


def test_a_scale_for_each_part_of_the_layers_on_demand(tiny, word_task, other_task, monkeypatch):
    asked, real = [], course.choose_placement
    monkeypatch.setattr(course, "choose_placement", lambda *a, **k: (asked.append(k["by_layer"]), real(*a, **k))[1])
    options = {"site": "heads", "baselines": [], "refuse": False, **SMALL}
    whole, parts = (transfer(tiny, other_task, word_task, by_layer=by_layer, **options) for by_layer in (False, True))
    assert asked == [False, True]
    assert parts.choice.gain >= whole.choice.gain
    assert whole.choice.factors == ()


def test_prompting_shows_as_many_source_examples_as_the_vector_has_samples(tiny, word_task, other_task, monkeypatch):
    """Of the heaviest source; those that fit, the first ones of the draw."""
    small = SMALL | {"baselines": ["cross-task few-shot"], "samples": 9}

    def shown(sources, **options):
        found = transfer(tiny, sources, word_task, **(small | options))
        return found, found.shown

    found, all_nine = shown({"antonym": 1.0, other_task: 2.0})
    assert (all_nine.task.name, len(all_nine.examples)) == ("kinds", 9)
    assert found.evaluations[0].template.before == all_nine
    assert found.as_json()["cross_task_few_shot"] == {"source": "kinds", "examples": 9}
    few = dataclasses.replace(other_task, examples=other_task.examples[:12])
    assert len(shown(few, samples=999)[1].examples) == 12, "no more than there are"
    queries = found.evaluations[0]._data.splits.test
    longest = max(len(found.evaluations[0].template.encode(e.input).prompt) for e in queries)
    for limit, count in ((longest, 9), (longest - 1, 8)):
        monkeypatch.setattr(cross_task_prompt, "LONGEST_PROMPT", limit)
        assert shown(other_task)[1].examples == all_nine.examples[:count]
    answer = max(
        len(found.evaluations[0].template.encode(e.input, answer=o).answer) for e in queries for o in e.choices
    )
    monkeypatch.setattr(cross_task_prompt, "LONGEST_PROMPT", 2048)
    for context, count in ((longest + answer, 9), (longest + answer - 1, 8)):
        monkeypatch.setattr(tiny.llm.config, "max_position_embeddings", context)
        kept = cross_task_prompt.fitting(tiny, Template(tiny.tokenizer, word_task), all_nine, queries)
        assert kept.examples == all_nine.examples[:count]
    monkeypatch.undo()
    monkeypatch.setattr(cross_task_prompt, "LONGEST_PROMPT", 20)
    with pytest.warns(UserWarning, match="a query behind one example of kinds is over 20 tokens"):
        found, none = shown(other_task)
    assert none is None
    assert [row.method for row in found.scores] == ["cast"]
    assert found.as_json()["cross_task_few_shot"] is None


def test_a_few_shot_prompt_that_does_not_fit_shows_less(tiny, word_task, monkeypatch):
    template, (query, *shots) = Template(tiny.tokenizer, word_task), word_task.examples[:6]
    tokens = [len(template.encode(query.input, shots[:count]).prompt) for count in range(6)]
    answer = max(len(template.encode(query.input, answer=option).answer) for option in query.choices)
    options = {"baselines": ["few-shot"], "samples": 3, "shots": 2}
    for context, count in ((tokens[5], 5), (tokens[5] - 1, 4), (tokens[1], 1), (tokens[1] - 1, 0)):
        monkeypatch.setattr(tiny.llm.config, "max_position_embeddings", context + answer)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert len(cross_task_prompt.fitting_own(tiny, template, tuple(shots), [query])) == count
        assert any("few-shot " in str(warning.message) for warning in told) is (count < 5)
    monkeypatch.setattr(baselines, "fitting_own", lambda *_: ())
    found = transfer(tiny, word_task, word_task, **(SMALL | options))
    assert [row.method for row in found.scores] == ["cast"], "the others are measured all the same"


def test_a_label_prior_needs_one_set_of_labels_for_all(tiny, word_task, other_task):
    """A few development examples can have the same options by chance."""
    data = FewShotDataModule(word_task, 2, validation=1, test=6)
    own = data.splits.validation[0].input
    mixed = tuple(
        e if e.input == own else dataclasses.replace(e, choices=(*e.choices, "green")) for e in word_task.examples
    )
    options = SMALL | {"development": 1, "baselines": ["label prior"]}
    found = transfer(tiny, other_task, dataclasses.replace(word_task, examples=mixed), **options)
    assert found.as_json()["label_prior"] is None
    assert [row.method for row in found.scores] == ["cast"]
    assert transfer(tiny, other_task, word_task, **options).as_json()["label_prior"]


def test_case_and_spaces_make_no_other_input(word_task):
    shouted = dataclasses.replace(
        word_task, examples=tuple(dataclasses.replace(e, input=f" {e.input.upper()}") for e in word_task.examples)
    )
    inputs = {e.input for e in word_task.examples}
    assert len(without(shouted, set(list(inputs)[:30])).examples) == len(inputs) - 30
    with pytest.raises(UserError, match="source examples that are not tested, found 0 in colours"):
        without(shouted, inputs)


def test_what_is_tested_is_no_source(tiny, word_task, monkeypatch):
    """A task may be its own source; its queries, and those that the choice is made on, are kept out."""
    pools, real = [], course.extract
    monkeypatch.setattr(course, "extract", lambda model, task, **o: (pools.append(task), real(model, task, **o))[1])
    for development in (5, 0):
        found = transfer(tiny, word_task, word_task, baselines=(), **(SMALL | {"development": development}))
        (pool,) = pools
        pools.clear()
        tested = {e.input for e in found.evaluations[0]._data.splits.test}
        assert not tested & {e.input for e in pool.examples}
        assert len(pool.examples) == 40 - 6 - (development or (40 - 6) // 3)
        assert found.chosen_on == ("target" if development else "source")


def test_a_source_too_small_to_choose_on_is_refused_at_once(tiny, word_task, other_task, monkeypatch):
    monkeypatch.setattr(course, "extract", lambda *_, **__: pytest.fail("something was extracted"))
    few = dataclasses.replace(other_task, examples=other_task.examples[:14])
    with pytest.raises(UserError, match=r"expected 15 examples of kinds or more.*found 14: give it more, or --dev"):
        transfer(tiny, few, word_task, **(SMALL | {"development": 0}))


def test_what_is_tested_is_in_no_mean_that_is_taken_off(tiny, word_task, other_task, monkeypatch):
    """Tasks of `centre` may be the target, or the source that the choice is made on."""
    pools, real = [], course.extract
    monkeypatch.setattr(course, "extract", lambda model, task, **o: (pools.append(task), real(model, task, **o))[1])
    for development in (5, 0):
        pools.clear()
        options = SMALL | {"development": development, "samples": 3, "baselines": (), "refuse": False}
        found = transfer(tiny, other_task, word_task, centre=[word_task, other_task], **options)
        target, source = ({e.input for e in pool.examples} for pool in pools[:2])
        assert not target & {e.input for e in found.evaluations[0]._data.splits.test}
        assert len(target) == 40 - 6 - development
        assert source == {e.input for e in pools[2].examples}
        assert len(source) == (30 if development else 20)


def test_a_vector_that_does_not_help_is_refused(tiny, word_task, other_task, monkeypatch):
    sizes, real = [], course.choose_placement
    monkeypatch.setattr(
        course, "choose_placement", lambda *a, **k: dataclasses.replace(real(*a, **k), helps=False, scale=1.0)
    )
    refused = transfer(tiny, other_task, word_task, baselines=["zero-shot"], **SMALL)
    applied = transfer(tiny, other_task, word_task, baselines=["zero-shot"], refuse=False, **SMALL)
    assert (refused.refused, applied.refused) == (True, False)
    assert (refused.vector.provenance.refused, applied.vector.provenance.refused) == (True, False)
    data = FewShotDataModule(word_task, SMALL["shots"], validation=SMALL["development"], test=SMALL["test"])
    assert applied.vector.provenance.unseen(data.splits.validation) == (), "the place was chosen on them"
    assert applied.vector.provenance.unseen(data.splits.test) == data.splits.test
    for found in (refused, applied):
        zero, cast = found.scores
        sizes.append(abs(cast.nll - zero.nll))
    assert sizes[0] == 0 < sizes[1]


def test_the_rule_is_the_same_for_random_samples(tiny, word_task, other_task, monkeypatch):
    real = course.choose_placement
    monkeypatch.setattr(
        course, "choose_placement", lambda *a, **k: dataclasses.replace(real(*a, **k), helps=False, scale=1.0)
    )
    options = {"baselines": ["zero-shot", "random samples"], "strategy": "k_center", **SMALL}
    zero, cast, random = transfer(tiny, other_task, word_task, **options).scores
    assert random.method == "random samples"
    assert random.nll == cast.nll == zero.nll


def test_weights_combine_vectors(tiny, word_task, other_task):
    options = {"samples": 4, "shots": 2, "progress": False}
    one, two = (extract(tiny, task, **options) for task in (word_task, other_task))
    both = combined([one, two], [0.75, 0.25])
    for key, vector in both.items():
        torch.testing.assert_close(vector.detach(), 0.75 * one[key].detach() + 0.25 * two[key].detach())
    assert [part["source"] for part in both.provenance.cast["combined"]] == ["colours", "kinds"]


def test_combined_and_centred_vectors_keep_the_style(tiny, word_task, other_task):
    """Where `laai evaluate` looks for it."""
    options = {"samples": 4, "shots": 2, "progress": False, "style": "chat"}
    both = combined([extract(tiny, task, **options) for task in (word_task, other_task)], [0.75, 0.25])
    for found in (both, centred(both, [extract(tiny, other_task, **options)])):
        assert found.provenance.cast["style"] == "chat"


def test_centring_takes_off_the_mean_of_tasks(tiny, word_task, other_task):
    options = {"samples": 4, "shots": 2, "progress": False}
    one, two = (extract(tiny, task, **options) for task in (word_task, other_task))
    found = centred(2.0 * one, [one, 3.0 * two])
    for key, vector in found.items():
        torch.testing.assert_close(vector.detach(), 1.5 * one[key].detach() - 1.5 * two[key].detach())
    made = found.provenance.cast
    assert (made["source"], [other["source"] for other in made["centred_on"]]) == ("colours", ["colours", "kinds"])
    steered = transfer(
        tiny, other_task, word_task, centre=[other_task], baselines=(), refuse=False, calibrate=False, **SMALL
    )
    assert all(norm == pytest.approx(0, abs=1e-5) for norm in steered.vector.norms().values()), "less itself"


def test_sources_by_name_and_weight(word_file):
    pairs = weighted({"antonym": 3, str(word_file): 1.0})
    assert [(task.name, weight) for task, weight in pairs] == [("antonym", 0.75), ("colours", 0.25)]
    assert [weight for _, weight in weighted(["antonym", "synonym"])] == [0.5, 0.5]
    for bad in ({}, [], {"antonym": 0.0}, {"antonym": -1, "synonym": 2}, {"antonym": float("inf")}):
        with pytest.raises(UserError, match="at least one source"):
            weighted(bad)
    with pytest.raises(UserError, match="baselines must be among"):
        transfer(None, "antonym", "synonym", baselines=["magic"])
    with pytest.raises(UserError, match="at least 1 test query, found 0"):
        transfer(None, "antonym", "synonym", test=0)


def test_a_task_is_given_once(tiny, word_task):
    equal = dataclasses.replace(word_task)
    for twice in (["antonym", "antonym"], [word_task, equal], {"antonym": 1.0, load_task("antonym"): 2.0}):
        with pytest.raises(UserError, match=r"expected each task once, found '(antonym|colours)' twice"):
            weighted(twice)
    # What sets two tasks apart may be what is held out.
    fewer = dataclasses.replace(word_task, test_examples=word_task.examples[:1])
    for sources, centre in (([word_task, equal], ()), ("antonym", [word_task, equal]), ([word_task, fewer], ())):
        held_out = dataclasses.replace(word_task, name="target", test_examples=word_task.examples[:1])
        with pytest.raises(UserError, match="expected each task once"):
            transfer(tiny, sources, held_out, centre=centre, **SMALL)


def test_a_transfer_draws_a_control_of_its_own(tiny, word_task, other_task, monkeypatch):
    seeds, real = [], baselines.of_equal_norm
    monkeypatch.setattr(baselines, "of_equal_norm", lambda m, v, seed: (seeds.append(seed), real(m, v, seed))[1])
    always = course.choose_placement
    monkeypatch.setattr(course, "choose_placement", lambda *a, **k: dataclasses.replace(always(*a, **k), scale=1.0))
    for source, seed in ((other_task, 0), (other_task, 1), (dataclasses.replace(other_task, name="other"), 0)):
        transfer(tiny, source, word_task, baselines=["random direction"], seed=seed, **SMALL)
    assert seeds == [own_seed(seed, word_task.name, name) for seed, name in ((0, "kinds"), (1, "kinds"), (0, "other"))]
