"""`Engine`: forwards of one frozen language model in which nothing is run twice that no vector can change.

A vector at `last_prompt` or `generated` changes neither the tokens before the last prompt token nor the layers below
the first steered one. So those tokens are run once (`prefix`) and attended to where they lie (`split_attention`), and
those layers are left out (`skipping`). The first time the result is compared with that of the whole forward
(`agreement`), and what does not agree is not used: every method answers all the same, by whole prompts if it must.

It cannot see adapters, nor that the model moves to another device: that must be followed by `clear`.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from laai.engine.agreement import computing_dtype, find_way
from laai.engine.beginnings import Beginnings, Passes, Started, batches_of, begin, behind_beginning
from laai.engine.forward import answer_logits, write
from laai.engine.frozen import Agreed, FrozenBatch, Way
from laai.engine.prefix import NoPrefixError, run_prefix
from laai.engine.skipping import unchanged_layers
from laai.engine.steered import Steered
from laai.engine.store import Memory, PrefixStore
from laai.engine.sweep import SweepScores, logits_at
from laai.models import LanguageModel
from laai.prompts import Batch, Prompt, without_unlabelled_end
from laai.steering import Intervention, Key, attachments, check_fits, is_compiled, record_last_token
from laai.vocabulary import PrefixBudget, Site

Batches = Callable[[Sequence[Prompt], int], Iterator[Started]]
"""Gives prompts in batches of a size, of which some tokens are run already."""


class Read(NamedTuple):
    """What one batch of prompts gave at their last tokens.

    Attributes:
        rows: which prompts these are.
        logits: (rows, vocabulary).
        states: (site, layer) -> (rows, width), in the model's dtype.
    """

    rows: list[int]
    logits: Tensor
    states: dict[Key, Tensor]


class Engine:
    """One model's forwards, and what they keep.

    Args:
        model: the language model, with whatever vectors are attached when a method is called.
        budget: bytes for all that is kept, prefixes, states and common beginnings: `auto` for half of what is free,
            `off` to keep no prompt's own prefix, and run whole prompts wherever they come again.
    """

    def __init__(self, model: LanguageModel, budget: PrefixBudget = "auto") -> None:
        self.model, self.budget = model, budget
        self._memory = Memory("auto" if budget == "off" else budget)
        self._beginnings = Beginnings(self._memory)
        own = None if budget != "off" and not model.sharded else False
        self._passes = Passes(model, PrefixStore(self._memory), self._beginnings, own)
        self._steered = weakref.WeakSet[Steered]()
        self._agreed: dict[tuple[int, torch.dtype], Agreed | None] = {}

    def clear(self) -> None:
        """Forget everything that was kept; what was settled stays."""
        self._passes.clear()
        self._beginnings.clear()
        for steered in self._steered:
            steered.clear()

    @property
    def way(self) -> Way | None:
        """How prefixes are attended to, as settled last; None for whole prompts, and before anything is settled."""
        agreed = next(reversed(self._agreed.values()), None)
        return None if agreed is None else agreed.way

    def settle(self, batch: Batch, vectors: Intervention) -> Agreed | None:
        """How a batch like this is continued under these attached vectors; None where whole prompts have to be run.

        Asked of the model once for each number of layers that are skipped, and each precision.
        """
        below = unchanged_layers(self.model.decoder, [key for key, _ in vectors.items()])
        case = len(below), computing_dtype(self.model)
        if case not in self._agreed:
            self._agreed[case] = self._compared(batch, vectors, below)
        return self._agreed[case]

    def _compared(self, batch: Batch, vectors: Intervention, below: Sequence[nn.Module]) -> Agreed | None:
        if any(map(is_compiled, self.model.llm.modules())):
            reason = "it is compiled"
        elif self.model.sharded:  # all processes would have to agree on every forward
            reason = "its parameters are sharded"
        elif (agreed := find_way(self.model, batch, below, vectors)) is not None:
            return agreed
        else:
            reason = "its forward after a kept prefix is not that over the whole prompt"
        if None not in self._agreed.values():  # said once
            logging.getLogger("laai").warning(
                "this model cannot continue a frozen prefix (%s): every step runs whole prompts", reason
            )
        return None

    def steered(self, vectors: Intervention, alone: bool = False, recompute: bool = False) -> Steered:
        """Forwards of batches that come again, under vectors that are attached and stay so; see `Steered`."""
        settle = None if self.budget == "off" else partial(self.settle, vectors=vectors)
        steered = Steered(self.model, vectors, PrefixStore(self._memory), settle, alone=alone, recompute=recompute)
        self._steered.add(steered)
        return steered

    def freeze(self, batch: Batch, candidates: Sequence[Intervention]) -> FrozenBatch:
        """A batch for many vectors, none of them attached: its prefix is run, and nothing is kept after it.

        Whole prompts are run where it has no prefix, or the model cannot continue it under the middle one of these
        vectors by depth, under which some layers are skipped and some are run.
        """
        free = sorted((c for c in candidates if c.positions != "all"), key=lambda c: min(c.layers))
        if not free or not batch.prefix_ids.shape[1]:
            return FrozenBatch(self.model, batch)
        probe = free[len(free) // 2]
        with probe.on(self.model):
            agreed = self.settle(batch, probe)
        with suppress(NoPrefixError):
            if agreed is not None:
                prefix = run_prefix(self.model, batch.prefix_ids, batch.prefix_mask)
                return FrozenBatch(self.model, batch, prefix, agreed.way, skips=agreed.skips)
        return FrozenBatch(self.model, batch)

    @contextmanager
    def passes(self, prompts: Sequence[Prompt], shown: bool = False) -> Iterator[Batches]:
        """For several passes over the same prompts, as of one evaluation: inside, each prompt's own prefix is run once.

        Yields a function (prompts, batch size) that gives batches of these prompts, with whatever answers.

        Args:
            prompts: all of them.
            shown: they begin with demonstrations, which are run once for all. Prefixes behind these are kept for these
                passes alone, others for later passes too.
        """
        if not self._prefixes_hold:
            yield self.started
        elif not shown or self.model.sharded:  # whose processes would have to agree on what is begun
            yield self._passes.batches
        elif self.budget == "off" or (begun := self._beginnings.of(self.model, prompts)) is None:
            yield self.started
        else:
            known, store = self._passes.continues is not False, PrefixStore(self._memory)
            behind = Passes(self.model, store, self._beginnings, known, begun, len(prompts))
            behind.store.quiet = True
            try:
                yield behind.batches
            finally:
                behind.clear()

    def begin(self, prompts: Sequence[Prompt]) -> None:
        """Run what all of these prompts begin with, if that is worth it, for batches of some of them to come."""
        if self._prefixes_hold:
            self._beginnings.of(self.model, prompts)

    def started(self, prompts: Sequence[Prompt], batch_size: int) -> Iterator[Started]:
        """Prompts in batches of similar length, behind what all of them begin with, if that is worth it."""
        known = self._beginnings.of(self.model, prompts) if self._prefixes_hold else begin(self.model, prompts)
        return behind_beginning(self.model, prompts, batch_size, known)

    @property
    def _prefixes_hold(self) -> bool:
        """Whether no vector is attached that changes a prefix."""
        return all(attached.positions != "all" for attached in attachments(self.model))

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, batch_size: int = 32) -> list[str]:
        """What the model writes after each prompt, by transformers' own `generate`, greedily. Answers are left out."""
        texts = [""] * len(prompts)
        for started in self.started(prompts, batch_size):
            found = write(self.model, started.batch, started.ids, started.before, max_new_tokens)
            for i, text in zip(started.rows, found, strict=True):
                texts[i] = text
        return texts

    @torch.no_grad()
    def logits(self, prompts: Sequence[Prompt], batch_size: int = 32) -> Iterator[tuple[list[int], Batch, Tensor]]:
        """At the answers of whole prompts, by batch: which prompts, the batch, (rows, suffix tokens, vocabulary)."""
        for rows, batch in batches_of(self.model, prompts, batch_size):
            yield rows, batch, answer_logits(self.model, batch)

    @torch.no_grad()
    def activations(
        self, prompts: Sequence[Prompt], keys: Sequence[Key], batch_size: int = 16, batches: Batches | None = None
    ) -> Iterator[Read]:
        """What is seen at the last token of prompts, answers left out.

        Args:
            prompts: at least one.
            keys: (site, layer) to read.
            batch_size: prompts run at a time; prompts of similar length go together.
            batches: of `passes`, where the same prompts come again; else what all begin with is run once.
        """
        bare = [Prompt(prompt.prefix, prompt.suffix[:1]) for prompt in prompts]
        layers = {site: [i for s, i in keys if s == site] for site, _ in keys}
        for started in (batches or self.started)(bare, batch_size):
            with ExitStack() as stack:
                seen = {s: stack.enter_context(record_last_token(self.model, s, at)) for s, at in layers.items()}
                logits = answer_logits(self.model, started.batch, started.before)[:, 0]
            yield Read(started.rows, logits, {(site, i): seen[site][i] for site, i in keys})

    def activation_rms(
        self, prompts: Sequence[Prompt], site: Site, layers: Sequence[int], batch_size: int = 16
    ) -> dict[int, float]:
        """Root mean square of an entry of the activation at the last prompt token, by layer: fp32, over all prompts."""
        count, square = 0, dict[int, Tensor]()
        for read in self.activations(prompts, [(site, i) for i in layers], batch_size):
            count += len(read.rows)
            for i in layers:
                new = read.states[site, i].float().square().mean()
                square[i] = square[i].lerp(new, len(read.rows) / count) if i in square else new
        return {i: float(square[i].sqrt()) for i in layers}

    @torch.no_grad()
    def sweep(
        self,
        candidates: Sequence[Intervention],
        scales: Sequence[float],
        prompts: Sequence[Prompt],
        *,
        batch_size: int = 32,
        on_candidate: Callable[[int], object] = lambda done: None,
    ) -> SweepScores:
        """Score each candidate at each scale on prompts with their answers.

        The prefixes are run once for all, the layers below a candidate's first vector once for all scales, and all
        scales of a candidate in one forward. Candidates at positions `all` have no such prefix: they cost a whole
        forward each.

        Args:
            candidates: interventions; their own scale is multiplied in. `vector.select(layers=[i])` for each layer
                makes a grid of layers and scales.
            scales: strengths.
            prompts: with answers.
            batch_size: prompts run at a time, each as often as there are scales.
            on_candidate: told the number of prompts whenever a candidate is done with a batch.

        Raises:
            UserError: a candidate does not fit the model.
        """
        for candidate in candidates:
            check_fits(candidate, self.model)
        below = [unchanged_layers(self.model.decoder, [key for key, _ in c.items()]) for c in candidates]
        scores = SweepScores.of(len(candidates), len(scales), len(prompts))
        for rows, whole_batch in batches_of(self.model, prompts, batch_size):
            batch = without_unlabelled_end(whole_batch)
            frozen = self.freeze(batch, candidates)
            if frozen.prefix is not None:
                frozen.run(record=[layers[-1] for layers in below if layers])
            for index, candidate in enumerate(candidates):
                usable = frozen if candidate.positions != "all" else FrozenBatch(self.model, batch)
                alone = [[i] for i in range(len(scales))]  # whole prompts, which would fill the memory if repeated
                for places in [[*range(len(scales))]] if usable.prefix is not None else alone:
                    logits = logits_at(usable, below[index], candidate, [scales[i] for i in places])
                    scores.note(index, places, rows, logits, batch.repeated(len(places)).labels)
                on_candidate(len(rows))
        return scores
