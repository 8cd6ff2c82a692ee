"""`FewShotDataModule`: a task's examples as Lightning's train, validation and test data."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler
from transformers import PreTrainedTokenizerBase

from laai.errors import UserError
from laai.models import LanguageModel
from laai.prompts import Batch, Prompt, Template, collate
from laai.runtime.strategy import ShardedStrategy
from laai.tasks import Example, Splits, Task, load_task, same_text
from laai.vocabulary import Style


def data_facts(data: FewShotDataModule) -> dict[str, Any]:
    """What tells one run's data from another's: the task, its draw, the style, and a digest of what is learned from."""
    pairs = [(e.input, e.output) for e in (*data.splits.train, *data.splits.validation)]
    facts = {"task": data.task.name, "num_examples": data.num_examples, "seed": data.seed, "style": data.style}
    return facts | {
        "instruction": data.task.instruction,
        "examples": hashlib.sha256(repr(pairs).encode(errors="surrogatepass")).hexdigest()[:16],
    }


class FewShotDataModule(LightningDataModule):
    """A few labelled examples to learn from, and others to test on.

    Training batches are `Batch`es of zero-shot prompts with their answers. Validation and test batches are row numbers
    (int64) into `splits`, because measuring needs the examples themselves.

    Args:
        task: a built-in task (`laai tasks` lists them), a .json, .jsonl or .csv file, a folder, or hf:NAME[/CONFIG].
        num_examples: labelled training examples.
        seed: draws the examples; test examples are the same for every number of training examples that leaves enough.
        validation: examples held back for early stopping, besides the training examples; 0 for none.
        test: test examples at most; null for all that are left, 0 for none.
        batch_size: training examples per step, over all devices; null for all of them.
        eval_batch_size: prompts run at a time when measuring.
        style: how prompts are written: `plain`, or `chat` by the tokenizer's chat template.
        columns: for files and hub data sets: our field (input, output, choices, label, split) -> their column; and for
            any task `instruction`, a text that prompts begin with.

    Raises:
        UserError: the task cannot be read or is too small.
    """

    def __init__(
        self, task: str | Task = "antonym", num_examples: int = 10, seed: int = 0, validation: int = 0,
        test: int | None = 100, batch_size: int | None = None, eval_batch_size: int = 25, style: Style = "plain",
        columns: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        at_least = {"num_examples": (num_examples, 1), "validation": (validation, 0), "test": (test, 0)}
        at_least |= {"batch_size": (batch_size, 1), "eval_batch_size": (eval_batch_size, 1)}
        for name, (value, least) in at_least.items():
            if value is not None and value < least:
                raise UserError(f"{name} must be at least {least}, not {value}")
        self.num_examples, self.seed, self.style = num_examples, seed, style
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.task: Task = task if isinstance(task, Task) else load_task(task, columns=columns)
        if test:
            held_out = self.task.test_examples
            inputs = {same_text(example.input) for example in self.task.examples}
            left = len(inputs) - num_examples - validation if held_out is None else len(held_out)
            test = min(test, max(left, 1))
        self.splits: Splits = self.task.split(num_examples, validation=validation, test=test, seed=seed)

        self.prompts: list[Prompt] = []
        """Of the training examples: zero-shot, with their answers; once `encode` has been called."""

    def template(self, tokenizer: PreTrainedTokenizerBase) -> Template:
        """How this task is written for a model."""
        return Template(tokenizer, self.task, self.style)

    def encode(self, model: LanguageModel) -> None:
        """Encode the training examples for a model, once for a whole run: whoever learns calls this before the fit."""
        self._pad = model.pad
        self.prompts = [prompt for _, prompt in encode_training(self.template(model.tokenizer), self.splits.train)]

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the training examples' prompts with answers; shuffled if one batch does not hold them all."""
        trainer = self.trainer
        if trainer is None or not self.prompts:
            raise RuntimeError("attach this data module to a Trainer first, and encode its examples for a model")
        dataset: Any = list(enumerate(self.prompts))
        size, devices = min(self.batch_size or len(dataset), len(dataset)), trainer.world_size
        if size % devices:
            raise UserError(f"a batch of {size} examples cannot be shared evenly by {devices} devices")
        if 0 < (last := len(dataset) % size) < devices:
            raise UserError(
                f"the last batch of an epoch has {last} of {len(dataset)} examples, too few for {devices} devices: "
                "choose another batch_size"
            )
        sampler = StepOrder(dataset, trainer, size, self.seed)
        collate_fn = partial(_collate_numbered, pad=self._pad)
        return ResumableLoader(dataset, size // devices, sampler=sampler, collate_fn=collate_fn)

    def val_dataloader(self) -> DataLoader[Tensor] | list[Tensor]:
        """Row numbers into `splits.validation`; nothing where there are none."""
        return self._rows(self.splits.validation) if self.splits.validation else []

    def test_dataloader(self) -> DataLoader[Tensor]:
        """Row numbers into `splits.test`."""
        return self._rows(self.splits.test)

    def _rows(self, examples: Sequence[Example]) -> DataLoader[Tensor]:
        rows: Any = torch.arange(len(examples))
        if self.trainer is not None and isinstance(self.trainer.strategy, ShardedStrategy):  # joint forwards
            everything: DistributedSampler[Any] = DistributedSampler(rows, num_replicas=1, rank=0, shuffle=False)
            return DataLoader(rows, self.eval_batch_size, sampler=everything)
        return DataLoader(rows, self.eval_batch_size)


class StepOrder(DistributedSampler[int]):
    """An order by seed and optimiser step alone: the same on any number of devices, and in a run that is resumed.

    It begins where the trainer's step stands, in the middle of an epoch too. Each device takes its share of each batch.

    Args:
        dataset: what is drawn from.
        trainer: knows the step and the devices.
        batch_size: examples per step and accumulated part, over all devices.
        seed: draws the order, if a batch does not hold all.
    """

    def __init__(self, dataset: Sequence[Any], trainer: pl.Trainer, batch_size: int, seed: int) -> None:
        shuffle = batch_size < len(dataset)
        anything: Any = dataset  # only its length is asked for
        super().__init__(anything, trainer.world_size, trainer.global_rank, shuffle, seed)
        self._trainer, self._count, self._size = trainer, len(dataset), batch_size

    def __len__(self) -> int:
        """Examples that this device gets in an epoch."""
        return sum(map(len, self._shares(range(self._count))))

    def __iter__(self) -> Iterator[int]:
        """What is left of the epoch that the trainer's step lies in."""
        parts = self._trainer.accumulate_grad_batches
        steps = math.ceil(math.ceil(self._count / self._size) / parts)
        epoch, done = divmod(self._trainer.global_step, steps)
        order: Sequence[int] = range(self._count)
        if self.shuffle:
            order = torch.randperm(self._count, generator=torch.Generator().manual_seed(self.seed + epoch)).tolist()
        return iter([row for share in self._shares(order)[done * parts :] for row in share])

    def _shares(self, order: Sequence[int]) -> list[Sequence[int]]:
        batches = [order[start : start + self._size] for start in range(0, self._count, self._size)]
        return [batch[self.rank :: self.num_replicas] for batch in batches]


class ResumableLoader(DataLoader[Any]):
    """A loader that needs no state to go on in the middle of an epoch: `StepOrder` follows the step."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


def encode_training(template: Template, examples: Sequence[Example]) -> list[tuple[int, Prompt]]:
    """Numbered zero-shot prompts with their answers."""
    return [(row, template.encode(example.input, answer=example.output)) for row, example in enumerate(examples)]


def _collate_numbered(items: Sequence[tuple[int, Prompt]], pad: int) -> Batch:
    return collate([prompt for _, prompt in items], pad, [row for row, _ in items])
