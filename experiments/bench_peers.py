"""Rivals for `bench_engine.py`: other libraries' training step and extraction on the same model, tokens and examples.

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
from transformers import PreTrainedModel

from laai.models import cache_folder, load_model

Ids = Sequence[Sequence[int]]
Step = Callable[[], float]
Ask = Callable[..., dict[str, Any]]

PACKAGES = (
    *("torch==2.13.0", "transformers==4.57.6", "huggingface-hub<1", "datasets<4.5"),
    *("steering-vectors==0.12.2", "matplotlib", "accelerate"),
)
# With what they depend on (jupyter, wandb, ydata-profiling, ...), pip does not finish; they import none of it.
WITHOUT_DEPENDENCIES = ("pyreft==0.1.0", "pyvene==0.1.8")
MARKER = "peers.json"  # written last: what was installed
WORKER = Path(__file__).with_name("peer_worker.py")


class PeerError(RuntimeError):
    """A rival cannot be measured here; the message is one line."""


def peers_python(folder: Path | None = None) -> Path:
    """The Python of the peers' environment, made in `folder` if need be (default: in this project's cache folder).

    Raises:
        PeerError: it cannot be made: no connection, no room, or a folder that holds something else.
    """
    folder = (folder or cache_folder() / "bench-peers").expanduser().absolute()
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not _is_ready(folder, python):
                _make(folder, python)
    except OSError as err:
        raise PeerError(f"the peers' environment cannot be made in {str(folder)!r}: {err.strerror or err}") from err
    return python


def _wanted() -> dict[str, list[str]]:
    return {"packages": [*PACKAGES], "without_dependencies": [*WITHOUT_DEPENDENCIES]}


def _is_ready(folder: Path, python: Path) -> bool:
    try:
        return python.exists() and bool(json.loads((folder / MARKER).read_text()) == _wanted())
    except (OSError, ValueError):
        return False


def _make(folder: Path, python: Path) -> None:
    if folder.exists():
        if not folder.is_dir() or (any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists()):
            raise PeerError(f"the peers' environment cannot be made in {str(folder)!r}: it holds something else")
        shutil.rmtree(folder)
    print(f"making the peers' environment in {folder} (once, some minutes) ...", file=sys.stderr, flush=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    _run(folder, sys.executable, "-m", "venv", str(folder))
    _run(folder, *pip, *PACKAGES)
    _run(folder, *pip, "--no-deps", *WITHOUT_DEPENDENCIES)
    _run(folder, str(python), "-I", "-c", "import pyreft, pyvene, steering_vectors")
    (folder / MARKER).write_text(json.dumps(_wanted(), indent=1))


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        reason = _last_error(done.stderr or done.stdout)
        raise PeerError(f"the peers' environment cannot be made in {str(folder)!r}: {reason}")


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
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        try:
            process = subprocess.Popen(  # isolated (-I): neither this project nor PYTHONPATH is on its path
                [str(python), "-I", str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                env=environment,
            )
        except OSError as err:
            raise PeerError(f"the peers' process did not start: {err.strerror or err}") from err
        requests, answers = process.stdin, process.stdout
        assert requests is not None
        assert answers is not None

        def ask(do: str, **request: Any) -> dict[str, Any]:
            begin = time.monotonic()
            limit = threading.Timer(timeout, process.kill)
            limit.start()
            try:
                print(json.dumps({"do": do, **request}), file=requests, flush=True)
                line = answers.readline()
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
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            with contextlib.suppress(OSError):
                requests.close()
            answers.close()


def beft_step(
    source: str | Path | PreTrainedModel, prompts: Ids, answers: Ids, layer: int = 10, rate: float = 1e-2
) -> Step:
    """PEFT's BEFT: a learned bias on one layer's MLP output, at all positions of prompt and answer.

    `source` is a folder, or a model that may be changed.
    """
    from peft import BeftConfig

    config = BeftConfig(task_type="CAUSAL_LM", target_modules=rf".*\.layers\.{layer}\.mlp\.down_proj")
    return _peft_step(source, config, prompts, answers, rate)


def lora_step(
    source: str | Path | PreTrainedModel, prompts: Ids, answers: Ids, rank: int = 4, rate: float = 1e-3
) -> Step:
    """PEFT's LoRA on the query and value projections of all layers. `source` as for `beft_step`."""
    from peft import LoraConfig

    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"])
    return _peft_step(source, config, prompts, answers, rate)


def _peft_step(source: str | Path | PreTrainedModel, config: Any, prompts: Ids, answers: Ids, rate: float) -> Step:
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this bias cannot be merged, and of PEFT's calls into transformers
        model = get_peft_model(_model(source), config).train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=rate)
    batch = right_padded(prompts, answers)

    def step() -> float:
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    return step


def plain_loss(source: str | Path | PreTrainedModel, prompts: Ids, answers: Ids) -> float:
    """The untouched model's mean loss per answer token: every rival's first loss is this."""
    with torch.no_grad():
        return float(_model(source)(**right_padded(prompts, answers), use_cache=False).loss.item())


def _model(source: str | Path | PreTrainedModel) -> Any:
    if isinstance(source, PreTrainedModel):
        return source
    return load_model(source).llm
