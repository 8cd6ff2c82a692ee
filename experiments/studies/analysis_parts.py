"""The parts of `cast_analysis.py` that steer: number and choice of samples, wording, layers and scales, cost."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from transfer_tasks import Tasks, thinned
from vector_geometry import compare_tasks

from cast.extraction import Contrast, Samples, centred, contrast_of, draw, extract_from, fit_ridge, with_label_prior
from cast.selection import state_embeddings
from cast.transfers import TRANSFER_SCALES, Placement, choose_placement, grid, scale_by_layer
from laai.compare import Options, Row
from laai.engine import answer_logits
from laai.errors import UserError
from laai.evaluation import Measured, measure
from laai.models import LanguageModel
from laai.prompts import Shown, Template, collate
from laai.runtime import FewShotDataModule
from laai.steering import Intervention, RidgeMap
from laai.tasks import Example, Task

Places = Sequence[Sequence[int]]
Steering = Intervention | RidgeMap
VARIANTS = (
    *("difference", "all layers", "residual", "few-shot only", "norm kept", "generated", "centred", "mean of tasks"),
    *("no label prior", "ridge", "scale by layer"),
)
EXTRACTED: dict[str, dict[str, Any]] = {
    "residual": {"site": "residual"}, "few-shot only": {"kind": "few_shot"}, "norm kept": {"preserve_norm": True},
    "generated": {"positions": "generated"},
}  # fmt: skip
"""Variants that are extracted otherwise."""
CENTRED = ("centred", "mean of tasks")
SAME_PLACE = ("difference", "no label prior", "ridge", "scale by layer")
WORDINGS = ("{}", "Task: {}", "Look at each item and answer. {}", "{} Reply with the answer only, nothing else.", "")
COST_SHOTS = (0, 1, 2, 5, 10, 20)


class Parts(Tasks):
    """One model, its tasks, and what several rows need."""

    def __init__(self, model: LanguageModel, options: Options) -> None:
        super().__init__(options)
        self.model = model
        self._vectors: dict[tuple[str, str, int], Intervention] = {}
        self._zero: dict[tuple[str, int, bool], Row] = {}
        self._choices: dict[tuple[str, str, int, str], Placement] = {}

    def vectors(self, seed: int, tasks: Sequence[str]) -> Row:
        """Difference vectors of tasks compared."""
        thin = {name: thinned(self.task(name), self.options.pool, seed) for name in tasks}
        return compare_tasks({name: self.contrast(task, seed) for name, task in thin.items()}, seed)

    def contrast(self, task: Task, seed: int) -> Contrast:
        """Every sample's activations, few-shot and zero-shot."""
        template = Template(self.model.tokenizer, task)
        return contrast_of(self.model, template, *self.drawn(task, seed), site="heads", keep=True, progress=False)

    def drawn(self, task: Task, seed: int) -> Samples:
        """Samples and their demonstrations."""
        return draw(task.examples, self.options.samples, self.options.shots, seed)

    def vector(self, task: Task, drawn: Samples, **options: Any) -> Intervention:
        """The CAST vector of drawn samples."""
        settings: dict[str, Any] = {"site": "heads", "progress": False} | options
        return extract_from(self.model, Template(self.model.tokenizer, task), *drawn, **settings)

    def steered(self, vector: Intervention, target: str, seed: int, task: Task | None = None) -> Row:
        """Exact match by query of a vector at its chosen place, with its label prior where it has one, and without."""
        template = Template(self.model.tokenizer, task or self.task(target))
        choice = self.choice(vector, template, target, seed)
        steering = with_label_prior(self.model, choice.of(vector), template, self.data(target, seed).splits.validation)
        return self.under(steering, choice, template, target, seed)

    def choice(
        self, vector: Intervention, template: Template, target: str, seed: int, places: Places | None = None
    ) -> Placement:
        """Layers and scale of a vector, chosen on the development examples."""
        settings: dict[str, Any] = {"places": places or self.places(), "progress": False}
        return choose_placement(self.model, vector, template, self.data(target, seed).splits.validation, **settings)

    def under(
        self, steering: Steering, choice: Placement, template: Template, target: str, seed: int, choices: bool = False
    ) -> Row:
        """Test queries while steered, and without; with `choices`, forced choice too where the target has options."""
        with steering.on(self.model):
            found = _scored(self.measured(template, target, seed, choices))
        key = (target + template.task.instruction, seed, choices)
        if key not in self._zero:
            self._zero[key] = _scored(self.measured(template, target, seed, choices))
        zero = {"zero": self._zero[key]["exact"], "zero_choice": self._zero[key]["choice"]}
        place = {"layers": [choice.layers[0], choice.layers[-1]], "scale": choice.scale, "helps": choice.helps}
        place |= {"label_prior": steering.provenance.label_prior is not None, "factors": choice.factors}
        return found | zero | {"gain": choice.gain, "place": place}

    def measured(self, template: Template, target: str, seed: int, choices: bool = False) -> list[Measured]:
        """Test queries of a target under whatever is attached; their options only if `choices`."""
        queries = self.data(target, seed).splits.test
        asked = queries if choices else [replace(e, choices=None, label=None) for e in queries]
        numbered = list(enumerate(asked))
        return measure(self.model, template, numbered, batch_size=20, engine=self.engine(self.model, target, seed))

    def places(self) -> list[tuple[int, ...]]:
        """All layers, and the first two thirds."""
        depth = len(self.model.decoder.layers)
        return [tuple(range(depth)), tuple(range(2 * depth // 3))]

    def samples(self, source: str, target: str, seed: int, labels: int) -> Row:
        """So many labelled source samples and no other label of the source: as a vector, and as demonstrations.

        Fewer are the first of more.
        """
        pool = self.pool(source, target, seed)
        if len(pool.examples) < labels:
            raise UserError(f"--counts {labels}: {source} has {len(pool.examples)} examples that {target} leaves it")
        # Shuffled here: a table that --pool does not thin comes in its own order, the same for all seeds.
        chosen = random.Random(seed).sample(pool.examples, len(pool.examples))[:labels]
        drawn = draw(chosen, labels, min(self.options.shots, labels - 1), seed, from_selected=True)
        found = self.steered(self.vector(pool, drawn), target, seed)
        template = replace(Template(self.model.tokenizer, self.task(target)), before=Shown(pool, tuple(chosen)))
        return found | {"prompted": _scored(self.measured(template, target, seed))["exact"]}

    def strategies(self, source: str, target: str, seed: int, budget: int, strategy: Any) -> Row:
        """Samples by a strategy; their demonstrations come from the samples alone, so that the budget is all."""
        pool, o = self.pool(source, target, seed), self.options
        drawn = draw(
            pool.examples, budget, min(o.shots, budget - 1), seed, strategy=strategy, from_selected=True,
            embed=lambda examples: state_embeddings(self.model, [e.input for e in examples], progress=False),
        )  # fmt: skip
        return self.steered(self.vector(pool, drawn), target, seed)

    def variants(self, source: str, target: str, seed: int, variant: str) -> Row:
        """What the vector is, and how it is added.

        `mean of tasks` is what the sources of all --pairs have in common, `centred` the vector less that mean. The
        source is one of them: with n sources, `centred` is also less 1/n of the source's own vector. `ridge` adds what
        a ridge map predicts from each query's own state, at the place of `difference`. `generated` steers the tokens of
        the answer too. Neither can have a label prior, nor `norm kept`. `scale by layer` goes on from the place of
        `difference` to a scale for each sixth of the depth.
        """
        pool, data, o = self.pool(source, target, seed), self.data(target, seed), self.options
        template, examples = data.template(self.model.tokenizer), data.splits.validation
        options = EXTRACTED.get(variant, {})
        each = [(i,) for i in range(len(self.model.decoder.layers))]
        elsewhere: dict[str, Places] = {"residual": each, "all layers": self.places()[:1]}
        vector = self.vector(pool, self.drawn(pool, seed), **options) if options else self.centre(source, target, seed)
        if variant in CENTRED:
            others = [self.centre(one, target, seed) for one in sources_of(o.pairs, target)]
            zero = vector.with_vectors({key: torch.zeros_like(v) for key, v in vector.items()})
            vector = centred(vector, others) if variant == "centred" else -1.0 * centred(zero, others)
        key = (source, target, seed, "difference" if variant in SAME_PLACE else variant)
        if key not in self._choices:
            self._choices[key] = self.choice(vector, template, target, seed, elsewhere.get(variant))
        choice = self._choices[key]
        if variant == "scale by layer":
            choice = scale_by_layer(self.model, vector, template, examples, choice)
        steering: Steering = choice.of(vector)
        if variant == "ridge":
            steering = choice.scale * fit_ridge(self.contrast(pool, seed), self.model).select(choice.layers)
        elif variant != "no label prior":
            steering = with_label_prior(self.model, choice.of(vector), template, examples)
        told = {"sources": sources_of(o.pairs, target)} if variant in CENTRED else {}
        return told | self.under(steering, choice, template, target, seed, choices=True)

    def centre(self, name: str, target: str, seed: int) -> Intervention:
        """The vector of a source: `difference`, and what means are taken over."""
        key = (name, target, seed)
        if key not in self._vectors:
            pool = self.pool(name, target, seed)
            self._vectors[key] = self.vector(pool, self.drawn(pool, seed))
        return self._vectors[key]

    def wording(self, source: str, target: str, seed: int) -> Row:
        """The vector from each wording of the source's instruction; the target under each wording with each vector."""
        pool, task = self.pool(source, target, seed), self.task(target)
        drawn = self.drawn(pool, seed)
        vectors = [self.vector(replace(pool, instruction=w.format(pool.instruction)), drawn) for w in WORDINGS]
        flat = torch.stack([torch.cat([v.detach() for _, v in vector.items()]) for vector in vectors])
        unit = torch.nn.functional.normalize(flat, dim=-1)
        worded = [replace(task, instruction=w.format(task.instruction)) for w in WORDINGS]
        steered = [[self.steered(vector, target, seed, one) for vector in vectors] for one in worded]
        return {
            "wordings": list(WORDINGS),
            "cosines": (unit @ unit.T).tolist(),
            "exact": [[sum(found["exact"]) / len(found["exact"]) for found in row] for row in steered],
            "zero": [sum(row[0]["zero"]) / len(row[0]["zero"]) for row in steered],
        }

    def profile(self, source: str, target: str, seed: int) -> Row:
        """Probability of the answer by layers and scale: sixths of the layers at `heads`, each at `residual`."""
        pool, data = self.pool(source, target, seed), self.data(target, seed)
        drawn = self.drawn(pool, seed)
        template, examples = data.template(self.model.tokenizer), data.splits.validation
        depth, found = len(self.model.decoder.layers), {}
        sixths = [part for i in range(6) if (part := tuple(range(depth * i // 6, depth * (i + 1) // 6)))]
        for site, places in (("heads", [*sixths, *self.places()]), ("residual", [(i,) for i in range(depth)])):
            vector = self.vector(pool, drawn, site=site)
            table = grid(
                self.model, vector, template, examples, scales=(0.25, *TRANSFER_SCALES), places=places, progress=False
            )
            found[site] = {
                "places": [[place[0], place[-1]] for place in table.layers],
                "scales": list(table.scales),
                "probability": table.probability.mean(-1).tolist(),
                "exact": table.exact.float().mean(-1).tolist(),
            }
        return found

    def cost(self, task: str, seed: int) -> Row:
        """Prompt tokens, cache bytes and time of a query: a vector beside prompts of more and more demonstrations."""
        data = self.data(task, seed)
        shown = data.task.split(max(COST_SHOTS), test=self.options.queries, seed=seed).train
        vector = Intervention.random(self.model, "heads", self.places()[0], norm=1e-3, seed=0)
        found = [{"method": "vector"} | self._cost(data, (), vector)]
        found += [{"method": f"{n} shots"} | self._cost(data, shown[:n], None) for n in COST_SHOTS]
        return {"rows": found}

    def _cost(self, data: FewShotDataModule, shown: Sequence[Example], vector: Intervention | None) -> Row:
        """One query at a time, its whole prompt, as a server without a prefix cache would run it; medians."""
        model, seconds, tokens = self.model, [], []
        template, queries = data.template(model.tokenizer), data.splits.test
        batches = [collate([template.encode(q.input, shown)], model.pad).to(model.device) for q in queries]
        with nullcontext() if vector is None else vector.on(model), torch.no_grad():
            for batch in [batches[0], *batches]:  # the first to warm up
                began = time.perf_counter()
                answer_logits(model, batch)
                seconds.append(1000 * (time.perf_counter() - began))
                tokens.append(int(batch.prompt_lengths))
        prefix = batches[0].prefix_ids
        cache = model.llm(input_ids=prefix, use_cache=True).past_key_values
        size = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values)) / prefix.numel()
        middle, median = (sorted(values[1:])[len(queries) // 2] for values in (tokens, seconds))
        return {"prompt_tokens": middle, "cache_bytes": int(middle * size), "ms_to_first_token": median}


def sources_of(pairs: Sequence[str], target: str) -> list[str]:
    """The sources of all pairs SOURCE:TARGET, whose vectors a mean is taken over, but for the target itself."""
    return [one for one in dict.fromkeys(pair.partition(":")[0] for pair in pairs) if one != target]


def _scored(measured: Sequence[Measured]) -> Row:
    """By query; no `choice` where a query was asked without options."""
    rows = sorted(measured, key=lambda m: m.row)
    choice = [int(m.choice_sum) for m in rows if m.choice_sum is not None]
    return {"exact": [int(m.exact) for m in rows], "choice": choice if len(choice) == len(rows) else None}
