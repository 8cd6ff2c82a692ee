"""Fixtures that many tests share: a tiny language model with a tokenizer of its own, small tasks, a quiet trainer."""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import laai
import train
from laai.learn.module import LAAIModule
from laai.learn.recipe import Recipe
from laai.models.language_model import LanguageModel
from laai.runtime.data import FewShotDataModule
from laai.tasks.examples import Example, Task
from tests.tiny_models import shared

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start: threads that wait would spin

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = """
amber birch cedar delta ember fjord grove haven ivory jetty karst lemon maple night ocean pearl quartz river stone tulip
umber violet willow xenon yarrow zephyr acorn breeze copper dune elder flint glade heron indigo juniper kelp larch
meadow nectar
"""


def pytest_configure(config):
    """Our own code calls nothing that is deprecated; what libraries do among themselves is theirs."""
    for kind in ("DeprecationWarning", "FutureWarning"):
        config.addinivalue_line("filterwarnings", f"error::{kind}:(laai|cast|train)")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models run no faster on more, and sums come in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def embeddings_apart(tmp_path_factory, monkeypatch):
    """Embeddings of test models do not fill the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("cast.selection.embeddings.cache_folder", lambda: folder)


@pytest.fixture(autouse=True)
def quiet_lightning():
    """Advice of Lightning that does not concern tests."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield


def word_examples(choices: bool = True) -> list[Example]:
    """Forty words; the answer is a colour by the word's first letter, so that there is something to learn."""
    options = ("red", "dark blue")
    return [
        Example(word, options[word[0] < "n"], options if choices else None)
        for word in WORDS.split()
    ]  # fmt: skip


@pytest.fixture(scope="session")
def word_task():
    return Task("colours", tuple(word_examples()), instruction="Name the colour.")


@pytest.fixture(scope="session")
def word_file(tmp_path_factory, word_task):
    """The same task as JSONL (without its instruction, which a bare file cannot hold)."""
    path = tmp_path_factory.mktemp("tasks") / "colours.jsonl"
    rows = [{"input": e.input, "output": e.output, "choices": list(e.choices)} for e in word_task.examples]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the task's own text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    text = [f"Name the colour.\n\nQ: {e.input}\nA: {e.output}\n\n" for e in word_examples()]
    core.train_from_iterator(text, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=SPECIAL[2])
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A random three-layer Llama and its tokenizer, to be named by path: `--model.base_model`."""
    folder, tokenizer = tmp_path_factory.mktemp("models") / "tiny", byte_level_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=0, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    llm = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in llm.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.dim() == 1 else 0.25 * noise)
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """The tiny `LanguageModel`; tests leave it as they found it."""
    return laai.load_model(str(tiny_folder))


@pytest.fixture(scope="session")
def default_model():
    return laai.load_model("default")


@pytest.fixture
def weights():
    """A function that copies all parameters and buffers of a model, to compare bitwise."""
    return lambda llm: {name: value.clone() for name, value in llm.state_dict().items()}


@pytest.fixture
def words_data(word_task):
    """A function that makes the data module of the word task."""

    def make(num_examples=6, test=5, **options):
        return FewShotDataModule(word_task, num_examples, test=test, **options)

    return make


@pytest.fixture
def quiet_trainer(tmp_path, monkeypatch):
    """A function that makes a trainer on the CPU that writes below a temporary working directory, if at all."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("lightning.pytorch.utilities.rank_zero"), "level", logging.WARNING)

    def make(**options):
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        quiet |= {"enable_model_summary": False, "accelerator": "cpu", "devices": 1, "max_epochs": -1, "max_steps": 3}
        quiet["num_sanity_val_steps"] = 0
        return pl.Trainer(**(quiet | options))

    return make


@pytest.fixture
def learn(tiny, words_data, quiet_trainer):
    """Fit a module on the tiny model; returns it, detached, as the LLM is shared."""

    def run(
        steps=3, data=None, callbacks=(), ckpt_path=None, trainer=None, given=None, model=tiny, cast=None, **options
    ):
        data = data or words_data()
        module = LAAIModule(Recipe(**({"init": "zero"} | options)), data, model, given, cast)
        trainer = trainer or quiet_trainer(max_steps=steps, callbacks=[*callbacks])
        try:
            trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        finally:
            if hasattr(module, "steered"):
                module.steered.detach()
        return module

    return run


@pytest.fixture(scope="session")
def character_model():
    """A function that gives the `LanguageModel` of one of the tiny architectures, one token a character."""
    letters = [*SPECIAL, *"abcdefghijklmnopqrstuvwxyzQA:>-Ġ.Ċ0123456789"]
    core = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=SPECIAL[2])
    return lambda name: LanguageModel(shared(name), tokenizer, name)


@pytest.fixture(scope="session")
def letter_task():
    """Short queries of many lengths, for models that read 64 tokens; some examples have choices of their own."""
    words = ["a", "cat", "dogs", "e", "fowl", "gnu", "hi", "ibexes", "jay", "koi", "lamb", "mole"]
    choices = [("be", "x"), None, ("xyz", "be", "o")]
    examples = tuple(
        Example(word, ("be", "o", "xyz")[i % 3], options if (options := choices[i % 3]) else None)
        for i, word in enumerate(words)
    )
    return Task("letters", examples, input_prefix="", answer_prefix=">")


@pytest.fixture
def laai_process(tmp_path):
    """A function that runs a `laai` command in a process of its own, without a GPU, and returns what it wrote."""
    root = str(Path(__file__).parents[1])
    common = {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""}

    def run(*command, expected=(0,), environment=None):
        whole, options = [sys.executable, "-m", "laai", *command], {"capture_output": True, "text": True}
        environment = os.environ | common | (environment or {})
        done = subprocess.run(whole, cwd=tmp_path, env=environment, timeout=300, **options)
        assert done.returncode in expected, done.stderr
        return done

    return run


@pytest.fixture
def scripts(monkeypatch):
    """A function that imports scripts by their names, wherever they stand below `experiments/`."""
    for folder in sorted({str(script.parent) for script in Path(__file__).parents[1].glob("experiments/**/*.py")}):
        monkeypatch.syspath_prepend(folder)
    return lambda *names: tuple(map(importlib.import_module, names))


@pytest.fixture
def fault(record_property):
    """A function that notes what a test did to a run, how often, and what came of it (`experiments/reliability.py`)."""

    def note(what, tried=1, outcome="one line, exit code 2"):
        for name, value in (("fault", what), ("tried", tried), ("outcome", outcome)):
            record_property(name, value)

    return note


@pytest.fixture
def run_train(tiny_folder, word_file, tmp_path, monkeypatch):
    """A function that runs train.py's command line in a temporary working directory; returns the run's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = rank_zero.level

    def run(*arguments, tiny=True, runs="lightning_logs"):
        named = ["--model.base_model", str(tiny_folder), "--data.task", str(word_file), "--data.test", "7"]
        named += ["--data.num_examples", "6", "--trainer.max_steps", "3"]
        before = set(tmp_path.glob(f"{runs}/version_*"))
        train.main([*(named if tiny else []), "--trainer.accelerator", "cpu", *arguments])
        (made,) = set(tmp_path.glob(f"{runs}/version_*")) - before
        return made

    yield run
    rank_zero.setLevel(level)


@pytest.fixture
def power_cut(monkeypatch):
    """`power_cut.after(n)`: extraction fails once n batches ran; `power_cut.ran` holds the pairs of each."""
    from cast.extraction.contrast import Contrast

    ran, run = [], Contrast.run

    def after(batches):
        def stopping(self, pairs):
            if len(ran) == batches:
                raise RuntimeError("power cut")
            ran.append(list(pairs))
            run(self, pairs)

        monkeypatch.setattr(Contrast, "run", stopping)

    return SimpleNamespace(after=after, ran=ran)
