"""Labelled examples: tasks, their splits, and where they are read from."""

from laai.tasks.examples import Example, Splits, Task, excluding, same_text, without
from laai.tasks.loading import builtin_tasks, load_task

__all__ = ["Example", "Splits", "Task", "builtin_tasks", "excluding", "load_task", "same_text", "without"]
