"""`laai extract`: the CAST vector of a source task."""

from __future__ import annotations

import sys
from typing import Any

from laai.cli.options import Parsers, add_columns, add_command, add_model_options, add_samples, columns_of, samples_of
from laai.vocabulary import SITES


def add_extract(commands: Parsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "extract", _run, "extract a CAST vector: few-shot minus zero-shot activations of a source task",
        "  laai extract --source antonym --output antonym.safetensors\n"
        "  laai extract --source my_examples.jsonl --samples 20 --shots 8 --site residual --output mine.safetensors\n"
        "  laai extract --source big.jsonl --select cast --samples 100 --devices 4 --output big.safetensors",
    )  # fmt: skip
    parser.add_argument("--source", required=True, help="built-in task, file, folder, or hf:NAME")
    parser.add_argument("--output", required=True, help="the file to write; an interrupted run goes on if repeated")
    parser.add_argument("--site", choices=[*SITES, "both"], default="heads", help="where (default: heads)")
    parser.add_argument("--layers", nargs="+", type=int, help="which layers (default: all)")
    add_samples(parser, "samples")
    add_columns(parser)
    add_model_options(parser)


def _run(options: Any) -> None:
    from cast.extraction import discard, extract
    from laai.files import check_output
    from laai.models import load_model
    from laai.runtime import ignore_chatter, trainer_of
    from laai.tasks import load_task

    ignore_chatter()
    output = check_output(options.output)
    partial = output.with_name(f"{output.name}.partial")
    trainer, chosen = trainer_of(options.devices, options.precision, options.num_nodes), samples_of(options)
    source = load_task(options.source, columns=columns_of(options))
    model = load_model(options.base_model, dtype=options.dtype)
    model.to(trainer.strategy.root_device)  # samples are compared there too
    vector = extract(
        model, source, site=list(SITES) if options.site == "both" else options.site, layers=options.layers,
        trainer=trainer, partial=partial, **chosen,
    )  # fmt: skip
    if trainer.is_global_zero:
        path = vector.save(output)
        if trainer.num_nodes == 1:
            discard(partial)
        sites, layers = " and ".join(vector.sites), f"{vector.layers[0]} to {vector.layers[-1]}"
        sys.stdout.write(f"{len(vector)} vectors at {sites} on layers {layers}: {path}\n")
        if cosines := (vector.provenance.cast or {}).get("steadiness"):
            steady = ", ".join(f"{cosine:.2f} at {site}" for site, cosine in cosines.items())
            sys.stdout.write(f"as many other samples would give a vector of cosine {steady} with it, or so\n")
