"""The model's own few-shot answers as a teacher: what it would say if it saw the other examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from laai.engine import Engine
from laai.prompts import IGNORE, Prompt, Template, other_examples
from laai.tasks import Example

FEWEST_EXAMPLES = 5
"""Training examples from which on the teacher is heard: behind one demonstration it knows the task too badly."""


@torch.no_grad()
def few_shot_teacher(
    engine: Engine, template: Template, examples: Sequence[Example], batch_size: int = 16,
    zero_shot: Sequence[Prompt] = (),
) -> list[Tensor]:  # fmt: skip
    """Log-probabilities at the answer of each example, behind the others as demonstrations.

    Args:
        engine: of the model, unsteered.
        template: writes the prompts.
        examples: all training examples.
        batch_size: prompts run at a time.
        zero_shot: the examples' prompts with answers, where they are encoded already.

    Returns:
        For each example (answer tokens, vocabulary), in the LLM's dtype, on its device. The answer's tokens are those
        that follow its zero-shot prompt. Nothing for fewer than `FEWEST_EXAMPLES`.
    """
    if len(examples) < FEWEST_EXAMPLES:
        return []
    prompts: list[Prompt] = []
    zero_shot = zero_shot or [template.encode(example.input, answer=example.output) for example in examples]
    for example, shown, alone in zip(examples, other_examples(examples), zero_shot, strict=True):
        few_shot = template.encode(example.input, shown)
        prompts.append(Prompt(few_shot.prefix, (*few_shot.suffix, *alone.answer)))
    teacher: list[Tensor] = [torch.empty(0)] * len(prompts)
    for rows, batch, logits in engine.logits(prompts, batch_size):
        log_probs = logits.float().log_softmax(dim=-1)
        for i, row, labels in zip(rows, log_probs, batch.labels, strict=True):
            teacher[i] = row[labels != IGNORE].to(next(engine.model.llm.parameters()).dtype)
    return teacher
