"""Other libraries' training step and extraction, served from a Python environment of their own.

They need an older transformers than this project's, so `peers.py` runs this file with that environment's Python. It
answers JSON requests, one line each on stdin and stdout, so that a caller can take steps of several in turn:

    {"do": "load", "model": FOLDER, "threads": 2}
    {"do": "setup", "layer": 10, "prompts": [[ids], ...], "answers": [[ids], ...]}      pyreft on one batch
    {"do": "step"}
    {"do": "extract", "positive": [text, ...], "negative": [text, ...], "batch_size": 10}       by steering-vectors

Every answer has `peak_rss` in bytes, or `error` in one line. It imports nothing of this project.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

IGNORE = -100
Answer = dict[str, Any]
_state: dict[str, Any] = {}  # the loaded `model` and `tokenizer`, and the `step` that was set up


def right_padded(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad: int = 0) -> dict[str, Tensor]:
    """Prompt and answer in one row each, padded on the right, labels on the answers only: what collators make.

    `position_ids` count from 0 in every row, which is what models assume where they are not given.
    """
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    labels = [[IGNORE] * len(prompt) + list(answer) for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "position_ids": torch.arange(width).expand(len(rows), -1),
        "labels": torch.tensor([label + [IGNORE] * (width - len(label)) for label in labels]),
    }


def main() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    commands: dict[str, Callable[..., Answer]] = {"load": load, "setup": setup, "step": step, "extract": extract}
    for line in sys.stdin:
        try:
            request = json.loads(line)
            answer = commands[request.pop("do")](**request)
        except Exception as err:  # of whatever library: the caller decides what to leave out
            answer = {"error": " ".join(f"{type(err).__name__}: {err}".split())[:300]}
        print(json.dumps(answer | {"peak_rss": peak_rss()}), file=answers, flush=True)


def load(model: str, threads: int = 2) -> Answer:
    """Read the model from a folder in fp32."""
    torch.set_num_threads(threads)
    folder = Path(model)
    options = {"dtype": torch.float32, "use_safetensors": True}
    loader: Any = transformers.AutoModelForCausalLM
    _state.clear()
    _state["model"] = loader.from_pretrained(folder, config=read_config(folder), **options).eval()
    _state["tokenizer"] = read_tokenizer(folder)
    return {}


def read_config(folder: Path) -> Any:
    """The model's config, with what transformers 5 writes of the rotary embedding in the names that 4 reads.

    Transformers 4 passes over `rope_parameters` in silence and takes a base of 10,000, which is another model.
    """
    config: Any = transformers.AutoConfig.from_pretrained(folder)
    rope = json.loads((folder / "config.json").read_text()).get("rope_parameters")
    if rope:
        config.rope_theta = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            config.rope_scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    return config


def read_tokenizer(folder: Path) -> Any:
    """The fast tokenizer from its own file: transformers 4 does not know the class that transformers 5 names."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    special = {name: settings[name] for name in names if name in settings}
    kind: Any = transformers.PreTrainedTokenizerFast
    return kind(tokenizer_file=str(folder / "tokenizer.json"), padding_side="right", **special)


def setup(layer: int, prompts: list[list[int]], answers: list[list[int]]) -> Answer:
    """Make pyreft's training step on one batch, from a vector of zeros; gives the plain model's loss to start from."""
    with contextlib.suppress(OSError):
        reset_peak()
    torch.manual_seed(0)
    model, batch = _state["model"], right_padded(prompts, answers)
    with torch.no_grad():
        plain = model(**batch, use_cache=False).loss.item()
    _state["step"] = pyreft_step(model, layer, prompts, batch)
    return {"loss": plain}


def step() -> Answer:
    """One whole training step: forward, backward, Adam."""
    return {"loss": _state["step"]()}


def pyreft_step(
    model: Any, layer: int, prompts: list[list[int]], batch: dict[str, Tensor], rate: float = 1e-2
) -> Callable[[], float]:
    """pyreft with one additive vector on the block output at the last prompt token.

    None of pyreft's own interventions is a plain bias: `LobireftIntervention` (h + Rᵀb) comes nearest, but makes R
    orthogonal in every forward. So this is one of our own, made as pyreft's documentation shows; it can only be faster.
    The call is that of `ReftTrainer.compute_loss`, without its Trainer (transformers 4.46 added an argument that it
    does not take) and with `use_cache=False`, which spares it a cache that nobody reads.
    """
    pyreft: Any = importlib.import_module("pyreft")
    representation = {
        "layer": layer,
        "component": "block_output",
        "low_rank_dimension": 1,
        "intervention": bias_intervention()(embed_dim=model.config.hidden_size, low_rank_dimension=1),
    }
    reft = pyreft.get_reft_model(model, pyreft.ReftConfig(representations=[representation]))
    optimizer = torch.optim.Adam(reft.get_trainable_parameters(), lr=rate)
    # (interventions, examples, positions). pyreft's own collators do not move locations by the padding, so they are
    # right under padding on the right only.
    places = {"sources->base": (None, [[[len(prompt) - 1] for prompt in prompts]])}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}

    def run() -> float:
        _, output = reft(inputs, unit_locations=places, labels=batch["labels"], use_cache=False)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(output.loss.item())

    return run


def bias_intervention() -> Any:
    """The class h + b, b from zero; built by hand, because its bases are known at run time only."""
    pyvene: Any = importlib.import_module("pyvene")
    names = ("SourcelessIntervention", "TrainableIntervention", "DistributedRepresentationIntervention")

    def init(self: Any, **options: Any) -> None:
        super(kind, self).__init__(**options, keep_last_dim=True)
        self.bias = torch.nn.Parameter(torch.zeros(int(self.embed_dim)))

    def forward(self: Any, base: Tensor, source: None = None, subspaces: None = None) -> Tensor:
        steered: Tensor = base + self.bias
        return steered

    bases = tuple(getattr(pyvene, name) for name in names)
    kind: Any = type("BiasIntervention", bases, {"__init__": init, "forward": forward})
    return kind


def extract(positive: list[str], negative: list[str], batch_size: int = 1) -> Answer:
    """Mean difference at the last token of all layers' outputs by steering-vectors; gives how many layers."""
    library: Any = importlib.import_module("steering_vectors")
    pairs = list(zip(positive, negative, strict=True))
    made = library.train_steering_vector(_state["model"], _state["tokenizer"], pairs, batch_size=batch_size)
    return {"layers": len(made.layer_activations)}


def reset_peak() -> None:
    """Start the count of peak memory anew (OSError where the system cannot)."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(field: str) -> int:
    """Bytes of a field of this process's status: VmRSS, resident now; VmHWM, at its peak (OSError but on Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_rss() -> int:
    """Peak resident memory in bytes since the last `setup` began (since the start where not on Linux).

    Linux hands `ru_maxrss` on from the parent process, which holds a model of its own; VmHWM is this process's.
    """
    try:
        return resident("VmHWM:")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
