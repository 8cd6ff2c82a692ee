"""The one exception that a user causes and can cure, and what is said of errors between the processes of a run."""

from __future__ import annotations

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
