"""Rows of `engine.py` on extraction, sweeps, generation and few-shot evaluation, and the prompts of all rows."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import torch
from measuring import Row, Tasks, faster, in_turn, over_first, relative
from peers import Bench

import cast
import laai
from cast.extraction import draw
from laai.engine import Engine, answer_logits, token_nll
from laai.evaluation import measure
from laai.models import LanguageModel
from laai.prompts import IGNORE, Prompt, Template, collate
from laai.steering import Intervention, record_last_token
from laai.tasks import Splits

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
AT_ONCE = 25  # prompts in a batch


def prompts_of_length(model: LanguageModel, tokens: int, count: int) -> list[Prompt]:
    """Real prompts of exactly `tokens` tokens with their answers: a query behind as much of other examples as fits.

    Every prompt has other examples before its query, so that no two share a beginning. Answers have one token and a
    terminator.
    """
    table = laai.load_task("antonym")
    template = Template(model.tokenizer, table)
    encoded = [template.encode(e.input, answer=e.output) for e in table.examples]
    shots = table.examples[-120:]
    made = []
    for i, prompt in enumerate([p for p in encoded if len(p.answer) == 2 and len(p.prompt) <= 12][:count]):
        turn = 7 * i % len(shots)
        before = template.encode("", [*shots[turn:], *shots[:turn]]).prompt
        made.append(Prompt((*before[: tokens - len(prompt.prompt)], *prompt.prefix), prompt.suffix))
        assert len(made[-1].prompt) == tokens, "not enough text for prompts of this length"
    assert len(made) == count
    return made


def extraction_rows(bench: Bench, shared: bool, shots: int = 5) -> list[Row]:
    """Extraction of 50 samples (`quick`: 10, once) against one prompt at a time, and against steering-vectors."""
    model, ask, quick = bench
    samples = 10 if quick else 50
    task = laai.load_task("antonym")
    template = Template(model.tokenizer, task)
    chosen, shown = draw(task.examples, samples, shots, 0, shared=shared)
    few = [template.prompt_text(s.input, d) for s, d in zip(chosen, shown, strict=True)]
    zero = [template.prompt_text(s.input) for s in chosen]
    layers = range(len(model.decoder.layers))

    @torch.no_grad()
    def one_by_one() -> torch.Tensor:
        total = torch.zeros(len(layers), model.llm.config.hidden_size)
        with record_last_token(model, "residual", layers) as seen:
            for text, sign in [(text, 1) for text in few] + [(text, -1) for text in zero]:
                model.llm(torch.tensor([model.tokenizer.encode(text)]), use_cache=False, logits_to_keep=1)
                total += sign * torch.stack([seen[i][0] for i in layers])
        return total / samples

    def ours() -> Intervention:
        options: dict[str, Any] = {"site": "residual", "shared_shots": shared, "progress": False}
        return cast.extract(model, task, samples=samples, shots=shots, **options)

    tasks: Tasks = {"ours": ours, "one by one": one_by_one}
    if ask is not None:
        tasks["steering-vectors, batches of 16"] = lambda: ask("extract", positive=few, negative=zero, batch_size=16)
    seconds, found = in_turn(tasks, 1 if quick else 3)
    for i in layers:
        torch.testing.assert_close(found["ours"]["residual", i].detach(), found["one by one"][i], rtol=1e-3, atol=1e-3)
    kind = "shared demonstrations" if shared else "demonstrations drawn per sample"
    each = {name: value / samples for name, value in seconds.items()}
    return over_first(f"extraction: {{}} / ours, {kind}", each, "s a sample")


def grid_rows(bench: Bench, tokens: int = 64) -> list[Row]:
    """All layers × 5 scales on 100 examples, against evaluations one at a time (some, the rest by multiplication)."""
    model, _, quick = bench
    prompts = prompts_of_length(model, tokens, 25 if quick else 100)
    depth = len(model.decoder.layers)
    whole = Intervention.random(model, "residual", range(depth), norm=2.0)
    candidates = [whole.select(layers=[layer]) for layer in range(depth)]
    places = (3, 10, 17, 24, 29)[: 1 if quick else 5]  # layers to try plainly, at scale 1

    @torch.no_grad()
    def plain(vector: Intervention | None = None) -> torch.Tensor:
        nlls = []
        for start in range(0, len(prompts), AT_ONCE):
            batch = collate(prompts[start : start + AT_ONCE], 0)
            with nullcontext() if vector is None else vector.on(model):
                logits = answer_logits(model, batch)
            nlls.append(token_nll(logits, batch.labels).sum(-1) / (batch.labels != IGNORE).sum(-1))
        return torch.cat(nlls)

    tasks: Tasks = {
        "grid": lambda: Engine(model).sweep(candidates, SCALES, prompts).nll,
        "zero-shot": plain,
        "several": lambda: [plain(candidates[layer]) for layer in places],
    }
    seconds, found = in_turn(tasks, 1, warm=False)
    for layer, nll in zip(places, found["several"], strict=True):
        torch.testing.assert_close(found["grid"][layer][SCALES.index(1.0)], nll, rtol=1e-3, atol=1e-3)
    count = depth * len(SCALES)
    name = f"grid of {depth} layers x {len(SCALES)} scales, {len(prompts)} examples of {tokens} tokens"
    return [
        relative(f"{name} / one zero-shot evaluation", seconds["grid"], seconds["zero-shot"], "s"),
        faster(f"{count} evaluations / {name}", seconds["grid"], seconds["several"] / len(places) * count, "s"),
    ]


def generation_rows(bench: Bench, prompt_tokens: int = 64) -> list[Row]:
    """Milliseconds a token of greedy generation, one prompt at a time: no hook, vectors, and from a kept prefix."""
    model, _, quick = bench
    llm: Any = model.llm
    new = 12 if quick else 48
    ids = torch.tensor([prompts_of_length(model, prompt_tokens, 1)[0].prompt])
    mask = torch.ones_like(ids)
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "attention_mask": mask}
    one = Intervention.random(model, "residual", [10], norm=1.0)
    many = Intervention.random(model, "heads", range(20), norm=1.0)
    always = Intervention.random(model, "residual", [10], norm=1.0, positions="generated")
    prefix = llm(ids[:, :-1], use_cache=True).past_key_values

    @torch.no_grad()
    def generate(vector: Intervention | None = None, **kept: object) -> None:
        with nullcontext() if vector is None else vector.on(model):
            llm.generate(ids, **options, **kept)

    ways: Tasks = {"none": generate, "20 vectors at heads, last_prompt": lambda: generate(many)}
    if not quick:
        ways["one vector at last_prompt"] = lambda: generate(one)
        ways["one vector at generated"] = lambda: generate(always)
        ways["one vector at last_prompt, from a kept prefix"] = lambda: generate(
            one, past_key_values=copy.deepcopy(prefix)
        )
    none, *others = ((name, 1000 * value / new) for name, value in in_turn(ways, 3 if quick else 5)[0].items())
    return [relative(f"generation with {name} / without", ms, none[1], "ms a token") for name, ms in others]


def few_shot_rows(bench: Bench, shots: int = 10) -> list[Row]:
    """A few-shot evaluation (generation and likelihood) with the demonstrations run once, against whole prompts."""
    model, _, quick = bench
    queries = 20 if quick else 100
    task = laai.load_task("antonym")
    template = Template(model.tokenizer, task)
    splits = task.split(shots, test=queries, seed=0)
    examples = list(enumerate(splits.test))
    tasks: Tasks = {
        "shared": lambda: [m.exact for m in measure(model, template, examples, splits.train, batch_size=AT_ONCE)],
        "plain": lambda: whole_prompts(model, template, splits),
    }
    seconds, found = in_turn(tasks, 1 if quick else 2, warm=False)
    assert found["shared"] == found["plain"], "both measure the same"
    name = f"{shots}-shot evaluation of {queries} queries"
    return [faster(f"{name}: whole prompts / shared demonstrations", seconds["shared"], seconds["plain"], "s")]


@torch.no_grad()
def whole_prompts(model: LanguageModel, template: Template, splits: Splits) -> list[bool]:
    """The same evaluation as it is written without an engine: batches of whole prompts, generate and then score."""
    prompts = [template.encode(e.input, splits.train, e.output) for e in splits.test]
    limit = max(len(p.answer) for p in prompts)
    llm: Any = model.llm
    exact = []
    for start in range(0, len(prompts), AT_ONCE):
        part = prompts[start : start + AT_ONCE]
        bare = collate([Prompt(p.prefix, p.suffix[:1]) for p in part], 0)
        ids = torch.cat((bare.prefix_ids, bare.suffix_ids), 1)
        mask = torch.cat((bare.prefix_mask, bare.suffix_mask), 1)
        out = llm.generate(ids, attention_mask=mask, max_new_tokens=limit, do_sample=False)
        texts = model.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        answers = [e.output for e in splits.test[start : start + AT_ONCE]]
        exact += [t.strip().splitlines()[:1] == [a] for t, a in zip(texts, answers, strict=True)]
        answer_logits(model, collate(part, 0))
    return exact
