"""`laai extract` and `laai transfer`: the commands that this package adds to `laai`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from laai.cli.options import Parsers, add_columns, add_command, add_model_options, columns_of
from laai.vocabulary import KINDS, POSITIONS, SITES, STRATEGIES, STYLES


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
    parser.add_argument("--layers", nargs="+", type=int, help="which layers (default: all)")
    add_trainer_options(parser, "samples")
    add_selection_options(parser)
    add_columns(parser)
    add_model_options(parser)


def add_trainer_options(parser: Any, shared: str) -> None:
    """Options of `trainer_of`. `shared`: what the devices share, in a word."""
    parser.add_argument(
        "--devices", default="1", help=f"devices that share the {shared}: a number, or auto (default: 1)"
    )
    parser.add_argument(
        "--num_nodes",
        type=int,
        default=1,
        help="machines with so many devices each, as torchrun or SLURM starts them; an interrupted run starts anew",
    )
    parser.add_argument("--precision", default="32-true", help="Lightning's precision (default: 32-true)")


def add_selection_options(parser: Any) -> None:
    """Options that say which source samples are read, and how they are shown."""
    parser.add_argument("--samples", type=int, default=50, help="source samples (default: 50)")
    parser.add_argument("--shots", type=int, default=5, help="demonstrations in each few-shot prompt (default: 5)")
    parser.add_argument("--select", choices=STRATEGIES, default="random", help="choice of samples (default: random)")
    parser.add_argument(
        "--encoder", help="sentence encoder by which --select compares samples (default: the model itself)"
    )
    parser.add_argument("--kind", choices=KINDS, default="difference", help="few_shot: without subtracting (ablation)")
    parser.add_argument(
        "--positions", choices=POSITIONS, default="last_prompt", help="tokens that are steered (default: last_prompt)"
    )
    parser.add_argument("--preserve_norm", action="store_true", help="steering will leave each activation's norm")
    parser.add_argument("--batch_size", type=int, default=16, help="samples read at a time (default: 16)")
    parser.add_argument("--shared_shots", action="store_true", help="the same demonstrations for all samples: faster")
    parser.add_argument("--from_selected", action="store_true", help="demonstrations from the chosen samples alone")
    parser.add_argument("--style", choices=STYLES, default="plain", help="prompt style (default: plain)")
    parser.add_argument("--seed", type=int, default=0, help="draws samples and demonstrations (default: 0)")


def selection(options: Any) -> dict[str, Any]:
    """Those options as arguments of `cast.extract`.

    Raises:
        UserError: an encoder that the choice of samples has no use for.
    """
    from cast.extraction import check_encoder

    check_encoder(options.encoder, options.select)
    names = ["samples", "shots", "encoder", "kind", "positions", "preserve_norm", "batch_size"]
    names += ["shared_shots", "from_selected", "style", "seed"]
    return {name: getattr(options, name) for name in names} | {"strategy": options.select}


def _extract(options: Any) -> None:
    from cast.extraction import discard, extract
    from laai.files import check_output
    from laai.models import load_model
    from laai.runtime import ignore_chatter, trainer_of
    from laai.tasks import load_task

    ignore_chatter()
    output = check_output(options.output)
    partial = output.with_name(f"{output.name}.partial")
    trainer, chosen = trainer_of(options.devices, options.precision, options.num_nodes), selection(options)
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
        sites = " and ".join(vector.sites)
        sys.stdout.write(
            f"{len(vector)} vectors at {sites} on layers {vector.layers[0]} to {vector.layers[-1]}: {path}\n"
        )
        steadiness = (vector.provenance.cast or {}).get("steadiness", {})
        steady = [f"{cosine:.2f} at {site}" for site, cosine in steadiness.items()]
        if steady:
            sys.stdout.write(
                f"as many other samples would give a vector of cosine {', '.join(steady)} with it, or so\n"
            )


def add_transfer(commands: Parsers) -> None:
    """Add `laai transfer`."""
    parser = add_command(
        commands, "transfer", _transfer, "steer a task by vectors of other tasks, and measure it beside baselines",
        "  laai transfer --source english-french --columns instruction='Translate to French.' \\\n"
        "      --target english-german --target_columns instruction='Translate to German.'\n"
        "  laai transfer --source big.jsonl --target small.jsonl --select cast --samples 10 --output v.safetensors\n"
        "  laai transfer --source en.jsonl=2 de.jsonl=1 --target fr.jsonl --development 0 --json fr.json\n"
        "  laai transfer --source hf:ORG/NAME --columns input=sentence --target my.csv --target_columns input=text\n\n"
        "Layers and scale are chosen on --development labelled examples of the target, or, with 0, on examples of the\n"
        "source. A vector that is not expected to help is neither applied nor written; --always does both. With\n"
        "--output or --json an interrupted run keeps what it has extracted, and goes on from there if repeated.",
    )  # fmt: skip
    parser.add_argument(
        "--source", required=True, nargs="+", help="tasks whose vectors are combined; NAME=WEIGHT to weigh"
    )
    parser.add_argument("--target", required=True, help="built-in task, file, folder, or hf:NAME")
    parser.add_argument(
        "--development", type=int, default=20, help="labelled target examples to choose on (default: 20)"
    )
    parser.add_argument("--test", type=int, default=100, help="test queries at most (default: 100)")
    parser.add_argument(
        "--site", choices=[*SITES, "both"], default="both", help="where vectors are added (both: where they serve best)"
    )
    parser.add_argument("--centre", nargs="+", default=[], metavar="TASK", help="tasks whose mean vector is taken off")
    parser.add_argument(
        "--always", action="store_true", help="apply and write a vector that is not expected to help too"
    )
    parser.add_argument(
        "--no_label_prior", action="store_true", help="leave the vector's leaning to some labels as it is"
    )
    parser.add_argument("--by_layer", action="store_true", help="choose a scale for each sixth of the layers: slower")
    parser.add_argument("--output", help="write the chosen vector to this file")
    parser.add_argument("--json", help="write the choice and the rows to this file")
    add_trainer_options(parser, "samples and test queries")
    add_selection_options(parser)
    add_columns(parser, of="of all tasks that are not built in, and an instruction of all tasks: ")
    add_columns(parser, "target_columns", "of the target alone, instead of --columns: ")
    add_model_options(parser)


def _transfer(options: Any) -> None:
    from cast.transfers import against, discard_all, read_from, refusal, said_of, transfer, weighted
    from laai.cli.options import load_with
    from laai.errors import UserError
    from laai.evaluation import print_table
    from laai.files import check_output, write_json
    from laai.models import load_model
    from laai.runtime import ignore_chatter, trainer_of
    from laai.tasks import load_task

    ignore_chatter()
    if options.test < 1:
        raise UserError(f"expected --test as at least 1, found {options.test}: the vector is measured on these queries")
    output = check_output(options.output) if options.output else None
    table = check_output(options.json, "--json") if options.json else None
    if output and output == table:
        raise UserError(f"expected --output and --json as two files, found {output} twice: name another")
    written = output or table
    partial = written.with_name(f"{written.name}.partial") if written else None
    trainer, chosen = trainer_of(options.devices, options.precision, options.num_nodes), selection(options)
    columns, own = columns_of(options), columns_of(options, "target_columns")
    named = sources_of(options.source)
    load = load_with(columns, [*named, *options.centre, *([] if own else [options.target])])
    sources = dict(weighted(named, load))
    target = load_task(options.target, columns=own) if own else load(options.target)
    labelled = target.examples[0].choices and len({example.choices for example in target.examples}) == 1
    centre = [task for task, _ in weighted(options.centre, load)] if options.centre else []
    model = load_model(options.base_model, dtype=options.dtype)
    model.to(trainer.strategy.root_device)  # the place is chosen there too, not only tested
    found = transfer(
        model, sources, target, development=options.development, test=options.test, refuse=not options.always,
        site=SITES if options.site == "both" else options.site, centre=centre, trainer=trainer, partial=partial,
        calibrate=not options.no_label_prior, by_layer=options.by_layer, **chosen,
    )  # fmt: skip
    if not trainer.is_global_zero:
        return
    print_table(found.scores, f"{' + '.join(options.source)} -> {options.target}: {read_from(found.vector.provenance)}")
    lines = [*against(found.evaluations), said_of(found.choice, found.chosen_on)]
    sys.stdout.write("\n".join(lines) + "\n")
    if found.few_shot and found.few_shot < options.shots:
        sys.stdout.write(f"few-shot: {found.few_shot} examples, {options.shots} do not fit\n")
    if found.shown:
        sys.stdout.write(f"cross-task few-shot: {len(found.shown.examples)} examples of {found.shown.task.name}\n")
    if (prior := found.vector.provenance.label_prior) and not found.refused:
        sys.stdout.write(f"label prior: {', '.join(f'{label} {shift:+.2f}' for label, shift in prior.items())} nats\n")
    could = labelled and not (options.no_label_prior or options.preserve_norm) and options.positions == "last_prompt"
    if could and not options.development:
        sys.stdout.write("label prior: none; one needs --development examples of the target\n")
    if found.refused and (line := refusal(found.choice, output is not None)):
        sys.stdout.write(line + "\n")
    if output and not found.refused:
        sys.stdout.write(f"vector: {found.vector.save(output)}\n")
    if table:
        write_json(table, {"source": options.source, "target": options.target} | found.as_json())
    if partial and trainer.num_nodes == 1:
        discard_all(partial)


def sources_of(names: Sequence[str]) -> dict[str, float]:
    """Weights by name, of `NAME` or `NAME=WEIGHT` each.

    Raises:
        UserError: a weight that is no number, or a name that is given twice.
    """
    from laai.errors import UserError

    found: dict[str, float] = {}
    for task, weight in map(weighed, names):
        if task in found:
            raise UserError(f"expected each source once, found {task!r} twice: give it once, perhaps as NAME=WEIGHT")
        found[task] = weight
    return found


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
