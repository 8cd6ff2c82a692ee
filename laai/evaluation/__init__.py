"""What a model is worth on a task: answers, likelihoods and choices, their metrics, and tables of them.

`measure` takes the model as it is, steered or not; `evaluate_arms` puts arms side by side in Lightning's test loop.
Below it the engine runs what is asked; learning validates by it, and transfers, studies and commands report by it.
"""

from laai.evaluation.arms import Arm, Evaluation, evaluate_arms
from laai.evaluation.measuring import Measured, choose_options, measure
from laai.evaluation.metrics import (
    Interval,
    bootstrap_interval,
    calibrated_choices,
    label_offsets,
    paired_interval,
    share_interval,
)
from laai.evaluation.report import answers_markdown, markdown_table, print_table, write_results
from laai.evaluation.scores import Scores, TaskMetrics

__all__ = [
    "Arm", "Evaluation", "Interval", "Measured", "Scores", "TaskMetrics", "answers_markdown", "bootstrap_interval",
    "calibrated_choices", "choose_options", "evaluate_arms", "label_offsets", "markdown_table", "measure",
    "paired_interval", "print_table", "share_interval", "write_results",
]  # fmt: skip
