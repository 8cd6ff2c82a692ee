"""What vectors have seen stays out of tests, through learning, extraction, arithmetic and files."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace

import pytest
import torch

import cast
import laai
from laai.cli.main import main
from laai.errors import UserError
from laai.prompts.templates import Template
from laai.runtime.checkpoints import check_belongs
from laai.runtime.data import FewShotDataModule, data_facts
from laai.steering.intervention import Intervention
from laai.steering.provenance import LONGEST, Provenance
from laai.tasks.examples import Example
from laai.tasks.loading import load_task
from tests.laai.prompts.test_prompts import chat_tokenizer


def examples(*inputs):
    return tuple(Example(text, "x") for text in inputs)


def having_seen(*inputs, **facts):
    return Provenance(**facts).having_seen(inputs)


def test_digests():
    made = having_seen("b", "a", "b", "é 🙂")
    assert made == having_seen("a").having_seen((), having_seen("b", "é 🙂").seen, None)
    assert len(made.seen) == 16, "four bytes each"
    assert made.unseen(examples("a", "c", "é 🙂")) == examples("c")
    assert Provenance().unseen(examples("a")) == having_seen().unseen(examples("a")) == examples("a")
    assert made.unseen(examples("A", " a\n", "aa")) == examples("aa"), "case and spaces make no other input"
    many = [str(number) for number in range(2000)]
    assert having_seen(*many[:1000]).unseen(examples(*many[1000:])) == examples(*many[1000:])


def test_files_of_before_have_digests_of_texts_as_they_stand():
    old = base64.b64encode(hashlib.sha256(b"France").digest()[:4]).decode()
    assert Provenance(seen=old).unseen(examples("France", "Spain")) == examples("Spain")


def test_the_header_keeps_its_names_and_what_it_does_not_know():
    header = {"base_model": "m", "revision": None, "config_hash": "abc", "cast": {"source": "antonym"}, "seen": "AAAA"}
    header |= {"label_prior": {"a": 0.5}, "refused": False, "of tomorrow": [1]}
    made = Provenance.from_header(header)
    assert (made.cast["source"], made.refused, made.notes) == ("antonym", False, {"of tomorrow": [1]})
    assert list(made.to_header().items()) == list(header.items())
    assert Provenance.from_header({}).to_header() == {}
    for name, value in {"seen": 3, "training": "long", "refused": "no", "base_model": ["m"]}.items():
        with pytest.raises(TypeError, match=name):
            Provenance.from_header({name: value})


def test_parts_and_multiples_drop_the_scores_and_say_what_they_are_made_of():
    learned = Provenance(
        "m", "r", "abc", training={"task": "antonym", "style": "chat"}, metrics={"nll": 1.0}, seen="AAAA"
    )
    keys = [("residual", 0), ("residual", 2), ("heads", 2)]
    whole = Intervention({key: torch.ones(4) for key in keys}, provenance=learned)
    assert (1.0 * whole).provenance == whole.select().provenance == whole.select(layers=range(9)).provenance == learned
    assert whole.with_vectors(dict(whole.items())).provenance.metrics is None
    told = {
        "0.5 * (antonym, laai)": 0.5 * whole,
        "-1 * (antonym, laai)": -whole,
        "residual 0, 2 of (antonym, laai)": whole.select(site="residual"),
        "heads and residual 2 of (antonym, laai)": whole.select(layers=[2]),
        "2 * (heads 2 of (antonym, laai))": 2 * whole.select(site="heads"),
    }
    for text, part in told.items():
        assert part.provenance == replace(learned, metrics=None, made_of=text)
    extracted = Intervention(dict(whole.items()), provenance=replace(learned, training=None, cast={"source": "kinds"}))
    both = whole - 0.5 * extracted
    assert both.provenance.made_of == "(antonym, laai) - (0.5 * (kinds, cast))"
    assert both.provenance == Provenance("m", "r", "abc", style="chat", seen="AAAA", made_of=both.provenance.made_of)
    for _ in range(50):
        both = 0.5 * (both + whole)
    assert len(both.provenance.made_of) <= LONGEST


def test_an_instruction_tells_runs_apart(word_task):
    tasks = [replace(word_task, instruction=text) for text in ("", "Name it.")]
    plain, told = (data_facts(FewShotDataModule(task, 6, test=5)) for task in tasks)
    assert plain["examples"] == told["examples"]
    with pytest.raises(UserError, match=r"this run has 6 examples of colours under 'Name it\.'"):
        check_belongs({"laai": {"config_hash": 1, "data": plain}}, {"config_hash": 1, "revision": None}, {}, told)
    old = {"laai": {"config_hash": 1, "data": {k: v for k, v in plain.items() if k != "instruction"}}}
    check_belongs(old | {"state_dict": {}}, {"config_hash": 1, "revision": None}, {}, told)


def test_an_instruction_that_vectors_were_made_under(tiny, word_task):
    vector = cast.extract(tiny, word_task, samples=3, shots=2, progress=False)
    other = replace(word_task, instruction="Guess.")
    assert vector.provenance.other_instruction(word_task) is None
    assert vector.provenance.other_instruction(other) == word_task.instruction
    assert vector.provenance.other_instruction(replace(other, name="another task")) is None
    assert laai.fit(tiny, other, 4, steps=1).provenance.other_instruction(word_task) == "Guess."


def test_the_sum_has_seen_what_both_have():
    a, b = having_seen("a", config_hash="1"), having_seen("b", config_hash="1")
    assert a.summed(b, "+").unseen(examples("a", "b", "c")) == examples("c")
    assert Provenance().summed(Provenance(), "+").seen is None
    with pytest.raises(UserError, match="base models"):
        a.summed(replace(b, config_hash="2"), "+")


def test_the_sum_keeps_the_style():
    learned = Provenance(training={"style": "chat"}, cast={"style": "plain"})
    extracted, plain = (Provenance(cast={"style": style}) for style in ("chat", "plain"))
    assert learned.prompt_style == extracted.prompt_style == "chat"
    assert Provenance().prompt_style is None
    both = learned.summed(extracted, "+")
    assert both.prompt_style == Provenance().summed(both, "+").prompt_style == "chat"
    with pytest.raises(UserError, match="prompt styles: chat and plain"):
        learned.summed(plain, "+")


def test_learned_and_extracted_vectors_know_what_they_saw(tiny, word_task):
    data = FewShotDataModule(word_task, 4, validation=2)
    inputs = {e.input for e in (*data.splits.train, *data.splits.validation)}
    learned = laai.fit(tiny, word_task, 4, validation=2, steps=1)
    assert {e.input for e in word_task.examples} - inputs == {
        e.input for e in learned.provenance.unseen(word_task.examples)
    }
    vector = cast.extract(tiny, word_task, samples=3, shots=2, shared_shots=True, progress=False)
    assert len(word_task.examples) - len(vector.provenance.unseen(word_task.examples)) in (3, 4, 5, 6)
    started = laai.fit(tiny, word_task, 4, validation=2, steps=1, init=vector)
    left = {e.input for e in started.provenance.unseen(word_task.examples)}
    assert left == {e.input for e in (learned + vector).provenance.unseen(word_task.examples)}
    assert left < {e.input for e in learned.provenance.unseen(word_task.examples)}


def test_evaluate_leaves_out_what_the_vectors_saw(tiny, tiny_folder, word_file, tmp_path, capsys, monkeypatch):
    """On a small file the draw of another number of examples would test on training examples."""
    monkeypatch.chdir(tmp_path)
    task = load_task(word_file)
    vector = laai.fit(tiny, task, len(task.examples) - 3, steps=1)
    vector.save("v.safetensors")
    command = ["evaluate", "--intervention", "v.safetensors", "--task", str(word_file), "--json", "r.json"]
    command += ["--base_model", str(tiny_folder)]
    main(command)
    assert "are left out: the vectors were made from them" in capsys.readouterr().out
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert {row["n"] for row in rows} <= {2, 3}
    everything = cast.extract(tiny, task, samples=len(task.examples), shots=2, progress=False)
    everything.save("v.safetensors")
    with pytest.raises(SystemExit):
        main(command)
    assert "the vectors were made from all" in capsys.readouterr().err


def test_vectors_of_another_configuration_are_not_attached(tiny, character_model):
    """They may have its widths."""
    vector = Intervention.zeros(tiny, "residual", [0])
    same = vector.with_vectors(dict(vector.items()), provenance=Provenance())
    other = vector.with_vectors(dict(vector.items()), provenance=Provenance("other", None, "0" * 16))
    for model in (tiny, tiny.llm):
        with vector.on(model), same.on(model):
            pass
        with pytest.raises(UserError, match="was made for other"), other.on(model):
            pass


def test_runs_are_told_apart_by_their_examples(words_data):
    facts = data_facts(words_data())
    assert facts == data_facts(words_data())
    assert facts["examples"] != data_facts(words_data(seed=1))["examples"]
    assert facts["examples"] != data_facts(words_data(5))["examples"]


def test_a_template_without_a_system_turn_gets_the_instruction_from_the_user(word_task):
    """Gemma's first templates raise."""
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    )
    template = Template(chat_tokenizer(refusing, eos_token="</s>"), word_task, "chat")
    shown = word_task.examples[:2]
    text = template.prompt_text("amber", shown)
    assert text.startswith(f"<|im_start|>user\nName the colour.\n\n{shown[0].input}<|im_end|>")
    assert text.count("Name the colour.") == 1
    assert template.prompt_text("amber").startswith("<|im_start|>user\nName the colour.\n\namber<|im_end|>")
