"""Prompts: from an example to token ids, split at the last prompt token into prefix and suffix.

The suffix starts with the last prompt token, because that is the first token a `last_prompt` or `generated` vector can
change; everything before it is the prefix, which no such vector can change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from laai.errors import UserError
from laai.tasks import Example, Task
from laai.words import STYLES, Style

_PROBE = "(answer)"  # a turn that is looked for in a chat template's output
IGNORE = -100
"""Label of a position whose next token is not part of the answer (the value that PyTorch's losses ignore)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of one prompt, with or without its answer.

    Attributes:
        prefix: all tokens before the last prompt token; may be empty.
        suffix: the last prompt token, then the answer's tokens if there is an answer.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @property
    def prompt(self) -> tuple[int, ...]:
        """The prompt's own tokens."""
        return (*self.prefix, self.suffix[0])

    @property
    def answer(self) -> tuple[int, ...]:
        """The answer's tokens, its terminator included."""
        return self.suffix[1:]


class Batch(NamedTuple):
    """Prompts as int64 tensors. Prefixes are padded on the left and suffixes on the right: rows meet in the middle.

    Attributes:
        prefix_ids, prefix_mask: (batch, prefix tokens).
        suffix_ids, suffix_mask: (batch, suffix tokens); column 0 is each row's last prompt token.
        labels: (batch, suffix tokens), the answer token that follows each suffix position, else `IGNORE`.
        rows: (batch,), which example each row is.
    """

    prefix_ids: Tensor
    prefix_mask: Tensor
    suffix_ids: Tensor
    suffix_mask: Tensor
    labels: Tensor
    rows: Tensor

    @property
    def prompt_lengths(self) -> Tensor:
        """(batch,) number of prompt tokens in each row."""
        return self.prefix_mask.sum(-1) + 1

    def row(self, index: int) -> Batch:
        """One row by itself, its suffix without padding."""
        only, tokens = slice(index, index + 1), slice(max(int(self.suffix_mask[index].sum()), 1))
        suffix = (self.suffix_ids[only, tokens], self.suffix_mask[only, tokens], self.labels[only, tokens])
        return Batch(self.prefix_ids[only], self.prefix_mask[only], *suffix, self.rows[only])

    def without_prefix(self) -> Batch:
        """What is left when the prefixes are run already."""
        return Batch(self.prefix_ids[:, :0], self.prefix_mask[:, :0], *self[2:5], self.rows)

    def repeated(self, times: int) -> Batch:
        """Each row `times` times in a row."""
        return Batch(*(table.repeat_interleave(times, dim=0) for table in self))

    def rows_at(self, rows: Sequence[int]) -> Batch:
        """Some rows, without the columns that are padding in all of them."""
        chosen = Batch(*(table[list(rows)] for table in self))
        before = self.prefix_ids.shape[1] - int(chosen.prefix_mask.sum(-1).max())
        after = int(chosen.suffix_mask.sum(-1).max())
        suffix = (chosen.suffix_ids[:, :after], chosen.suffix_mask[:, :after], chosen.labels[:, :after])
        return Batch(chosen.prefix_ids[:, before:], chosen.prefix_mask[:, before:], *suffix, chosen.rows)


class Shown(NamedTuple):
    """Demonstrations of a task, under its own instruction."""

    task: Task
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Template:
    """How the examples of a task are written for a model.

    Args:
        tokenizer: the model's.
        task: gives instruction, input prefix and answer prefix.
        style: `plain` (`Q: hot` / `A: cold`, blank line between demonstrations) or `chat` (the tokenizer's own chat
            template; demonstrations are earlier turns).
        before: demonstrations of another task, shown under its own instruction before everything else
            (cross-task prompting, arXiv 2405.10548).

    Raises:
        UserError: style `chat` and a tokenizer that has no chat template.
    """

    tokenizer: PreTrainedTokenizerBase
    task: Task
    style: Style = "plain"
    before: Shown | None = None

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise UserError(f"the prompt style must be one of {', '.join(STYLES)}, not {self.style!r}")
        if self.style == "chat" and not self.tokenizer.chat_template:
            raise UserError("this tokenizer has no chat template; use the plain prompt style")
        if not self.terminator:
            raise UserError("this chat template ends no turn and there is no end token; use the plain prompt style")

    @cached_property
    def terminator(self) -> str:
        """What ends an answer: a new line; in a chat what the template ends a turn with, else the end token."""
        if self.style == "plain":
            return "\n"
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
        text = str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        return next(iter(text.rpartition(_PROBE)[2].split()), self.tokenizer.eos_token or "")

    @cached_property
    def takes_system(self) -> bool:
        """Whether the chat template has a system turn: some, Gemma's first ones, refuse it."""
        from jinja2 import TemplateError

        turns = [{"role": "system", "content": "?"}, {"role": "user", "content": "?"}]
        try:
            self.tokenizer.apply_chat_template(turns, tokenize=False)
        except TemplateError:
            return False
        return True

    def prompt_text(self, query: str, demonstrations: Sequence[Example] = ()) -> str:
        """The prompt up to where the answer is to start."""
        task = self.task
        shown = ([self.before] if self.before else []) + [Shown(task, tuple(demonstrations))]
        if self.style == "plain":
            text = ""
            for other, examples in shown:
                text += f"{other.instruction}\n\n" if other.instruction else ""
                text += "".join(f"{_question(other, d.input)}{self.answer_text(d.output)}\n\n" for d in examples)
            return text + _question(task, query)
        turns, first = [], shown[0].task.instruction
        if first and self.takes_system:
            turns = [{"role": "system", "content": first}]
        for number, (other, examples) in enumerate(shown):
            # A chat has one system turn, its first, if any: other instructions stand in the user's next turn.
            later = other.instruction and (number > 0 or not turns)
            instruction = f"{other.instruction}\n\n" if later else ""
            for shot in examples:
                turns += [{"role": "user", "content": instruction + shot.input}]
                turns += [{"role": "assistant", "content": shot.output}]
                instruction = ""
            query = instruction + query if other is task else query
        turns.append({"role": "user", "content": query})
        return str(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))

    def answer_text(self, answer: str) -> str:
        """The answer as it continues the prompt.

        Raises:
            UserError: a line break in a plain prompt, where it ends the answer.
        """
        if self.style == "plain" and "\n" in answer:
            raise UserError(
                f"the answer {answer[:40]!r} has a line break, which ends an answer in a plain prompt: "
                "write answers on one line, or take the chat style"
            )
        return f" {answer}" if self.style == "plain" else answer

    def encode(
        self, query: str, demonstrations: Sequence[Example] = (), answer: str | None = None, terminate: bool = True
    ) -> Prompt:
        """Token ids of a prompt, with `answer` and its terminator after it if there is one.

        The prompt is tokenised as it will be when the model has to answer, and the answer so that the whole reads as
        written: no token spans the boundary.

        Raises:
            UserError: the prompt is empty, or the tokenizer cannot end a token where the prompt ends.
        """
        return self.encode_text(self.prompt_text(query, demonstrations), answer, terminate)

    def encode_text(self, text: str, answer: str | None = None, terminate: bool = True) -> Prompt:
        """The same for a prompt that is written already."""
        prompt = self._ids(text)
        if not prompt:
            raise UserError("the prompt has no tokens; give the task an instruction, an input or an answer prefix")
        if answer is None:
            return Prompt(tuple(prompt[:-1]), (prompt[-1],))
        ending = self.answer_text(answer) + (self.terminator if terminate else "")
        return Prompt(tuple(prompt[:-1]), (prompt[-1], *self._continuation(text, prompt, ending)))

    def _continuation(self, text: str, prompt: list[int], ending: str) -> list[int]:
        whole = self._ids(text + ending)
        if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
            return whole[len(prompt) :]
        # A token of the whole text spans the boundary. After this prompt the model starts a new token there.
        alone = list(self.tokenizer.encode(ending, add_special_tokens=False))
        if alone and self._text([*prompt, *alone]) == self._text(prompt) + ending:
            return alone
        raise UserError(f"the tokenizer cannot split {text[-20:]!r} from {ending!r}; change the answer prefix")

    def _ids(self, text: str) -> list[int]:
        """A chat template writes its own special tokens. An end token would come between prompt and answer: cut off."""
        ids = list(self.tokenizer.encode(text, add_special_tokens=self.style == "plain"))
        if ids and ids[-1] in self.tokenizer.all_special_ids:
            bare = self.tokenizer.encode(text, add_special_tokens=False)
            while ids and ids[-1] in self.tokenizer.all_special_ids and ids[-1:] != bare[-1:]:
                ids.pop()
        return ids

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _question(task: Task, query: str) -> str:
    return f"{task.input_prefix}{query}\n{task.answer_prefix}"


def collate(prompts: Sequence[Prompt], pad: int, rows: Sequence[int] | None = None) -> Batch:
    """Stack prompts into a `Batch`; `rows` names the examples (default: 0, 1, …)."""
    before, after = max(len(p.prefix) for p in prompts), max(len(p.suffix) for p in prompts)

    def table(lines: list[list[int]]) -> Tensor:
        return torch.tensor(lines, dtype=torch.int64)

    left = [before - len(p.prefix) for p in prompts]
    right = [after - len(p.suffix) for p in prompts]
    return Batch(
        prefix_ids=table([[pad] * n + list(p.prefix) for p, n in zip(prompts, left, strict=True)]),
        prefix_mask=table([[0] * n + [1] * len(p.prefix) for p, n in zip(prompts, left, strict=True)]),
        suffix_ids=table([list(p.suffix) + [pad] * n for p, n in zip(prompts, right, strict=True)]),
        suffix_mask=table([[1] * len(p.suffix) + [0] * n for p, n in zip(prompts, right, strict=True)]),
        labels=table([list(p.answer) + [IGNORE] * (n + 1) for p, n in zip(prompts, right, strict=True)]),
        rows=torch.tensor(range(len(prompts)) if rows is None else rows, dtype=torch.int64),
    )


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with; which one does not matter, as pads are masked."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)
