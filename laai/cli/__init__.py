"""cli."""

from laai.cli.commands import learn, main

__all__ = [
    "learn",
    "main",
]
