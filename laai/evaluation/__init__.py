"""evaluation."""

from laai.evaluation.arms import Arm, Evaluation, evaluate_arms
from laai.evaluation.measuring import Measured, choose_options, measure
from laai.evaluation.metrics import (
    Interval,
    bootstrap_interval,
    calibrated_choices,
    exact_match,
    first_lines,
    forced_choice,
    paired_interval,
    share_interval,
)
from laai.evaluation.report import answers_markdown, markdown_table, print_table, write_results
from laai.evaluation.scores import Scores, TaskMetrics

__all__ = [
    "Arm",
    "Evaluation",
    "Interval",
    "Measured",
    "Scores",
    "TaskMetrics",
    "answers_markdown",
    "bootstrap_interval",
    "calibrated_choices",
    "choose_options",
    "evaluate_arms",
    "exact_match",
    "first_lines",
    "forced_choice",
    "markdown_table",
    "measure",
    "paired_interval",
    "print_table",
    "share_interval",
    "write_results",
]
