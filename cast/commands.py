"""`laai extract` and `laai transfer`: the commands that this package adds to `laai`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from cast.words import KINDS, STRATEGIES
from laai.cli import Parsers, add_columns, add_command, add_model_options, columns_of
from laai.words import POSITIONS, SITES, STYLES

if TYPE_CHECKING:
    from cast.choice import Choice


def add_extract(commands: Parsers) -> None:
    """Add `laai extract`."""
    parser = add_command(
        commands, "extract", _extract, "extract a CAST vector: few-shot minus zero-shot activations of a source task",
        "  laai extract --source antonym --output antonym.safetensors\n"
        "  laai extract --source my_examples.jsonl --samples 20 --shots 8 --site residual --output mine.safetensors\n"
        "  laai extract --source big.jsonl --select cast --samples 100 --devices 4 --output big.safetensors",
    )  # fmt: skip
    parser.add_argument("--source", required=True, help="built-in task, file, folder, or hf:NAME")
    parser.add_argument("--output", required=True, help="the file to write; an interrupted run goes on if repeated")
    parser.add_argument("--site", choices=[*SITES, "both"], default="heads", help="where (default: heads)")
    parser.add_argument("--positions", choices=POSITIONS, default="last_prompt", help="where it will be added")
    parser.add_argument("--kind", choices=KINDS, default="difference", help="few_shot: without subtracting (ablation)")
    parser.add_argument("--preserve_norm", action="store_true", help="steering will leave each activation's norm")
    parser.add_argument("--devices", default="1", help="devices that share the samples: a number, or auto (default: 1)")
    parser.add_argument("--precision", default="32-true", help="Lightning's precision (default: 32-true)")
    add_selection_options(parser)
    add_columns(parser)
    add_model_options(parser)


def add_selection_options(parser: Any) -> None:
    """Options that say which source samples are read, and how they are shown."""
    parser.add_argument("--samples", type=int, default=50, help="source samples (default: 50)")
    parser.add_argument("--shots", type=int, default=5, help="demonstrations in each few-shot prompt (default: 5)")
    parser.add_argument("--select", choices=STRATEGIES, default="random", help="choice of samples (default: random)")
    parser.add_argument("--encoder", help="sentence encoder to compare samples by (default: the model itself)")
    parser.add_argument("--shared_shots", action="store_true", help="the same demonstrations for all samples: faster")
    parser.add_argument("--from_selected", action="store_true", help="demonstrations from the chosen samples alone")
    parser.add_argument("--style", choices=STYLES, default="plain", help="prompt style (default: plain)")
    parser.add_argument("--seed", type=int, default=0, help="draws samples and demonstrations (default: 0)")


def selection(options: Any) -> dict[str, Any]:
    """Those options as arguments of `cast.extract`."""
    names = ("samples", "shots", "encoder", "shared_shots", "from_selected", "style", "seed")
    return {name: getattr(options, name) for name in names} | {"strategy": options.select}


def _extract(options: Any) -> None:
    from pathlib import Path

    import lightning.pytorch as pl

    from cast.extraction import extract
    from laai.errors import UserError
    from laai.models import load_model
    from laai.noise import ignore_noise
    from laai.tasks import load_task

    source, output = load_task(options.source, columns=columns_of(options)), Path(options.output)
    model = load_model(options.base_model, dtype=options.dtype)
    ignore_noise()
    if options.devices != "auto" and not options.devices.isdecimal():
        raise UserError(f"expected --devices as a number or auto, found {options.devices!r}")
    trainer = pl.Trainer(
        devices=options.devices, precision=options.precision, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    vector = extract(
        model, source, site=list(SITES) if options.site == "both" else options.site, positions=options.positions,
        kind=options.kind, preserve_norm=options.preserve_norm, trainer=trainer,
        partial=output.with_name(f"{output.name}.partial"), **selection(options),
    )  # fmt: skip
    if trainer.is_global_zero:
        path = vector.save(output)
        sites = " and ".join(vector.sites)
        sys.stdout.write(
            f"{len(vector)} vectors at {sites} on layers {vector.layers[0]} to {vector.layers[-1]}: {path}\n"
        )


def add_transfer(commands: Parsers) -> None:
    """Add `laai transfer`."""
    parser = add_command(
        commands, "transfer", _transfer, "steer a task by vectors of other tasks, and measure it beside baselines",
        "  laai transfer --source antonym --target synonym\n"
        "  laai transfer --source big.jsonl --target small.jsonl --select cast --samples 10 --output v.safetensors\n"
        "  laai transfer --source en.jsonl=2 de.jsonl=1 --target fr.jsonl --development 0 --json fr.json\n\n"
        "Layers and scale are chosen on --development labelled examples of the target, or, with 0, on examples of the\n"
        "source. A vector that is not expected to help is not applied; --always applies it.",
    )  # fmt: skip
    parser.add_argument(
        "--source", required=True, nargs="+", help="tasks whose vectors are combined; NAME=WEIGHT to weigh"
    )
    parser.add_argument("--target", required=True, help="built-in task, file, folder, or hf:NAME")
    parser.add_argument(
        "--development", type=int, default=20, help="labelled target examples to choose on (default: 20)"
    )
    parser.add_argument("--test", type=int, default=100, help="test queries at most (default: 100)")
    parser.add_argument("--site", choices=SITES, default="heads", help="where vectors are added (default: heads)")
    parser.add_argument("--centre", nargs="+", default=[], metavar="TASK", help="tasks whose mean vector is taken off")
    parser.add_argument("--always", action="store_true", help="apply the vector even if it is not expected to help")
    parser.add_argument(
        "--no_label_prior", action="store_true", help="leave the vector's leaning to some labels as it is"
    )
    parser.add_argument("--output", help="write the chosen vector to this file")
    parser.add_argument("--json", help="write the choice and the rows to this file")
    add_selection_options(parser)
    add_model_options(parser)


def _transfer(options: Any) -> None:
    from pathlib import Path

    from cast.cross_task import transfer
    from laai.files import write_json
    from laai.models import load_model
    from laai.noise import ignore_noise
    from laai.report import print_table

    model = load_model(options.base_model, dtype=options.dtype)
    ignore_noise()
    found = transfer(
        model, dict(weighed(name) for name in options.source), options.target, development=options.development,
        test=options.test, refuse=not options.always, site=options.site, centre=options.centre,
        calibrate=not options.no_label_prior, **selection(options),
    )  # fmt: skip
    print_table(found.scores, f"{' + '.join(options.source)} -> {options.target}: {options.samples} source samples")
    sys.stdout.write(said_of(found.choice, found.chosen_on) + "\n")
    if prior := found.vector.metadata.get("label_prior"):
        sys.stdout.write(f"label prior: {', '.join(f'{label} {shift:+.2f}' for label, shift in prior.items())} nats\n")
    if found.refused and found.choice.scale:
        sys.stdout.write("not applied: on those examples the vector did not help enough (--always applies it)\n")
    if options.output:
        sys.stdout.write(f"vector: {found.vector.save(options.output)}\n")
    if options.json:
        write_json(Path(options.json), {"source": options.source, "target": options.target} | found.as_json())


def said_of(choice: Choice, chosen_on: str) -> str:
    """One line: where a vector goes and what it did to the examples that it was chosen on, or that it goes nowhere."""
    examples = f"{choice.examples} examples of the {chosen_on}"
    if not choice.scale:
        return f"no vector: at every place and scale right answers got no likelier, or lost to others, on {examples}"
    layers = f"layers {choice.layers[0]} to {choice.layers[-1]}"
    if len(choice.layers) == 1:
        layers = f"layer {choice.layers[0]}"
    interval = f"{choice.gain:+.3f}, {choice.gain_low:+.3f} to {choice.gain_high:+.3f}"
    among = "" if choice.choice_gain is None else f"; among the options {choice.choice_gain:+.3f}"
    return (
        f"{layers} at scale {choice.scale:g}, chosen on {examples} (probability of the right answer {interval}{among})"
    )


def weighed(name: str) -> tuple[str, float]:
    """`NAME` or `NAME=WEIGHT`."""
    from laai.errors import UserError

    task, _, weight = name.rpartition("=")
    if not task:
        return name, 1.0
    try:
        return task, float(weight)
    except ValueError:
        raise UserError(f"expected a source as NAME or NAME=WEIGHT, found {name!r}") from None
