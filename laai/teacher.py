"""The model's own few-shot answers as a teacher: what it would say if it saw the other examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from laai.batches import by_length, to_device
from laai.forward import answer_logits
from laai.prompts import IGNORE, Prompt, Template, collate, pad_token
from laai.tasks import Example

MAX_SHOTS = 16
"""Demonstrations shown at most before a training example's query, whatever the number of examples."""

FEWEST_EXAMPLES = 5
"""Training examples from which on the teacher is heard: behind one demonstration it knows the task too badly."""


def other_examples(examples: Sequence[Example]) -> list[list[Example]]:
    """For each example the others, in order; from `MAX_SHOTS` others on, those that follow it, around the end."""
    n = len(examples)
    if n - 1 <= MAX_SHOTS:
        return [[other for j, other in enumerate(examples) if j != i] for i in range(n)]
    return [[examples[(i + k) % n] for k in range(1, MAX_SHOTS + 1)] for i in range(n)]


@torch.no_grad()
def few_shot_teacher(
    llm: nn.Module, template: Template, examples: Sequence[Example], batch_size: int = 16
) -> list[Tensor]:
    """Log-probabilities at the answer of each example, behind the others as demonstrations.

    Args:
        llm: the model, unsteered.
        template: writes the prompts.
        examples: all training examples.
        batch_size: prompts run at a time.

    Returns:
        For each example (answer tokens, vocabulary), in the LLM's dtype, on its device. The answer's tokens are those
        that follow its zero-shot prompt. Nothing for fewer than `FEWEST_EXAMPLES`.
    """
    if len(examples) < FEWEST_EXAMPLES:
        return []
    prompts: list[Prompt] = []
    for example, shown in zip(examples, other_examples(examples), strict=True):
        few_shot, zero_shot = template.encode(example.input, shown), template.encode(example.input, (), example.output)
        prompts.append(Prompt(few_shot.prefix, (*few_shot.suffix, *zero_shot.answer)))
    teacher: list[Tensor] = [torch.empty(0)] * len(prompts)
    for rows in by_length(prompts, batch_size):
        batch = to_device(collate([prompts[i] for i in rows], pad_token(template.tokenizer)), llm)
        log_probs = answer_logits(llm, batch).float().log_softmax(dim=-1)
        for i, row, labels in zip(rows, log_probs, batch.labels, strict=True):
            teacher[i] = row[labels != IGNORE].to(next(llm.parameters()).dtype)
    return teacher
