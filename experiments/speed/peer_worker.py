"""Other libraries' training step and extraction, served from a Python environment of their own.

They need an older transformers than this project's, so `peers.py` runs this file with that environment's Python. It
answers requests, each the name of a function and its arguments, on a pipe (its number is the command line's one
argument), so that a caller can take steps of several in turn. Every answer has `peak_rss` in bytes, or `error` in one
line. It imports nothing of this project.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import resource
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

IGNORE = -100
Ids = Sequence[Sequence[int]]
Answer = dict[str, Any]
_state: dict[str, Any] = {}  # the loaded `model` and `tokenizer`, and the `step` that was set up


def right_padded(prompts: Ids, answers: Ids) -> dict[str, Tensor]:
    """Prompt and answer in one row each, padded on the right, labels on the answers only: what collators make.

    `position_ids` count from 0 in every row, which is what models assume where they are not given.
    """
    pairs = list(zip(prompts, answers, strict=True))
    rows = [torch.tensor([*prompt, *answer]) for prompt, answer in pairs]
    labels = [torch.tensor([*[IGNORE] * len(prompt), *answer]) for prompt, answer in pairs]
    ids = pad_sequence(rows, batch_first=True)
    return {
        "input_ids": ids,
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        "position_ids": torch.arange(ids.shape[1]).expand(len(rows), -1),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE),
    }


def adam_step(weights: Iterable[Tensor], rate: float, loss_of: Callable[[], Tensor]) -> Callable[[], float]:
    """A training step of any library: forward, backward, Adam; it gives the loss."""
    optimizer = torch.optim.Adam([weight for weight in weights if weight.requires_grad], lr=rate)

    def step() -> float:
        loss = loss_of()
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def main() -> None:
    """Answer requests until the pipe ends."""
    pipe: Connection[Answer, tuple[str, Answer]] = Connection(int(sys.argv[1]))
    commands: dict[str, Callable[..., Answer]] = {"load": load, "setup": setup, "step": step, "extract": extract}
    with contextlib.suppress(EOFError):
        while True:
            name, arguments = pipe.recv()
            try:
                answer = commands[name](**arguments)
            except Exception as err:  # of whatever library: the caller decides what to leave out
                answer = {"error": " ".join(f"{type(err).__name__}: {err}".split())[:300]}
            pipe.send(answer | {"peak_rss": peak_rss()})


def load(model: str, threads: int = 2) -> Answer:
    """Read the model and its tokenizer from a folder that transformers 5 wrote, in fp32."""
    torch.set_num_threads(threads)
    _state.clear()
    library: Any = transformers
    folder = Path(model)
    config = library.AutoConfig.from_pretrained(model)
    # Transformers 4 passes over `rope_parameters` in silence and takes a base of 10,000, which is another model.
    rope = json.loads((folder / "config.json").read_text()).get("rope_parameters")
    if rope:
        config.rope_theta = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            config.rope_scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    options = {"config": config, "dtype": torch.float32, "use_safetensors": True}
    _state["model"] = library.AutoModelForCausalLM.from_pretrained(model, **options).eval()
    # Transformers 4 does not know the class of tokenizer that transformers 5 names; its own file says enough.
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    special = {name: value for name, value in settings.items() if name in names}
    file = str(folder / "tokenizer.json")
    _state["tokenizer"] = library.PreTrainedTokenizerFast(tokenizer_file=file, padding_side="right", **special)
    return {}


def setup(layer: int, prompts: list[list[int]], answers: list[list[int]]) -> Answer:
    """Make pyreft's step: one additive vector, from zero, on the block output at the last prompt token.

    None of pyreft's own interventions is a plain bias: `LobireftIntervention` (h + Rᵀb) comes nearest, but makes R
    orthogonal in every forward. So this is one of our own, made as pyreft's documentation shows; it can only be faster.
    The call is that of `ReftTrainer.compute_loss`, without its Trainer (transformers 4.46 added an argument that it
    does not take) and with `use_cache=False`, which spares it a cache that nobody reads.

    Gives the plain model's loss, which is that of the first step.
    """
    with contextlib.suppress(OSError):
        reset_peak()
    torch.manual_seed(0)
    model, batch = _state["model"], right_padded(prompts, answers)
    with torch.no_grad():
        plain = model(**batch, use_cache=False).loss.item()
    pyreft: Any = importlib.import_module("pyreft")
    bias = bias_intervention()(embed_dim=model.config.hidden_size, low_rank_dimension=1)
    place = {"layer": layer, "component": "block_output", "low_rank_dimension": 1, "intervention": bias}
    reft = pyreft.get_reft_model(model, pyreft.ReftConfig(representations=[place]))
    # (interventions, examples, positions). pyreft's own collators do not move locations by the padding, so they are
    # right under padding on the right only.
    at = {"sources->base": (None, [[[len(prompt) - 1] for prompt in prompts]])}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    run: Any = partial(reft, inputs, unit_locations=at, labels=batch["labels"], use_cache=False)
    _state["step"] = adam_step(reft.get_trainable_parameters(), 1e-2, lambda: run()[1].loss)
    return {"loss": plain}


def bias_intervention() -> Any:
    """The class h + b, b from zero; built by hand, because its bases are known at run time only."""
    pyvene: Any = importlib.import_module("pyvene")

    def init(self: Any, **options: Any) -> None:
        super(kind, self).__init__(**options, keep_last_dim=True)
        self.bias = torch.nn.Parameter(torch.zeros(int(self.embed_dim)))

    def forward(self: Any, base: Tensor, source: None = None, subspaces: None = None) -> Tensor:
        return torch.add(base, self.bias)

    names = ("SourcelessIntervention", "TrainableIntervention", "DistributedRepresentationIntervention")
    bases = tuple(getattr(pyvene, name) for name in names)
    kind: Any = type("BiasIntervention", bases, {"__init__": init, "forward": forward})
    return kind


def step() -> Answer:
    """A training step of what was set up."""
    return {"loss": _state["step"]()}


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
    """Peak resident memory in bytes since the last `setup` began (since the start where not on Linux)."""
    try:
        return resident("VmHWM:")  # Linux hands `ru_maxrss` on from the parent process, which holds a model of its own
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
