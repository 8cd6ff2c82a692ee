"""What the commands' parsers share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from laai.errors import UserError
from laai.vocabulary import KINDS, POSITIONS, STRATEGIES, STYLES

Parsers = Any  # argparse's own class for this has a private name


def add_command(commands: Parsers, name: str, run: Callable[[Any], None], help: str, examples: str) -> Any:
    """Add a command whose help ends in examples; returns its parser."""
    parser = commands.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=run)
    return parser


def add_model_options(parser: Any, default: str | None = "default") -> None:
    """Options that say which model runs, and how."""
    add = parser.add_argument
    origin = "the one the file was made for" if default is None else default
    add("--base_model", default=default, help=f"default, hub id, folder or GGUF file (default: {origin})")
    add("--dtype", default="float32", help="float32, bfloat16, float16 or auto (default: float32)")


def add_columns(parser: Any, option: str = "columns", of: str = "") -> None:
    """How a file or hub data set names what we call input, output, choices, label, split and test_split.

    And `instruction`, a text, for any task. `of`: for the help, which data the option is about.
    """
    said = f"{of}say, input=text output=answer split=validation; instruction='…' is what prompts begin with"
    parser.add_argument(f"--{option}", nargs="+", default=[], metavar="FIELD=COLUMN", help=said)


def columns_of(options: Any, option: str = "columns") -> dict[str, str]:
    """Those of an option, as `load_task` takes them."""
    pairs = [pair.partition("=") for pair in getattr(options, option)]
    if bad := next(("".join(pair) for pair in pairs if not all(pair)), None):
        raise UserError(f"expected --{option} as FIELD=COLUMN, such as input=text, found {bad!r}")
    return {field: column for field, _, column in pairs}


def add_samples(parser: Any, shared: str) -> None:
    """Options of `trainer_of`, whose devices share what is named, which samples are read, and how they are shown."""
    add = parser.add_argument
    machines = "machines with so many devices each, as torchrun or SLURM starts them; an interrupted run starts anew"
    add("--devices", default="1", help=f"devices that share the {shared}: a number, or auto (default: 1)")
    add("--num_nodes", type=int, default=1, help=machines)
    add("--precision", default="32-true", help="Lightning's precision (default: 32-true)")
    add("--samples", type=int, default=50, help="source samples (default: 50)")
    add("--shots", type=int, default=5, help="demonstrations in each few-shot prompt (default: 5)")
    add("--select", choices=STRATEGIES, default="random", help="choice of samples (default: random)")
    add("--encoder", help="sentence encoder by which --select compares samples (default: the model itself)")
    add("--kind", choices=KINDS, default="difference", help="few_shot: without subtracting (ablation)")
    add("--positions", choices=POSITIONS, default="last_prompt", help="tokens that are steered (default: last_prompt)")
    add("--preserve_norm", action="store_true", help="steering will leave each activation's norm")
    add("--batch_size", type=int, default=16, help="samples read at a time (default: 16)")
    add("--shared_shots", action="store_true", help="the same demonstrations for all samples: faster")
    add("--from_selected", action="store_true", help="demonstrations from the chosen samples alone")
    add("--style", choices=STYLES, default="plain", help="prompt style (default: plain)")
    add("--seed", type=int, default=0, help="draws samples and demonstrations (default: 0)")


def samples_of(options: Any) -> dict[str, Any]:
    """Those options as arguments of `cast.extract`.

    Raises:
        UserError: an encoder that the choice of samples has no use for.
    """
    from cast.extraction import check_encoder

    check_encoder(options.encoder, options.select)
    names = ["samples", "shots", "encoder", "kind", "positions", "preserve_norm", "batch_size"]
    names += ["shared_shots", "from_selected", "style", "seed"]
    return {name: getattr(options, name) for name in names} | {"strategy": options.select}


def read_vectors(options: Any) -> Any:
    """What steers; settles the prompt style that is not given: the one in its training, or its extraction."""
    from laai.steering import load

    intervention = load(options.intervention)
    options.style = options.style or intervention.provenance.prompt_style or "plain"
    return intervention


def load_both(options: Any, intervention: Any) -> tuple[Any, Any]:
    """The model and the intervention, at the wanted scale, checked against each other."""
    from laai.models import load_model
    from laai.steering import check_fits

    model = load_model(options.base_model or intervention.provenance.base_model or "default", dtype=options.dtype)
    check_fits(intervention, model, options.intervention)
    return model, options.scale * intervention
