"""`laai transfer`: a task steered by vectors of other tasks, and measured beside baselines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laai.cli.options import Parsers, add_columns, add_command, add_model_options, add_samples, columns_of, samples_of
from laai.errors import UserError
from laai.vocabulary import SITES

if TYPE_CHECKING:
    from cast.transfers import Transfer
    from laai.tasks import Task


def add_transfer(commands: Parsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "transfer", _run, "steer a task by vectors of other tasks, and measure it beside baselines",
        "  laai transfer --source english-french --columns instruction='Translate to French.' \\\n"
        "      --target english-german --target_columns instruction='Translate to German.'\n"
        "  laai transfer --source big.jsonl --target small.jsonl --select cast --samples 10 --output v.safetensors\n"
        "  laai transfer --source en.jsonl=2 de.jsonl=1 --target fr.jsonl --development 0 --json fr.json\n"
        "  laai transfer --source hf:ORG/NAME --columns input=sentence --target my.csv --target_columns input=text\n\n"
        "Layers and scale are chosen on --development labelled examples of the target, or, with 0, on examples of the\n"
        "source. A vector that is not expected to help is neither applied nor written; --always does both. With\n"
        "--output or --json an interrupted run keeps what it has extracted, and goes on from there if repeated.",
    )  # fmt: skip
    add = parser.add_argument
    add("--source", required=True, nargs="+", help="tasks whose vectors are combined; NAME=WEIGHT to weigh")
    add("--target", required=True, help="built-in task, file, folder, or hf:NAME")
    add("--development", type=int, default=20, help="labelled target examples to choose on (default: 20)")
    add("--test", type=int, default=100, help="test queries at most (default: 100)")
    add(
        "--site", choices=[*SITES, "both"], default="both", help="where vectors are added (both: where they serve best)"
    )
    add("--centre", nargs="+", default=[], metavar="TASK", help="tasks whose mean vector is taken off")
    add("--always", action="store_true", help="apply and write a vector that is not expected to help too")
    add("--no_label_prior", action="store_true", help="leave the vector's leaning to some labels as it is")
    add("--by_layer", action="store_true", help="choose a scale for each sixth of the layers: slower")
    add("--output", help="write the chosen vector to this file")
    add("--json", help="write the choice and the rows to this file")
    add_samples(parser, "samples and test queries")
    add_columns(parser, of="of all tasks that are not built in, and an instruction of all tasks: ")
    add_columns(parser, "target_columns", "of the target alone, instead of --columns: ")
    add_model_options(parser)


def _run(options: Any) -> None:
    from cast.transfers import discard_all, transfer
    from laai.files import write_json
    from laai.models import load_model
    from laai.runtime import ignore_chatter, trainer_of

    ignore_chatter()
    if options.test < 1:
        raise UserError(f"expected --test as at least 1, found {options.test}: the vector is measured on these queries")
    output, table = _files(options)
    written = output or table
    partial = written.with_name(f"{written.name}.partial") if written else None
    trainer, chosen = trainer_of(options.devices, options.precision, options.num_nodes), samples_of(options)
    sources, target, centre = _tasks(options)
    model = load_model(options.base_model, dtype=options.dtype)
    model.to(trainer.strategy.root_device)  # the placement is chosen there too, not only tested
    found = transfer(
        model, sources, target, development=options.development, test=options.test, refuse=not options.always,
        site=SITES if options.site == "both" else options.site, centre=centre, trainer=trainer, partial=partial,
        calibrate=not options.no_label_prior, by_layer=options.by_layer, **chosen,
    )  # fmt: skip
    if not trainer.is_global_zero:
        return
    _print(found, options, target)
    if output and not found.refused:
        sys.stdout.write(f"vector: {found.vector.save(output)}\n")
    if table:
        write_json(table, {"source": options.source, "target": options.target} | found.as_json())
    if partial and trainer.num_nodes == 1:
        discard_all(partial)


def _files(options: Any) -> tuple[Path | None, Path | None]:
    """Where the vector and the rows are to be written, if they are."""
    from laai.files import check_output

    output = check_output(options.output) if options.output else None
    table = check_output(options.json, "--json") if options.json else None
    if output and output == table:
        raise UserError(f"expected --output and --json as two files, found {output} twice: name another")
    return output, table


def _tasks(options: Any) -> tuple[dict[Task, float], Task, list[Task]]:
    """Sources with their weights, the target, and the tasks whose mean vector is taken off."""
    from cast.transfers import weighted
    from laai.tasks import load_task

    columns, own, named = columns_of(options), columns_of(options, "target_columns"), sources_of(options.source)
    load = load_with(columns, [*named, *options.centre, *([] if own else [options.target])])
    sources = dict(weighted(named, load))
    target = load_task(options.target, columns=own) if own else load(options.target)
    return sources, target, [task for task, _ in weighted(options.centre, load)] if options.centre else []


def _print(found: Transfer, options: Any, target: Task) -> None:
    """The table, and what is to be said of it."""
    from cast.transfers import against, read_from, refusal, said_of
    from laai.evaluation import print_table

    print_table(found.scores, f"{' + '.join(options.source)} -> {options.target}: {read_from(found.vector.provenance)}")
    lines = [*against(found.evaluations), said_of(found.choice, found.chosen_on)]
    if found.few_shot and found.few_shot < options.shots:
        lines.append(f"few-shot: {found.few_shot} examples, {options.shots} do not fit")
    if found.shown:
        lines.append(f"cross-task few-shot: {len(found.shown.examples)} examples of {found.shown.task.name}")
    if (prior := found.vector.provenance.label_prior) and not found.refused:
        lines.append(f"label prior: {', '.join(f'{label} {shift:+.2f}' for label, shift in prior.items())} nats")
    labelled = target.examples[0].choices and len({example.choices for example in target.examples}) == 1
    could = labelled and not (options.no_label_prior or options.preserve_norm) and options.positions == "last_prompt"
    if could and not options.development:
        lines.append("label prior: none; one needs --development examples of the target")
    if found.refused and (line := refusal(found.choice, options.output is not None)):
        lines.append(line)
    sys.stdout.write("\n".join(lines) + "\n")


def load_with(columns: Mapping[str, str], names: Sequence[str]) -> Callable[[str], Task]:
    """A function that reads tasks by name: those that are not built in by their columns, and all with an instruction.

    Raises:
        UserError: columns, and no task that takes them.
    """
    from laai.tasks import builtin_tasks, load_task

    said = {field: text for field, text in columns.items() if field == "instruction"}
    if columns.keys() - said.keys() and all(name in builtin_tasks() for name in names):
        raise UserError("expected --columns with a file, folder or hf:NAME, found built-in tasks alone: leave it out")
    return lambda name: load_task(name, columns=said if name in builtin_tasks() else columns)


def sources_of(names: Sequence[str]) -> dict[str, float]:
    """Weights by name, of `NAME` or `NAME=WEIGHT` each.

    Raises:
        UserError: a weight that is no number, or a name that is given twice.
    """
    found: dict[str, float] = {}
    for task, weight in map(weighed, names):
        if task in found:
            raise UserError(f"expected each source once, found {task!r} twice: give it once, perhaps as NAME=WEIGHT")
        found[task] = weight
    return found


def weighed(name: str) -> tuple[str, float]:
    """`NAME` or `NAME=WEIGHT`."""
    task, _, weight = name.rpartition("=")
    if not task:
        return name, 1.0
    try:
        return task, float(weight)
    except ValueError:
        raise UserError(f"expected a source as NAME or NAME=WEIGHT, found {name!r}") from None
