"""Whatever comes in, it works or gives one clear line: task files, artefacts, checkpoints, settings and prompts."""

from __future__ import annotations

import csv
import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import train
from laai.errors import UserError
from laai.evaluation.measuring import measure
from laai.prompts.templates import Template
from laai.steering.intervention import Intervention
from laai.tasks.examples import Example, Task
from laai.tasks.loading import load_task

FUZZ = settings(
    deadline=None, max_examples=150, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
WORKS = "works, or one line; no file left half-made"
FEW = settings(FUZZ, max_examples=20)

# Text of every script, with what breaks parsers: NUL, new lines, right-to-left marks, surrogates' neighbours, emoji.
texts = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["", " ", "\0", "\n\n", "\r", "שלום עולם", "👩‍👩‍👧‍👦", "\u202eabc", "e\u0301", "<|im_end|>"]),
    st.sampled_from(["Q: x\nA:", "a" * 600]),
)  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
rows = st.fixed_dictionaries({}, optional=dict.fromkeys(("input", "output", "choices", "label", "id"), values))


def one_line(error):
    """Of a user's mistake: one line, not endless."""
    text = str(error)
    assert text
    assert "\n" not in text
    assert len(text) < 1500
    return True


def works_or_says_so(load, path, fault):
    """Loading gives something or one line; it writes nothing beside the file."""
    fault(f"a {path.suffix} file with anything in it", 1, WORKS)
    before = sorted(path.parent.iterdir())
    try:
        load(path)
    except UserError as error:
        one_line(error)
    assert sorted(path.parent.iterdir()) == before


@FUZZ
@given(content=st.one_of(st.binary(max_size=300), texts.map(lambda t: t.encode(errors="surrogatepass"))))
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_any_bytes_as_a_task_file(tmp_path, suffix, content, fault):
    path = tmp_path / f"task{suffix}"
    path.write_bytes(content)
    works_or_says_so(load_task, path, fault)


@FUZZ
@given(content=st.lists(st.one_of(rows, values), max_size=5))
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_any_json_as_a_task_file(tmp_path, suffix, content, fault):
    path = tmp_path / f"task{suffix}"
    lines = [json.dumps(row) for row in content]
    path.write_text("\n".join(lines) if suffix == ".jsonl" else f"[{','.join(lines)}]", encoding="utf-8")
    works_or_says_so(load_task, path, fault)


@FUZZ
@given(examples=st.lists(st.tuples(texts, texts), min_size=2, max_size=4, unique_by=lambda pair: pair[0]))
def test_any_examples_as_csv(tmp_path, examples, fault):
    path = tmp_path / "task.csv"
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([("input", "output"), *examples])
    path.write_text(text.getvalue(), encoding="utf-8", errors="replace", newline="")
    works_or_says_so(load_task, path, fault)


@FUZZ
@given(
    cuts=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4),
    end=st.integers(0, 2000),
)
def test_a_damaged_artefact(tiny, tmp_path_factory, cuts, end, fault):
    folder = tmp_path_factory.mktemp("artefact")
    path = folder / "intervention.safetensors"
    Intervention.random(tiny, "heads", [0, 2]).save(path)
    content = bytearray(path.read_bytes())
    for place, byte in cuts:
        content[place % len(content)] = byte
    path.write_bytes(content[: max(1, len(content) - end % len(content))] if end % 3 == 0 else content)
    works_or_says_so(partial(Intervention.load, model=tiny), path, fault)


@FEW
@given(query=texts, answer=texts, shown=st.lists(st.tuples(texts, texts), max_size=2))
def test_any_prompt(tiny, query, answer, shown, fault):
    """Encoded exactly and measured, or refused: empty answers, and prompts that are longer than the model reads."""
    fault("a prompt with anything in it", 1, WORKS)
    try:
        task = Task("fuzz", (Example(query, answer), Example(query + "x", answer)))
        template = Template(tiny.tokenizer, task)
        prompt = template.encode(query, [Example(*pair) for pair in shown], answer)
        (found,) = measure(tiny, template, [(0, Example(query, answer))], [Example(*pair) for pair in shown])
    except UserError as error:
        one_line(error)
        return
    assert len(prompt.answer) >= 1
    assert found.prompt_tokens == len(prompt.prompt)
    assert found.nll > 0


OPTIONS = (
    *("data.num_examples", "data.seed", "data.validation", "data.test", "data.batch_size", "data.style"),
    *("model.site", "model.layers", "model.positions", "model.init", "model.source", "model.init_scale", "model.l1"),
    *("model.group_l2", "model.prior", "model.distill", "model.dtype", "model.schedule", "model.prefix_cache"),
    *(
        "trainer.max_steps",
        "trainer.precision",
        "stop_at_loss",
        "patience",
        "ckpt_path",
        "data.task",
        "model.base_model",
    ),
)
settings_values = st.one_of(
    texts.filter(lambda t: "\0" not in t),
    st.sampled_from(["-1", "0", "1", "2", "1e9", "nan", "inf", "-inf", "null", "true", "[0]", "[0,0]", "[99]", "{}"]),
    st.sampled_from(["all", "auto", "residual", "heads", "cast", "chat", "antonym", "/nowhere", "x.ckpt", "last"]),
)  # fmt: skip


@settings(FUZZ, max_examples=25, phases=[Phase.generate])  # to shrink a failure would take minutes
@given(option=st.sampled_from(OPTIONS), value=settings_values)
def test_any_setting(tiny_folder, word_file, tmp_path_factory, option, value, fault):
    """One setting is anything: a run of a step, or exit code 2 and one line, and no traceback."""
    fault("a setting of train.py that is anything", 1, "works, or one line and exit code 2; nothing left half-made")
    folder = tmp_path_factory.mktemp("run")
    fixed = {"model.base_model": tiny_folder, "data.task": word_file, "data.num_examples": 3, "data.test": 1}
    fixed |= {"trainer.max_steps": 1, "model.init": "zero", option: value}
    if option == "trainer.max_steps" and value in ("1e9", "-1", "inf", "null"):
        return  # a run without an end is what this asks for
    arguments = [f"--{name}={given}" for name, given in fixed.items()]
    fast = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    error = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(error), redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train.py"])
        code = None
        try:
            train.main([*arguments, *fast, "--trainer.enable_progress_bar=false"])
        except SystemExit as end:
            code = end.code
    said = error.getvalue()
    assert code in (None, 2), said
    assert "Traceback" not in said
    if code == 2:
        assert said.splitlines()[-1].startswith("error: "), said
        left = {path.name for path in folder.rglob("*")}
        assert left <= {"lightning_logs", "version_0", "config.yaml"}, "nothing but the settings is left"
