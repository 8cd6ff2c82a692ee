"""Few-shot against zero-shot activations at the last prompt token, of many samples: sums that any device can add to.

Sums are fp64 on the host, so that the order of samples, and how devices share them, change nothing that counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from laai.engine import Engine
from laai.errors import UserError
from laai.files import write_atomically
from laai.models import LanguageModel, fingerprint, model_identity
from laai.prompts import Prompt
from laai.steering import Key, Provenance

Rows = Mapping[Key, Tensor]


class Contrast:
    """What was seen so far of prompts in pairs, each a query behind demonstrations and the same query alone.

    Args:
        few_shot, zero_shot: the prompts; pair i is the two at i. Answers in them are left out.
        keys: (site, layer) to read.
        keep: keep each sample's activations too, for `states`: 8 bytes a sample and number read.
        precision: Lightning's, that the pairs will be run in: what other precisions have seen does not add up.
    """

    def __init__(
        self, model: LanguageModel, few_shot: Sequence[Prompt], zero_shot: Sequence[Prompt], keys: Sequence[Key],
        keep: bool = False, precision: str = "32-true",
    ) -> None:  # fmt: skip
        self.widths = {key: model.decoder.width(*key) for key in keys}
        self._model, self._precision = model, precision
        self._prompts = [[Prompt(p.prefix, p.suffix[:1]) for p in prompts] for prompts in (few_shot, zero_shot)]
        self._engine = Engine(model)
        self.provenance = Provenance(**model_identity(model))  # of a vector that is made from it
        total = sum(self.widths.values())
        self.done = torch.zeros(len(few_shot), dtype=torch.bool)
        self.sums = torch.zeros(3, total, dtype=torch.float64)  # few-shot, zero-shot, squared differences
        self.kept = torch.zeros(2, len(few_shot) if keep else 0, total)  # zero-shot, differences

    def __len__(self) -> int:
        return len(self.done)

    def missing(self) -> list[int]:
        """Pairs that were not run, longest first: little is padding then, and memory fails early if it does."""
        lengths = [len(prompt.prefix) for prompt in self._prompts[0]]
        return sorted((i for i in range(len(self)) if not self.done[i]), key=lambda i: -lengths[i])

    @torch.no_grad()
    def run(self, pairs: Sequence[int]) -> None:
        """Run some pairs, as one batch of few-shot and one of zero-shot prompts.

        Raises:
            UserError: activations that are not finite; of these pairs nothing counts.
        """
        for prompts in self._prompts:  # what all of a kind begin with, demonstrations that they share, is run once
            self._engine.begin(prompts)
        few, zero = (self._activations(prompts, pairs) for prompts in self._prompts)
        difference = few - zero
        if not difference.isfinite().all():
            some = [i for i, sound in zip(pairs, difference.isfinite().all(-1).tolist(), strict=True) if not sound]
            raise UserError(
                f"the activations of sample {some[0] + 1} of {len(self)} are not finite: the model overflows in "
                f"{self._model.llm.dtype}; load it with another dtype (bfloat16, float32)"
            )
        if self.kept.shape[1]:
            self.kept[:, list(pairs)] = torch.stack([zero, difference]).float()
        sums, done = torch.stack([few.sum(0), zero.sum(0), difference.square().sum(0)]), self.done.clone()
        done[list(pairs)] = True
        vars(self).update(sums=self.sums + sums, done=done)  # at once: an interruption saves what both say

    def _activations(self, prompts: Sequence[Prompt], pairs: Sequence[int]) -> Tensor:
        """(pairs, all widths) fp64."""
        found = torch.zeros(len(pairs), sum(self.widths.values()), dtype=torch.float64)
        chosen = [prompts[i] for i in pairs]
        for read in self._engine.activations(chosen, list(self.widths), len(pairs)):
            found[read.rows] = torch.cat([read.states[key].cpu().double() for key in self.widths], dim=1)
        return found

    def _split(self, row: Tensor) -> dict[Key, Tensor]:
        return dict(zip(self.widths, torch.split(row, list(self.widths.values()), dim=-1), strict=True))

    def means(self, difference: bool = True) -> dict[Key, Tensor]:
        """(site, layer) -> (width,) fp32: mean few-shot minus zero-shot activation, or the few-shot one alone."""
        few, zero, _ = self.sums / self._count()
        return self._split((few - zero if difference else few).float())

    def variances(self) -> dict[Key, Tensor]:
        """(site, layer) -> (width,) fp32: variance of the difference over samples, with n in the denominator."""
        few, zero, squares = self.sums / self._count()
        return self._split((squares - (few - zero).square()).float())

    def steadiness(self) -> dict[str, float]:
        """By site, the cosine to expect between the difference, all layers as one vector, and that of other samples.

        Of as many: 1 − tr Σ / (n |m|²), with the mean m and the covariance Σ of n differences. That holds for samples
        that are drawn independently, each with demonstrations of its own; what they share, others would not. Empty for
        a single sample.
        """
        means, variances, count = self.means(), self.variances(), self._count()
        found: dict[str, float] = {}
        for site in dict.fromkeys(site for site, _ in means) if count > 1 else ():
            size = sum(float(mean.double().square().sum()) for key, mean in means.items() if key[0] == site)
            noise = sum(float(one.double().sum()) for key, one in variances.items() if key[0] == site) / (count - 1)
            found[site] = round(max(0.0, 1 - noise / size), 3) if size else 0.0
        return found

    def states(self) -> Iterator[tuple[Key, Tensor, Tensor]]:
        """(site, layer), zero-shot activations and differences, each (samples, width) fp32."""
        if not self.kept.shape[1]:
            raise RuntimeError("no activations were kept")
        zero, difference = (self._split(table) for table in self.kept)
        for key in self.widths:
            yield key, zero[key], difference[key]

    def _count(self) -> int:
        count = int(self.done.sum())
        if not count:
            raise RuntimeError("no pair was run")
        return count

    def tensors(self) -> dict[str, Tensor]:
        """All that was seen; the tensors of devices that ran different pairs add up."""
        return {"done": self.done.double(), "sums": self.sums, "kept": self.kept}

    def set(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace what was seen."""
        self.done, self.sums, self.kept = tensors["done"] > 0, tensors["sums"], tensors["kept"]

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the model's name and weights, its dtype and precision, the prompts and what is read of them."""
        llm = self._model.llm
        parts: list[object] = [self._model.identity, fingerprint(llm), str(llm.dtype), self._precision]
        parts += [[list(key) for key in self.widths], self.kept.shape[1]]
        prompts = [[(*p.prefix, *p.suffix) for p in prompts] for prompts in self._prompts]
        return hashlib.sha256(json.dumps([parts, prompts]).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write what was seen, to go on from after an interruption."""
        made = {"fingerprint": self.fingerprint}
        write_atomically(path, lambda temporary: save_file(self.tensors(), temporary, metadata=made))

    def restore(self, paths: Sequence[Path]) -> None:
        """Add what files of `save` hold, of any number of devices; pairs that two files hold count once.

        Raises:
            UserError: a file is damaged, or was made of another model, in another precision or of other samples.
        """
        found, expected = [], self.fingerprint  # taken now, of the model as the user gave it
        for path in paths:
            try:
                with safe_open(path, "pt") as file:
                    same = (file.metadata() or {}).get("fingerprint") == expected
                    found.append({name: file.get_tensor(name) for name in ("done", "sums", "kept")})
            except (SafetensorError, OSError) as error:
                raise UserError(f"cannot read {path}, part of an earlier extraction: {error}; delete it") from error
            if not same:
                raise UserError(
                    f"{path} is part of an extraction with another model, other samples or other settings; delete it, "
                    "or repeat the command that made it"
                )
        for tensors in sorted(found, key=lambda t: -float(t["done"].sum())):
            if not (self.done & (tensors["done"] > 0)).any():
                self.set({name: value + tensors[name] for name, value in self.tensors().items()})
