"""The `laai` command: look at tasks, learn an intervention, try it, measure it.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from laai.cli.evaluate import add_evaluate
from laai.cli.extract import add_extract
from laai.cli.generate import add_generate
from laai.cli.tasks import add_tasks
from laai.cli.transfer import add_transfer
from laai.errors import ends_in_one_line

OVERVIEW = """\
Teach a frozen language model a task with a few kilobytes of vectors.

  laai tasks                          what there is to learn
  laai fit --data.task antonym        vectors from ten examples; the same as python train.py
  laai extract --source antonym --output antonym.safetensors
  laai generate --intervention antonym.safetensors --task antonym "hot"
  laai evaluate --intervention antonym.safetensors --task antonym
"""
LEARNING = {
    "fit": "learn vectors from a few examples and test them; with `validate` and `test` the same as python train.py",
    "validate": "measure a checkpoint's vectors on validation examples",
    "test": "measure a checkpoint's vectors on test examples",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one line on stderr and exit code 2."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given and given[0] in LEARNING:  # Lightning's own command line
        return learn(given)
    parser = argparse.ArgumentParser("laai", description=OVERVIEW, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, what in LEARNING.items():
        commands.add_parser(name, help=what)
    for add in (add_tasks, add_extract, add_transfer, add_generate, add_evaluate):
        add(commands)
    options = parser.parse_args(given)
    warnings.showwarning = _show_warning
    with ends_in_one_line():
        options.run(options)


def learn(arguments: Sequence[str] | None = None) -> None:
    """`python train.py`, and `laai fit`, `laai validate` and `laai test`."""
    from laai.cli.train import main as train

    train(arguments)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning in one line, without the place in our code that it came from."""
    sys.stderr.write(f"warning: {message}\n")
