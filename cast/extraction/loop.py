"""Running the pairs of a `Contrast`: alone, or shared out by Lightning's predict; what was interrupted goes on."""

from __future__ import annotations

import glob
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from cast.extraction.contrast import Contrast
from laai.errors import UserError
from laai.models import LanguageModel
from laai.runtime import check_precision, heed_sigterm

NOTHING = -1
"""In place of a pair's number, for devices that have none."""

SAVE_SECONDS = 15.0
"""How much work an interruption may cost."""


def run_all(
    contrast: Contrast, model: LanguageModel, *, batch_size: int,
    trainer: pl.Trainer | None = None, partial: Path | None = None, name: str | None = None,
) -> None:  # fmt: skip
    """Run the pairs that are missing; every device has the sums over all devices afterwards.

    Args:
        model: that the contrast reads; it is put back where it was.
        batch_size: pairs at a time on each device.
        trainer: shares the pairs out to its devices; None to run them here, where the model is.
        partial: where to keep what is done, as files PARTIAL.0, PARTIAL.1, … by device. A run with the same settings,
            on any number of devices of one machine, goes on from there; on several machines, which need not see each
            other's files, nothing is kept. They stay when all is done, so that a result that cannot be saved is not
            lost: call `discard` once it is.
        name: for the progress bar; None for no bar.

    Raises:
        UserError: `partial` holds something else, the trainer's precision would convert the model, activations are not
            finite, or the trainer's processes have not the same model and samples. Where one of several processes
            fails so, all raise once they have done what they can.
    """
    if trainer is not None:
        check_precision(trainer)
        if trainer.num_nodes > 1:  # without the files of all, one would do another share than the others think
            partial = None
    if partial is not None:
        contrast.restore(files_of(partial))
    todo, done, devices = contrast.missing(), int(contrast.done.sum()), 1 if trainer is None else trainer.world_size
    if devices > 1:
        _ = contrast.fingerprint  # of the model as the user gave it: it is compared among the processes
        todo += [NOTHING] * (devices - len(todo))  # each device has to get something, or the others wait for it
    with tqdm(total=len(contrast), initial=done, desc=name, disable=name is None, leave=False) as bar:
        work = _Work(model, contrast, partial, bar)
        numbers: Any = torch.tensor(todo)  # a loader takes any sequence; its type says a Dataset
        loader: DataLoader[Tensor] = DataLoader(numbers, batch_size)
        device = model.device
        try:
            if trainer is None:
                for pairs in loader:
                    work.predict_step(pairs)
            elif todo:
                trainer.predict(work, loader, return_predictions=False)
        except BaseException:
            work.save()
            raise
        finally:
            model.to(device)  # Lightning leaves it elsewhere
        if work.rank == 0:
            work.save()  # of all devices


def files_of(partial: Path) -> list[Path]:
    """The files that keep what runs with this `partial` have done."""
    found = partial.parent.glob(f"{glob.escape(partial.name)}.*")
    return sorted(path for path in found if path.suffix[1:].isdecimal())


def discard(partial: Path) -> None:
    """Delete what `run_all` keeps; for its callers, once their result is saved."""
    for file in files_of(partial):
        file.unlink(missing_ok=True)


class _Work(pl.LightningModule):
    """The pairs that its batches number, run one batch at a time."""

    def __init__(self, model: LanguageModel, contrast: Contrast, partial: Path | None, bar: tqdm[Any]) -> None:
        super().__init__()
        self._contrast, self._bar, self._partial = contrast, bar, partial
        model.held_by(self)
        self.rank, self._devices = 0, 1
        self._error: UserError | None = None
        self._saved = time.monotonic()

    def on_predict_start(self) -> None:
        """The first device keeps what was done before, the others begin with nothing."""
        heed_sigterm(self.trainer)
        self.rank, self._devices = self.global_rank, self.trainer.world_size
        if self.rank:
            self._bar.disable = True
            self._contrast.set({name: torch.zeros_like(t) for name, t in self._contrast.tensors().items()})
        else:
            self.save()
        own = self._contrast.fingerprint if self._devices > 1 else ""
        if own and self.trainer.strategy.broadcast(own) != own:
            self._error = UserError(
                "this process reads other samples, or another model, than the first: give all machines the same files, "
                "and compare samples (--select) where embeddings come out alike"
            )
        self._raise_together()
        if self.rank and self._partial is not None:
            self._file().unlink(missing_ok=True)

    def predict_step(self, pairs: Tensor) -> None:
        """Run some pairs."""
        numbers = [pair for pair in pairs.tolist() if pair != NOTHING]
        if not numbers or self._error is not None:
            return
        try:
            self._contrast.run(numbers)
        except UserError as error:
            if self._devices == 1:
                raise
            self._error = error  # the others wait for this process, and would be killed with it
            return
        self._bar.update(min(len(numbers) * self._devices, len(self._contrast) - self._bar.n))
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def on_predict_end(self) -> None:
        """Add up what the devices have seen."""
        self._raise_together()
        if self._devices > 1:
            reduce, seen = self.trainer.strategy.reduce, self._contrast.tensors()
            total = {name: reduce(t.to(self.device), reduce_op="sum") for name, t in seen.items()}
            self._contrast.set({name: torch.as_tensor(t).cpu() for name, t in total.items()})

    def _raise_together(self) -> None:
        """On every device, if there is an error on one."""
        failed = torch.tensor(float(self._error is not None), device=self.device)
        if self._devices > 1:
            failed = torch.as_tensor(self.trainer.strategy.reduce(failed, reduce_op="sum"))
        if self._error is not None:
            raise self._error
        if failed:
            raise UserError("another process of this run stopped; its own output says why")

    def save(self) -> None:
        """Keep what this device has done."""
        if self._partial is not None and self._contrast.done.any():
            self._contrast.save(self._file())
        self._saved = time.monotonic()

    def _file(self) -> Path:
        assert self._partial is not None
        return self._partial.with_name(f"{self._partial.name}.{self.rank}")
