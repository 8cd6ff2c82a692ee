"""The `laai` command: look at tasks, try an intervention, measure it. Learning is `python train.py`.

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
from laai.errors import UserError, between_processes

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
