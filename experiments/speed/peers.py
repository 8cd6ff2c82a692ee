"""Rivals for `engine.py`: other libraries' training step and extraction on the same model, tokens and examples.

pyreft and steering-vectors need an older transformers, so they live in a virtual environment of their own, made once on
demand, and in a process that takes its steps when asked (`peer_worker.py`). PEFT runs in this process.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from peer_worker import Ids, adam_step, right_padded

from laai.models import LanguageModel, cache_folder, load_model

Ask = Callable[..., dict[str, Any]]
PACKAGES = (
    *("torch==2.13.0", "transformers==4.57.6", "huggingface-hub<1", "datasets<4.5"),
    *("steering-vectors==0.12.2", "matplotlib", "accelerate"),
)
# With what they depend on (jupyter, wandb, ydata-profiling, ...), pip does not finish; they import none of it.
WITHOUT_DEPENDENCIES = ("pyreft==0.1.0", "pyvene==0.1.8")
PEFT = ("PEFT BEFT", "PEFT LoRA r=4")


class Bench(NamedTuple):
    """What is measured: the model, the other libraries' process (None without one), and whether in short."""

    model: LanguageModel
    ask: Ask | None
    quick: bool


class PeerError(RuntimeError):
    """A rival cannot be measured here; the message is one line."""


def peers_python(folder: Path) -> Path:
    """The Python of the peers' environment, made in `folder` if need be.

    Raises:
        PeerError: it cannot be made: no connection, no room, or a folder that holds something else.
    """
    python = folder / "bin" / "python"
    marker = folder / "peers.json"  # written last: what was installed
    wanted = json.dumps({"packages": PACKAGES, "without_dependencies": WITHOUT_DEPENDENCIES}, indent=1)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not (python.exists() and marker.is_file() and marker.read_text(errors="replace") == wanted):
                _make(folder, str(python))
                marker.write_text(wanted)
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


def start_peers(model: Path, threads: int, folder: Path | None = None, timeout: float = 1800) -> Ask:
    """Start the peers' process, which ends with this one, and load the model: gives the function that asks it.

    The requests are the functions of `peer_worker.py`: `ask("step")`, `ask("extract", positive=..., negative=...)`.

    `model`: its folder. `folder`: of the peers' environment, by default in this project's cache folder. `timeout`:
    seconds that a request may take.

    Raises:
        PeerError: it cannot be started. `ask` raises it where a request fails, after which more can be asked, and where
            one takes over `timeout` seconds, after which the process is gone.
    """
    python = peers_python((folder or cache_folder() / "bench-peers").expanduser().absolute())
    own = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    ours, theirs = Pipe()
    # Isolated (-I): neither this project nor PYTHONPATH is on its path.
    command = [str(python), "-I", str(Path(__file__).with_name("peer_worker.py")), str(theirs.fileno())]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
    try:
        process: Any = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=os.environ | own, **streams)
    except OSError as err:
        raise PeerError(f"the peers' process did not start: {err.strerror or err}") from err
    theirs.close()
    atexit.register(process.kill)
    said: deque[str] = deque(maxlen=100)  # the last lines that it printed
    listener = threading.Thread(target=said.extend, args=(process.stdout,), daemon=True)
    listener.start()

    def ask(do: str, **request: Any) -> dict[str, Any]:
        try:
            ours.send((do, request))
            if not ours.poll(timeout):
                process.kill()
                raise PeerError(f"the peers' process was stopped at {do!r}: it took over {timeout:g} s")
            answer: dict[str, Any] = ours.recv()
        except (OSError, EOFError) as err:
            code = process.wait()
            listener.join()
            reason = _last_error("".join(said))
            raise PeerError(f"the peers' process ended at {do!r} (code {code}): {reason}") from err
        if "error" in answer:
            raise PeerError(f"the peers' process failed at {do!r}: {answer['error']}")
        return answer

    ask("load", model=str(model), threads=threads)
    return ask


def peft_step(name: str, model: str, prompts: Ids, answers: Ids) -> Callable[[], float]:
    """A training step of PEFT, by its name in `PEFT`, on a model of its own, at all positions of prompt and answer."""
    from peft import BeftConfig, LoraConfig, get_peft_model

    down, attention = r".*\.layers\.10\.mlp\.down_proj", ["q_proj", "v_proj"]
    makers: dict[str, Callable[[], Any]] = {  # a bias on one layer's MLP output; low-rank changes in all layers
        PEFT[0]: lambda: BeftConfig(task_type="CAUSAL_LM", target_modules=down),
        PEFT[1]: lambda: LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=attention),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this bias cannot be merged, and of PEFT's calls into transformers
        llm: Any = get_peft_model(load_model(model).llm, makers[name]()).train()
    batch = right_padded(prompts, answers)
    return adam_step(llm.parameters(), 1e-2 if name == PEFT[0] else 1e-3, lambda: llm(**batch, use_cache=False).loss)
