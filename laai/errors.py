"""The one exception that a user causes and can cure, and how commands end: in one line, with an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 1000


class UserError(ValueError):
    """Bad input. The message is one line: what was expected, what was found, what to do.

    Command lines print it without a traceback and exit with code 2; everything else that is raised is a defect of ours.
    What was found may come from anywhere: new lines and characters that steer a terminal are written as escapes.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        super().__init__(shown if len(shown) <= LONGEST else f"{shown[: LONGEST // 2]} … {shown[-LONGEST // 2 :]}")


LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process")
"""What is said where another process is gone, rather than out of reach."""


def between_processes(error: RuntimeError) -> str | None:
    """One line for what went wrong between the processes of a run; None for an error of this process's own."""
    import torch.distributed

    text = " ".join(str(error).split())
    if not (isinstance(error, torch.distributed.DistError) or "gloo" in text):
        return None
    found = text.split(". ")[0][:200]  # what follows is general advice
    if any(sign in text for sign in LOST):
        return f"another process of this run stopped ({found}); its own output says why"
    return f"the processes of this run cannot reach each other ({found})"


@contextmanager
def ends_in_one_line(resume: str = "") -> Iterator[None]:
    """What ends a command ends it in one line on stderr, without a traceback; around its body, or a decorator of it.

    Exit codes: 2 for a `UserError`, 3 for an error between processes, 130 for Ctrl-C, 143 for SIGTERM. Everything else
    that is raised is a defect of ours, and comes through.

    Args:
        resume: how to go on after an error between processes; for runs that tell themselves where they were stopped.
    """
    try:
        yield
        return
    except UserError as error:
        said, code = f"error: {error}\n", 2
    except RuntimeError as error:
        if (found := between_processes(error)) is None:
            raise
        said, code = f"error: {found}{resume and '; to go on: '}{resume}\n", 3
    except KeyboardInterrupt:
        said, code = "\ninterrupted\n", 130
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # which Lightning's loops turn into it, with code 1
            said, code = "" if resume else "\ninterrupted\n", 130
        elif type(end) is not SystemExit and end.code is None:  # Lightning's own for SIGTERM
            said, code = "", 143
        else:
            raise
    sys.stderr.write(said)
    sys.exit(code)
