"""Other libraries' training step and extraction, served from a Python environment of their own.

They need an older transformers than this project's, so `bench_peers.py` runs this file with that environment's Python.
It answers JSON requests, one line each on stdin and stdout, so that a caller can take steps of several in turn:

    {"do": "load", "model": FOLDER, "threads": 2}
    {"do": "setup", "kind": "pyreft", "layer": 10, "prompts": [[ids], ...], "answers": [[ids], ...], "rate": 0.01}
    {"do": "step"}
    {"do": "extract", "positive": [text, ...], "negative": [text, ...], "batch_size": 10, "layer": 10}

Every answer has `seconds` (of the work alone) and `peak_rss` in bytes, or `error` in one line. It imports nothing of
this project.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time
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
    begin = time.perf_counter()
    folder = Path(model)
    loader: Any = transformers.AutoModelForCausalLM
    _state.clear()
    _state["model"] = loader.from_pretrained(
        folder, config=read_config(folder), dtype=torch.float32, use_safetensors=True
    ).eval()
    _state["tokenizer"] = read_tokenizer(folder)
    names = ("torch", "transformers", "pyreft", "pyvene", "steering-vectors")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"seconds": time.perf_counter() - begin, "threads": torch.get_num_threads(), "versions": versions}


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
    special = {
        name: settings[name] for name in ("bos_token", "eos_token", "pad_token", "unk_token") if name in settings
    }
    kind: Any = transformers.PreTrainedTokenizerFast
    return kind(tokenizer_file=str(folder / "tokenizer.json"), padding_side="right", **special)


def setup(
    kind: str, layer: int, prompts: list[list[int]], answers: list[list[int]], rate: float = 1e-2, seed: int = 0
) -> Answer:
    """Make the training step of one library on one batch, from a vector of zeros; also gives the plain model's loss."""
    begin = time.perf_counter()
    reset_peak()
    torch.manual_seed(seed)
    kinds: dict[str, Callable[..., Callable[[], Answer]]] = {"pyreft": pyreft_step}
    model, batch = _state["model"], right_padded(prompts, answers)
    with torch.no_grad():
        plain = model(**batch, use_cache=False).loss.item()
    _state["step"] = kinds[kind](model, layer, prompts, batch, rate)
    return {"seconds": time.perf_counter() - begin, "plain_loss": plain, "width": batch["input_ids"].shape[1]}


def step() -> Answer:
    """One whole training step: forward, backward, Adam."""
    begin = time.perf_counter()
    answer: Answer = _state["step"]()
    return {"seconds": time.perf_counter() - begin} | answer


def pyreft_step(
    model: Any, layer: int, prompts: list[list[int]], batch: dict[str, Tensor], rate: float
) -> Callable[[], Answer]:
    """pyreft with one additive vector on the block output at the last prompt token.

    None of pyreft's own interventions is a plain bias: `LobireftIntervention` (h + Rᵀb) comes nearest, but makes R
    orthogonal in every forward. So this is one of our own, made as pyreft's documentation shows; it can only be faster.
    The call is that of `ReftTrainer.compute_loss`, without its Trainer (transformers 4.46 added an argument that it
    does not take) and with `use_cache=False`, which spares it a cache that nobody reads.
    """
    pyreft: Any = importlib.import_module("pyreft")
    width = model.config.hidden_size
    representation = {
        "layer": layer,
        "component": "block_output",
        "low_rank_dimension": 1,
        "intervention": bias_intervention()(embed_dim=width, low_rank_dimension=1),
    }
    reft = pyreft.get_reft_model(model, pyreft.ReftConfig(representations=[representation]))
    [vector] = reft.get_trainable_parameters()
    optimizer = torch.optim.Adam([vector], lr=rate)
    # (examples, interventions, positions), as pyreft's datasets make them. Its collators do not move locations by the
    # padding, so they are right under padding on the right only.
    locations = torch.tensor([[[len(prompt) - 1]] for prompt in prompts])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}

    def run() -> Answer:
        places = {"sources->base": (None, locations.permute(1, 0, 2).tolist())}
        _, output = reft(inputs, unit_locations=places, labels=batch["labels"], use_cache=False)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": output.loss.item(), "norm": vector.norm().item()}

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

    kind: Any = type(
        "BiasIntervention", tuple(getattr(pyvene, n) for n in names), {"__init__": init, "forward": forward}
    )
    return kind


def extract(positive: list[str], negative: list[str], batch_size: int = 1, layer: int = 10) -> Answer:
    """Mean difference at the last token of all layers' outputs by steering-vectors; answers one layer's vector.

    `tokens` is how many tokens the positive and the negative texts have, special tokens included, without padding.
    """
    library: Any = importlib.import_module("steering_vectors")
    tokenizer = _state["tokenizer"]
    tokens = [sum(map(len, tokenizer(texts)["input_ids"])) for texts in (positive, negative)]
    reset_peak()
    begin = time.perf_counter()
    pairs = list(zip(positive, negative, strict=True))
    vectors = library.train_steering_vector(_state["model"], tokenizer, pairs, batch_size=batch_size)
    seconds = time.perf_counter() - begin
    chosen = vectors.layer_activations
    found = chosen[layer]
    made = {"layers": len(chosen), "norm": found.norm().item(), "vector": found.tolist()}
    return {"seconds": seconds, "tokens": tokens} | made


def reset_peak() -> None:
    """Start the count of `peak_rss` anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_rss() -> int:
    """Peak resident memory in bytes since the last `setup` or `extract` began (since the start where not on Linux).

    Linux hands `ru_maxrss` on from the parent process, which holds a model of its own; VmHWM is this process's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
