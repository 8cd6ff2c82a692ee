"""The `laai` command: one command a file."""

from laai.cli.main import main

__all__ = [
    "main",
]
