"""Rows of `bench_engine.py` on extraction, sweeps, generation and few-shot evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from bench_common import Row, faster, in_turn, prompts_of_length, relative
from bench_peers import Ask
from transformers import DynamicCache

import cast
import laai
from cast.extraction import draw
from laai.engine import answer_logits, sweep, token_nll
from laai.evaluation import measure
from laai.models import LanguageModel, find_decoder
from laai.prompts import IGNORE, Prompt, Template, collate
from laai.steering import Intervention, record_last_token

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)


def extraction_rows(
    model: LanguageModel, ask: Ask | None, shared: bool, quick: bool = False, shots: int = 5
) -> list[Row]:
    """Extraction of 50 samples (`quick`: 10, once) against one prompt at a time, and against steering-vectors."""
    samples = 10 if quick else 50
    task = laai.load_task("antonym")
    template = Template(model.tokenizer, task)
    chosen, shown = draw(task.examples, samples, shots, 0, shared=shared)
    few = [template.prompt_text(s.input, d) for s, d in zip(chosen, shown, strict=True)]
    zero = [template.prompt_text(s.input) for s in chosen]
    layers = range(len(find_decoder(model.llm).layers))

    @torch.no_grad()
    def one_by_one() -> torch.Tensor:
        total = torch.zeros(len(layers), model.llm.config.hidden_size)
        with record_last_token(model.llm, "residual", layers) as seen:
            for texts, sign in ((few, 1), (zero, -1)):
                for text in texts:
                    model.llm(torch.tensor([model.tokenizer.encode(text)]), use_cache=False, logits_to_keep=1)
                    total += sign * torch.stack([seen[i][0] for i in layers])
        return total / samples

    def ours() -> Intervention:
        return cast.extract(
            model, task, samples=samples, shots=shots, site="residual", shared_shots=shared, progress=False
        )

    vector = ours()
    expected = one_by_one()
    for i in layers:
        torch.testing.assert_close(vector["residual", i].detach(), expected[i], rtol=1e-3, atol=1e-3)
    tasks = {"ours": ours, "one by one": one_by_one}
    kind = "shared demonstrations" if shared else "demonstrations drawn per sample"
    if ask is not None:
        tasks["steering-vectors, batches of 16"] = lambda: ask("extract", positive=few, negative=zero, batch_size=16)
    seconds = in_turn(tasks, 1 if quick else 3, warm=not quick)
    return [
        faster(f"extraction: {name} / ours, {kind}", seconds["ours"] / samples, seconds[name] / samples, "s a sample")
        for name in tasks
        if name != "ours"
    ]


def grid_rows(model: LanguageModel, tokens: int = 64, count: int = 100, plain_runs: int = 5) -> list[Row]:
    """All layers × 5 scales on 100 examples, against evaluations one at a time (some, the rest by multiplication)."""
    prompts = prompts_of_length(model, tokens, count)
    depth = len(find_decoder(model.llm).layers)
    whole = Intervention.random(model, "residual", range(depth), norm=2.0)
    candidates = [whole.select(layers=[layer]) for layer in range(depth)]
    places = [(layer, scale) for layer in (3, 10, 17, 24, 29) for scale in (1.0,)][:plain_runs]
    found: dict[str, list[torch.Tensor]] = {"plain": []}

    @torch.no_grad()
    def plain(vector: Intervention | None) -> torch.Tensor:
        nlls = []
        with torch.no_grad():
            for start in range(0, count, 25):
                batch = collate(prompts[start : start + 25], 0)
                if vector is None:
                    logits = answer_logits(model.llm, batch)
                else:
                    with vector.on(model):
                        logits = answer_logits(model.llm, batch)
                nlls.append(token_nll(logits, batch.labels).sum(-1) / (batch.labels != IGNORE).sum(-1))
        return torch.cat(nlls)

    def several() -> None:
        found["plain"] = [plain(scale * candidates[layer]) for layer, scale in places]

    def grid() -> None:
        found["grid"] = list(sweep(model, candidates, SCALES, prompts).nll)

    seconds = in_turn({"grid": grid, "zero-shot": lambda: plain(None), "several": several}, 1, warm=False)
    for (layer, scale), nll in zip(places, found["plain"], strict=True):
        torch.testing.assert_close(found["grid"][layer][SCALES.index(scale)], nll, rtol=1e-3, atol=1e-3)
    each = seconds["several"] / len(places)
    name = f"{depth} layers x {len(SCALES)} scales, {count} examples of {tokens} tokens"
    return [
        relative(f"grid of {name} / one zero-shot evaluation", seconds["grid"], seconds["zero-shot"], "s"),
        faster(f"{depth * len(SCALES)} evaluations / grid of {name}", seconds["grid"], each * depth * len(SCALES), "s"),
    ]


def generation_rows(model: LanguageModel, quick: bool = False, prompt_tokens: int = 64) -> list[Row]:
    """Milliseconds a token of greedy generation, one prompt at a time: no hook, vectors, and from a kept prefix."""
    new = 12 if quick else 48
    (prompt,) = prompts_of_length(model, prompt_tokens, 1)
    ids = torch.tensor([prompt.prompt])
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    llm: Any = model.llm
    rows: list[Row] = []
    one = Intervention.random(model, "residual", [10], norm=1.0)
    many = Intervention.random(model, "heads", range(20), norm=1.0)
    always = Intervention.random(model, "residual", [10], norm=1.0, positions="generated")

    @torch.no_grad()
    def generate(vector: Intervention | None = None, cache: DynamicCache | None = None) -> None:
        kept = {} if cache is None else {"past_key_values": cache}
        if vector is None:
            llm.generate(ids, **options, **kept)
        else:
            with vector.on(model):
                llm.generate(ids, **options, **kept)

    from laai.engine import prefix_of

    prefix = prefix_of(llm, ids[:, :-1], torch.ones_like(ids[:, :-1]))
    ways: dict[str, Callable[[], object]] = {
        "none": generate,
        "20 vectors at heads, last_prompt": lambda: generate(many),
    }
    if not quick:
        ways["one vector at last_prompt"] = lambda: generate(one)
        ways["one vector at generated"] = lambda: generate(always)
        ways["one vector at last_prompt, from a kept prefix"] = lambda: generate(one, prefix.continued())
    seconds = in_turn(ways, 3 if quick else 5)
    for name, value in seconds.items():
        if name != "none":
            ours, rival = 1000 * value / new, 1000 * seconds["none"] / new
            rows.append(relative(f"generation with {name} / without", ours, rival, "ms a token"))
    return rows


def few_shot_rows(model: LanguageModel, quick: bool = False, shots: int = 10) -> list[Row]:
    """A few-shot evaluation (generation and likelihood) with the demonstrations run once, against whole prompts."""
    queries = 20 if quick else 100
    task = laai.load_task("antonym")
    template = Template(model.tokenizer, task)
    splits = task.split(shots, test=queries, seed=0)
    examples = list(enumerate(splits.test))
    found: dict[str, list[bool]] = {}

    def shared() -> None:
        found["shared"] = [m.exact for m in measure(model.llm, template, examples, splits.train, batch_size=25)]

    def plain() -> None:
        found["plain"] = whole_prompts(model, template, examples, splits.train)

    seconds = in_turn({"shared": shared, "plain": plain}, 1 if quick else 2, warm=False)
    assert found["shared"] == found["plain"], "both measure the same"
    name = f"{shots}-shot evaluation of {queries} queries"
    return [faster(f"{name}: whole prompts / shared demonstrations", seconds["shared"], seconds["plain"], "s")]


@torch.no_grad()
def whole_prompts(
    model: LanguageModel,
    template: Template,
    examples: Sequence[tuple[int, laai.Example]],
    shots: Sequence[laai.Example],
) -> list[bool]:
    """The same evaluation as it is written without an engine: batches of whole prompts, generate and then score."""
    prompts = [template.encode(e.input, shots, e.output) for _, e in examples]
    limit = max(len(p.answer) for p in prompts)
    llm: Any = model.llm
    exact = []
    for start in range(0, len(prompts), 25):
        part = prompts[start : start + 25]
        bare = collate([Prompt(p.prefix, p.suffix[:1]) for p in part], 0)
        ids, mask = (
            torch.cat(pair, 1) for pair in ((bare.prefix_ids, bare.suffix_ids), (bare.prefix_mask, bare.suffix_mask))
        )
        out = llm.generate(ids, attention_mask=mask, max_new_tokens=limit, do_sample=False)
        texts = model.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        answers = [e.output for _, e in examples[start : start + 25]]
        exact += [t.strip().splitlines()[:1] == [a] for t, a in zip(texts, answers, strict=True)]
        answer_logits(model.llm, collate(part, 0))
    return exact
