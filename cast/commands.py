"""`laai extract`: the command that this package adds to `laai`."""

from __future__ import annotations

import sys
from typing import Any

from laai.cli import Parsers, add_command, add_model_options
from laai.words import POSITIONS, SITES, STYLES


def add_extract(commands: Parsers) -> None:
    """Add `laai extract`."""
    parser = add_command(
        commands, "extract", _extract, "extract a CAST vector: few-shot minus zero-shot activations of a source task",
        "  laai extract --source antonym --output antonym.safetensors\n"
        "  laai extract --source my_examples.jsonl --samples 20 --shots 8 --site residual --output mine.safetensors",
    )  # fmt: skip
    parser.add_argument("--source", required=True, help="built-in task, file, folder, or hf:NAME")
    parser.add_argument("--output", required=True, help="the file to write")
    parser.add_argument("--samples", type=int, default=50, help="source samples (default: 50)")
    parser.add_argument("--shots", type=int, default=5, help="demonstrations in each few-shot prompt (default: 5)")
    parser.add_argument("--shared_shots", action="store_true", help="the same demonstrations for all samples: faster")
    parser.add_argument("--site", choices=SITES, default="heads", help="where (default: heads)")
    parser.add_argument("--positions", choices=POSITIONS, default="last_prompt", help="where it will be added")
    parser.add_argument("--style", choices=STYLES, default="plain", help="prompt style (default: plain)")
    parser.add_argument("--seed", type=int, default=0, help="draws samples and demonstrations (default: 0)")
    add_model_options(parser)


def _extract(options: Any) -> None:
    from cast.extraction import extract
    from laai.models import load_model
    from laai.tasks import load_task

    source = load_task(options.source)
    model = load_model(options.base_model, dtype=options.dtype)
    vector = extract(
        model, source, samples=options.samples, shots=options.shots, site=options.site, positions=options.positions,
        style=options.style, shared_shots=options.shared_shots, seed=options.seed,
    )  # fmt: skip
    path = vector.save(options.output)
    sys.stdout.write(
        f"{len(vector)} vectors at {options.site} on layers {vector.layers[0]} to {vector.layers[-1]}: {path}\n"
    )
