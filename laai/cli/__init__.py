"""cli."""

from laai.cli.commands import main

__all__ = [
    "main",
]
