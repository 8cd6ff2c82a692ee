"""Answers measured: metrics, scores, methods side by side, tables."""

from laai.evaluation.arms import Evaluation, Method, compare
from laai.evaluation.measuring import Measured, choose_options, measure
from laai.evaluation.metrics import (
    Interval,
    bootstrap_interval,
    calibrated_choices,
    exact_match,
    first_lines,
    forced_choice,
    label_offsets,
    paired_interval,
    share_interval,
)
from laai.evaluation.report import answers_markdown, markdown_table, print_table, write_results
from laai.evaluation.scores import Scores, TaskMetrics

__all__ = [
    "Evaluation",
    "Interval",
    "Measured",
    "Method",
    "Scores",
    "TaskMetrics",
    "answers_markdown",
    "bootstrap_interval",
    "calibrated_choices",
    "choose_options",
    "compare",
    "exact_match",
    "first_lines",
    "forced_choice",
    "label_offsets",
    "markdown_table",
    "measure",
    "paired_interval",
    "print_table",
    "share_interval",
    "write_results",
]
