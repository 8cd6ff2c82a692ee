"""`laai evaluate`: an intervention measured beside zero-shot and few-shot prompting."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from laai.cli.options import Parsers, add_columns, add_command, add_model_options, columns_of, load_both, read_vectors
from laai.errors import UserError
from laai.vocabulary import STYLES


def add_evaluate(commands: Parsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "evaluate", _run, "measure an intervention on a task beside zero-shot and few-shot prompting",
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


def _run(options: Any) -> None:
    from dataclasses import replace

    from laai.compare import compare
    from laai.evaluation import Arm, print_table
    from laai.files import check_output, write_json
    from laai.runtime import FewShotDataModule, StepProgress, ignore_chatter, quiet_trainer

    if options.shots < 0:
        raise UserError(f"shots must be at least 0, not {options.shots}")
    if options.test < 1:
        raise UserError(f"expected --test as at least 1, found {options.test}")
    table = check_output(options.json, "--json") if options.json else None
    intervention = read_vectors(options)
    drawn = {"seed": options.seed, "test": options.test, "style": options.style, "columns": columns_of(options)}
    data = FewShotDataModule(options.task, options.shots or 1, **drawn)
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
    model, intervention = load_both(options, intervention)
    ignore_chatter()
    shown = [Arm(f"{options.shots}-shot", demonstrations=data.splits.train)] if options.shots else []
    methods: list[str | Arm] = ["zero-shot", *shown, "steered"]
    tests = compare(model, data, methods, made={"steered": intervention}, trainer=quiet_trainer([StepProgress()]))
    rows = [test.scores for test in tests if test.scores is not None]
    print_table(rows, f"{data.task.name}: {rows[0].n} test queries, {model.name}")
    if table:
        write_json(table, {"task": data.task.name, "rows": [row.as_json() for row in rows]})
