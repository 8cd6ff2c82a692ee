"""The `laai` command: look at tasks, try an intervention, measure it. Learning is `python train.py`.

Each command imports what it needs when it runs, so that `--help` answers at once. Packages add commands by the entry
point group `laai.commands`.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from laai.cli.cast_commands import add_extract, add_transfer
from laai.cli.options import Parsers, add_columns, add_command, add_model_options, columns_of
from laai.errors import UserError, between_processes
from laai.vocabulary import STYLES

OVERVIEW = """\
Teach a frozen language model a task with a few kilobytes of vectors.

  laai tasks                          what there is to learn
  laai extract --source antonym --output antonym.safetensors
  laai generate --intervention antonym.safetensors --task antonym "hot"
  laai evaluate --intervention antonym.safetensors --task antonym

To learn vectors from ten examples: python train.py --data.task antonym
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser("laai", description=OVERVIEW, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (add_tasks, add_extract, add_transfer, add_generate, add_evaluate):
        add(commands)
    options = parser.parse_args(arguments)
    warnings.showwarning = _show_warning
    try:
        options.run(options)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except RuntimeError as error:
        if (said := between_processes(error)) is None:
            raise
        sys.stderr.write(f"error: {said}\n")
        sys.exit(3)
    except (KeyboardInterrupt, SystemExit) as end:  # Lightning makes the one the other, with code 1, in its loops
        if not isinstance(end, KeyboardInterrupt) and not isinstance(end.__context__, KeyboardInterrupt):
            raise
        sys.stderr.write("\ninterrupted\n")
        sys.exit(130)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning in one line, without the place in our code that it came from."""
    sys.stderr.write(f"warning: {message}\n")


def add_tasks(commands: Parsers) -> None:
    """`laai tasks`."""
    parser = add_command(
        commands, "tasks", _tasks, "list the built-in tasks, or show one",
        "  laai tasks\n  laai tasks antonym\n  laai tasks my_examples.jsonl     checks a file of your own",
    )  # fmt: skip
    parser.add_argument("task", nargs="?", help="a task to show: built-in name, file or folder")


def add_generate(commands: Parsers) -> None:
    """`laai generate`."""
    parser = add_command(
        commands, "generate", _generate, "continue a prompt with and without an intervention, greedily",
        '  laai generate --intervention antonym.safetensors --task antonym "hot"\n'
        '  laai generate --intervention antonym.safetensors --scale 0.5 "Q: hot\\nA:"',
    )  # fmt: skip
    parser.add_argument("prompt", help=r"the prompt (\n is a new line), or with --task the input alone")
    parser.add_argument("--intervention", required=True, help="a file that train.py, laai extract or save() wrote")
    parser.add_argument("--task", help="write the prompt as this task's queries are written")
    parser.add_argument("--style", choices=STYLES, help="prompt style (default: the one the file was made with)")
    parser.add_argument("--scale", type=float, default=1.0, help="strength (default: 1)")
    parser.add_argument("--max_new_tokens", type=int, default=20, help="length of the continuation (default: 20)")
    add_columns(parser)
    add_model_options(parser, default=None)


def add_evaluate(commands: Parsers) -> None:
    """`laai evaluate`."""
    parser = add_command(
        commands, "evaluate", _evaluate, "measure an intervention on a task beside zero-shot and few-shot prompting",
        "  laai evaluate --intervention antonym.safetensors --task antonym\n"
        "  laai evaluate --intervention antonym.safetensors --task my_examples.jsonl --shots 5 --test 200",
    )  # fmt: skip
    parser.add_argument("--intervention", required=True, help="a file that train.py, laai extract or save() wrote")
    parser.add_argument("--task", required=True, help="built-in name, file, folder, or hf:NAME")
    parser.add_argument("--scale", type=float, default=1.0, help="strength (default: 1)")
    parser.add_argument("--shots", type=int, default=0, help="also test prompts with this many demonstrations")
    parser.add_argument("--test", type=int, default=100, help="test queries at most (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="draws demonstrations and queries (default: 0)")
    parser.add_argument("--style", choices=STYLES, help="prompt style (default: the one the file was made with)")
    parser.add_argument("--json", help="write the rows to this file too")
    add_columns(parser)
    add_model_options(parser, default=None)


def _tasks(options: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from laai.tasks import builtin_tasks, load_task

    console = Console()
    if options.task:
        task = load_task(options.task)
        console.print(f"{task.name}: {len(task.examples)} examples. {task.source} {task.licence}".strip(), markup=False)
        for example in task.examples[:10]:
            choices = f"   ({' | '.join(example.choices)})" if example.choices else ""
            console.print(f"  {example.input} -> {example.output}{choices}", markup=False, highlight=False)
        return
    table = Table("task", "examples", "an example", box=None)
    for name in builtin_tasks():
        task = load_task(name)
        some = task.examples[len(task.examples) // 2]
        table.add_row(name, str(len(task.examples)), f"{some.input} -> {some.output}")
    console.print(table)
    console.print("\nlaai tasks NAME shows more of one, with its source and licence", highlight=False)


def _load_file(options: Any) -> Any:
    """What steers; settles the prompt style that is not given: the one in its training, or its extraction."""
    from laai.steering import load

    intervention = load(options.intervention)
    options.style = options.style or intervention.provenance.prompt_style or "plain"
    return intervention


def _load_model(options: Any, intervention: Any) -> tuple[Any, Any]:
    """The model and the intervention, at the wanted scale, checked against each other."""
    from laai.models import load_model
    from laai.steering import check_fits

    model = load_model(options.base_model or intervention.provenance.base_model or "default", dtype=options.dtype)
    check_fits(intervention, model, options.intervention)
    return model, options.scale * intervention


def _generate(options: Any) -> None:
    from laai.evaluation import continuations
    from laai.prompts import Template
    from laai.tasks import Example, Task, load_task

    if options.max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, not {options.max_new_tokens}")
    model, intervention = _load_model(options, _load_file(options))
    if options.task:
        template = Template(model.tokenizer, load_task(options.task, columns=columns_of(options)), options.style)
        prompt = template.encode(options.prompt)
    else:
        bare = Task("prompt", (Example("a", "b"), Example("c", "d")), input_prefix="", answer_prefix="")
        template, text = Template(model.tokenizer, bare, options.style), options.prompt.replace("\\n", "\n")
        prompt = template.encode_text(text) if options.style == "plain" else template.encode(text)
    plain = continuations(model.llm, template, [prompt], options.max_new_tokens)[0]
    with intervention.on(model):
        steered = continuations(model.llm, template, [prompt], options.max_new_tokens)[0]
    sys.stdout.write(f"without: {plain.strip()!r}\nwith:    {steered.strip()!r}\n")


def _evaluate(options: Any) -> None:
    from dataclasses import replace

    import lightning.pytorch as pl

    from laai.evaluation import Method, compare, print_table
    from laai.files import check_output, write_json
    from laai.runtime import FewShotDataModule, StepProgress, ignore_chatter

    if options.shots < 0:
        raise UserError(f"shots must be at least 0, not {options.shots}")
    if options.test < 1:
        raise UserError(f"expected --test as at least 1, found {options.test}")
    table = check_output(options.json, "--json") if options.json else None
    intervention = _load_file(options)
    data = FewShotDataModule(
        options.task,
        options.shots or 1,
        seed=options.seed,
        test=options.test,
        style=options.style,
        columns=columns_of(options),
    )
    asked = data.splits.test
    data.splits = replace(data.splits, test=intervention.provenance.unseen(asked))
    if not data.splits.test:
        raise UserError(f"the vectors were made from all {len(asked)} test queries; give others, or another --seed")
    if left := len(asked) - len(data.splits.test):
        sys.stdout.write(f"{left} of {len(asked)} test queries are left out: the vectors were made from them\n")
    if (said := intervention.provenance.other_instruction(data.task)) is not None:
        warnings.warn(
            f"the vectors were made under the instruction {said!r}, these queries have {data.task.instruction!r}: "
            "--columns instruction='…' sets it",
            stacklevel=2,
        )
    model, intervention = _load_model(options, intervention)
    ignore_chatter()
    few_shot = [Method(f"{options.shots}-shot", demonstrations=data.splits.train)] if options.shots else []
    methods = [Method("zero-shot"), *few_shot, Method("steered", intervention)]
    trainer = pl.Trainer(
        devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False, callbacks=[StepProgress()]
    )
    rows = [test.scores for test in compare(trainer, model, data, methods) if test.scores is not None]
    print_table(rows, f"{data.task.name}: {rows[0].n} test queries, {model.name}")
    if table:
        write_json(table, {"task": data.task.name, "rows": [row.as_json() for row in rows]})
