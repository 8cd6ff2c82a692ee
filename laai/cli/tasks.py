"""`laai tasks`: what there is to learn."""

from __future__ import annotations

from typing import Any

from laai.cli.options import Parsers, add_command


def add_tasks(commands: Parsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "tasks", _run, "list the built-in tasks, or show one",
        "  laai tasks\n  laai tasks antonym\n  laai tasks my_examples.jsonl     checks a file of your own",
    )  # fmt: skip
    parser.add_argument("task", nargs="?", help="a task to show: built-in name, file or folder")


def _run(options: Any) -> None:
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
