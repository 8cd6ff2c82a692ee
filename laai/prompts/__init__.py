"""A task's examples as the model reads them: text, token ids, batches.

Every prompt is split at its last token, into the prefix that no vector at that token or after can change, and the
suffix that each step runs; all rooms above speak of prompts in these two parts. Below lie the tasks and the model,
which is asked for its tokenizer and how much it reads: nothing here runs it.
"""

from laai.prompts.batches import IGNORE, Batch, Prompt, by_length, collate, without_unlabelled_end
from laai.prompts.demonstrations import answer_limit, demonstrations_of, fitting, fitting_own, other_examples
from laai.prompts.templates import Shown, Template

__all__ = [
    "IGNORE", "Batch", "Prompt", "Shown", "Template", "answer_limit", "by_length", "collate", "demonstrations_of",
    "fitting", "fitting_own", "other_examples", "without_unlabelled_end",
]  # fmt: skip
