"""The one exception that a user causes and can cure, and what is said when another process of the run has stopped."""

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


def another_process_stopped(error: RuntimeError) -> str | None:
    """One line, if that is what made a collective operation fail; None for an error of this process's own."""
    import torch.distributed

    if not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
        return None
    found = " ".join(str(error).split()).split(". ")[0][:200]  # what follows is general advice
    return f"another process of this run stopped ({found}); its own output says why"
