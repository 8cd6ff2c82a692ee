"""From examples to token ids: templates, demonstrations, batches."""

from laai.prompts.batches import IGNORE, Batch, Prompt, by_length, collate, without_unlabelled_end
from laai.prompts.demonstrations import answer_limit, demonstrations_of, fitting, fitting_own, other_examples
from laai.prompts.templates import Shown, Template

__all__ = [
    "IGNORE",
    "Batch",
    "Prompt",
    "Shown",
    "Template",
    "answer_limit",
    "by_length",
    "collate",
    "demonstrations_of",
    "fitting",
    "fitting_own",
    "other_examples",
    "without_unlabelled_end",
]
