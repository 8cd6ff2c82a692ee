"""Prompts: from an example to token ids, split at the last prompt token into prefix and suffix.

The suffix starts with the last prompt token, because that is the first token a `last_prompt` or `generated` vector can
change; everything before it is the prefix, which no such vector can change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from laai.errors import UserError
from laai.prompts.batches import Prompt
from laai.tasks import Example, Task
from laai.vocabulary import STYLES, Style

_PROBE = "(answer)"  # a turn that is looked for in a chat template's output


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
