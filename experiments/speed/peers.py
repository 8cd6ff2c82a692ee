"""Rivals for `engine.py`: other libraries' training step and extraction on the same model, tokens and examples.

pyreft and steering-vectors need an older transformers, so they live in a virtual environment of their own, made once on
demand, and in a process that takes its steps when asked (`peer_worker.py`). PEFT runs in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from peer_worker import right_padded

from laai.default_model import cache_folder
from laai.models import load_model

Ids = Sequence[Sequence[int]]
Ask = Callable[..., dict[str, Any]]
PACKAGES = (
    *("torch==2.13.0", "transformers==4.57.6", "huggingface-hub<1", "datasets<4.5"),
    *("steering-vectors==0.12.2", "matplotlib", "accelerate"),
)
# With what they depend on (jupyter, wandb, ydata-profiling, ...), pip does not finish; they import none of it.
WITHOUT_DEPENDENCIES = ("pyreft==0.1.0", "pyvene==0.1.8")
INSTALLED = json.dumps({"packages": PACKAGES, "without_dependencies": WITHOUT_DEPENDENCIES}, indent=1)
PEFT = ("PEFT BEFT", "PEFT LoRA r=4")


class PeerError(RuntimeError):
    """A rival cannot be measured here; the message is one line."""


def peers_python(folder: Path | None = None) -> Path:
    """The Python of the peers' environment, made in `folder` if need be (default: in this project's cache folder).

    Raises:
        PeerError: it cannot be made: no connection, no room, or a folder that holds something else.
    """
    folder = (folder or cache_folder() / "bench-peers").expanduser().absolute()
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    marker = folder / "peers.json"  # written last: what was installed
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not (python.exists() and marker.is_file() and marker.read_text(errors="replace") == INSTALLED):
                _make(folder, str(python))
                marker.write_text(INSTALLED)
    except OSError as err:
        raise PeerError(f"the peers' environment cannot be made in {str(folder)!r}: {err.strerror or err}") from err
    return python


def _make(folder: Path, python: str) -> None:
    if folder.exists():
        if not folder.is_dir() or (any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists()):
            raise OSError("it holds something else")
        shutil.rmtree(folder)
    print(f"making the peers' environment in {folder} (once, some minutes) ...", file=sys.stderr, flush=True)
    pip = (python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check")
    for command in (
        (sys.executable, "-m", "venv", str(folder)),
        (*pip, *PACKAGES),
        (*pip, "--no-deps", *WITHOUT_DEPENDENCIES),
        (python, "-I", "-c", "import pyreft, pyvene, steering_vectors"),
    ):
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise OSError(_last_error(done.stderr or done.stdout))


def _last_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    shown = next((line for line in reversed(lines) if "error" in line.lower()), (lines or ["no message"])[-1])
    return shown.removeprefix("ERROR: ")[:300]


@contextlib.contextmanager
def peer_worker(python: Path, threads: int = 2, timeout: float = 600) -> Iterator[Ask]:
    """Start the peers' process and give the function that asks it: `ask("step")`, `ask("load", model=..., threads=2)`.

    The requests are those of `peer_worker.py`. The process ends with the context, and with this process.

    Raises:
        PeerError: it cannot be started. `ask` raises it where a request fails, after which more can be asked, and where
            one takes over `timeout` seconds, after which the process is gone.
    """
    command = [
        str(python),
        "-I",
        str(Path(__file__).with_name("peer_worker.py")),
    ]  # -I: this project is not on its path
    own = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        try:
            process = subprocess.Popen(command, **pipes, stderr=errors, env=os.environ | own)
        except OSError as err:
            raise PeerError(f"the peers' process did not start: {err.strerror or err}") from err

        def ask(do: str, **request: Any) -> dict[str, Any]:
            begin = time.monotonic()
            limit = threading.Timer(timeout, process.kill)
            limit.start()
            try:
                print(json.dumps({"do": do, **request}), file=process.stdin, flush=True)
                line = process.stdout.readline()
            except OSError:
                line = ""
            finally:
                limit.cancel()
            if not line:
                code = process.wait()
                if time.monotonic() - begin >= timeout:
                    raise PeerError(f"the peers' process was stopped at {do!r}: it took over {timeout:g} s")
                errors.seek(0)
                raise PeerError(f"the peers' process ended at {do!r} (code {code}): {_last_error(errors.read())}")
            answer: dict[str, Any] = json.loads(line)
            if "error" in answer:
                raise PeerError(f"the peers' process failed at {do!r}: {answer['error']}")
            return answer

        try:
            yield ask
        finally:
            process.kill()
            with contextlib.suppress(OSError):  # what a process that died never read
                process.communicate()


def peft_step(name: str, model: str, prompts: Ids, answers: Ids) -> Callable[[], float]:
    """A training step of PEFT on a model of its own, at all positions of prompt and answer.

    BEFT learns a bias on one layer's MLP output, LoRA low-rank changes of all layers' query and value projections.
    """
    from peft import BeftConfig, LoraConfig, get_peft_model

    config: Any = BeftConfig(task_type="CAUSAL_LM", target_modules=r".*\.layers\.10\.mlp\.down_proj")
    rate = 1e-2
    if name != "PEFT BEFT":
        config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
        rate = 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this bias cannot be merged, and of PEFT's calls into transformers
        llm: Any = get_peft_model(load_model(model).llm, config).train()
    optimizer = torch.optim.Adam([weight for weight in llm.parameters() if weight.requires_grad], lr=rate)
    batch = right_padded(prompts, answers)

    def step() -> float:
        loss = llm(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    return step
