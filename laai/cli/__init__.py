"""The `laai` command: one command a file."""

from laai.cli.main import learn, main

__all__ = ["learn", "main"]
