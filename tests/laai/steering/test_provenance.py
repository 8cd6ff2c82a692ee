"""What vectors have seen stays out of tests, through learning, extraction, arithmetic and files."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace

import pytest

import cast
import laai
from laai.cli.main import main
from laai.errors import UserError
from laai.prompts.templates import Template
from laai.runtime.checkpoints import check_belongs
from laai.runtime.data import FewShotDataModule, data_facts
from laai.steering.intervention import Intervention
from laai.steering.provenance import other_instruction, seen_digests, shared_facts, style_of, unseen
from laai.tasks.examples import Example
from laai.tasks.loading import load_task
from tests.laai.prompts.test_prompts import chat_tokenizer


def examples(*inputs):
    return tuple(Example(text, "x") for text in inputs)


def test_digests():
    seen = seen_digests(["b", "a", "b", "é 🙂"])
    assert seen == seen_digests(["a"], seen_digests(["b", "é 🙂"]), None)
    assert len(seen) == 16, "four bytes each"
    assert unseen(examples("a", "c", "é 🙂"), {"seen": seen}) == examples("c")
    assert unseen(examples("a"), {}) == unseen(examples("a"), {"seen": None}) == examples("a")
    assert unseen(examples("A", " a\n", "aa"), {"seen": seen}) == examples("aa"), "case and spaces make no other input"
    many = [str(number) for number in range(2000)]
    assert unseen(examples(*many[1000:]), {"seen": seen_digests(many[:1000])}) == examples(*many[1000:])


def test_files_of_before_have_digests_of_texts_as_they_stand():
    old = base64.b64encode(hashlib.sha256(b"France").digest()[:4]).decode()
    assert unseen(examples("France", "Spain"), {"seen": old}) == examples("Spain")


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
    assert other_instruction(vector.metadata, word_task) is None
    assert other_instruction(vector.metadata, other) == word_task.instruction
    assert other_instruction(vector.metadata, replace(other, name="another task")) is None
    assert other_instruction(laai.fit(tiny, other, 4, steps=1).metadata, word_task) == "Guess."


def test_the_sum_has_seen_what_both_have():
    a, b = {"seen": seen_digests(["a"]), "config_hash": "1"}, {"seen": seen_digests(["b"]), "config_hash": "1"}
    assert unseen(examples("a", "b", "c"), shared_facts(a, b)) == examples("c")
    assert "seen" not in shared_facts({}, {})
    with pytest.raises(UserError, match="base models"):
        shared_facts(a, b | {"config_hash": "2"})


def test_the_sum_keeps_the_style():
    learned, extracted = {"training": {"style": "chat"}, "cast": {"style": "plain"}}, {"cast": {"style": "chat"}}
    assert style_of(learned) == style_of(extracted) == "chat"
    assert style_of({"cast": None}) is None
    both = shared_facts(learned, extracted)
    assert style_of(both) == style_of(shared_facts({}, both)) == "chat"
    with pytest.raises(UserError, match="prompt styles: chat and plain"):
        shared_facts(learned, {"cast": {"style": "plain"}})


def test_learned_and_extracted_vectors_know_what_they_saw(tiny, word_task):
    data = FewShotDataModule(word_task, 4, validation=2, test=0)
    inputs = {e.input for e in (*data.splits.train, *data.splits.validation)}
    learned = laai.fit(tiny, word_task, 4, validation=2, steps=1)
    assert {e.input for e in word_task.examples} - inputs == {
        e.input for e in unseen(word_task.examples, learned.metadata)
    }
    vector = cast.extract(tiny, word_task, samples=3, shots=2, shared_shots=True, progress=False)
    assert len(word_task.examples) - len(unseen(word_task.examples, vector.metadata)) in (3, 4, 5, 6)
    started = laai.fit(tiny, word_task, 4, validation=2, steps=1, init=vector)
    left = {e.input for e in unseen(word_task.examples, started.metadata)}
    assert left == {e.input for e in unseen(word_task.examples, (learned + vector).metadata)}
    assert left < {e.input for e in unseen(word_task.examples, learned.metadata)}


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
    same = vector.with_vectors(dict(vector.items()), metadata={"config_hash": None})
    other = vector.with_vectors(dict(vector.items()), metadata={"config_hash": "0" * 16, "base_model": "other"})
    for model in (tiny, tiny.llm):
        with vector.on(model), same.on(model):
            pass
        with pytest.raises(UserError, match="made for other do not fit"), other.on(model):
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
