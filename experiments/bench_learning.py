"""Rows of `bench_engine.py` on learning: a training step against rivals, and the choice of a layer."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import lightning.pytorch as pl
import psutil
import torch
from bench_common import Row, faster, in_turn, peak_above, prompts_of_length, relative
from bench_peers import Ask, beft_step, lora_step

import laai
from laai.engine import mean_nll
from laai.evaluation import Method, compare
from laai.learn import SteeredLM, profile_layers
from laai.models import LanguageModel, default_model_folder, find_decoder
from laai.prompts import Prompt, collate
from laai.runtime import FewShotDataModule, encode_training
from laai.steering import Intervention
from laai.vocabulary import PrefixBudget

LAYER, BATCH = 10, 10
ROUNDS = {12: 7, 64: 5, 256: 3, 1024: 2}
AUTO_TASKS = (
    *("antonym", "country-capital", "capital-country", "country-language"),
    *("present-past", "singular-plural", "adjective-comparative", "word-sentiment"),
)


def our_step(
    model: LanguageModel, prompts: list[Prompt], prefix_cache: PrefixBudget
) -> tuple[SteeredLM, Callable[[], float]]:
    """A training step of one residual vector at the last prompt token: forward, backward, Adam."""
    batch = collate(prompts, 0)
    steered = SteeredLM(model.llm, Intervention.zeros(model, "residual", [LAYER]), prefix_cache)
    optimizer = torch.optim.Adam(steered.intervention.parameters(), lr=1e-2)

    def step() -> float:
        loss = mean_nll(steered(batch).nll, batch.labels)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return steered, step


def step_rows(model: LanguageModel, tokens: int, ask: Ask | None, quick: bool = False) -> list[Row]:
    """Time and memory of a step at prompts of `tokens` tokens: ours, by full forward, PEFT and pyreft, in turn.

    `quick`: only ours and the full forward, and fewer rounds.
    """
    prompts = prompts_of_length(model, tokens, BATCH)
    other = laai.load_model(model.name)  # each way has a model of its own, as vectors stay attached between steps
    engine, ours = our_step(model, prompts, "auto")
    began = time.perf_counter()
    ours()  # with the prefix pass and the comparison with a whole forward
    first = time.perf_counter() - began
    assert engine.engine.way == "split"
    whole, full = our_step(other, prompts, "off")
    tasks: dict[str, Callable[[], object]] = {"engine": ours, "full forward": full}
    if not quick:
        tasks |= rival_steps(model, prompts, ask)
    memory = {name: peak_above(task) for name, task in tasks.items() if name != "pyreft"}  # this warms up too
    seconds = in_turn(tasks, 1 if quick else ROUNDS[tokens], warm=tokens < 1024 and not quick)
    rows = [
        faster(f"{name} step / engine step, {tokens} tokens", seconds["engine"], seconds[name], "s")
        for name in tasks
        if name != "engine"
    ]
    rows += [
        faster(f"{name} / engine, memory of a step, {tokens} tokens", memory["engine"], memory[name], "MB")
        for name in ("full forward", "PEFT BEFT", "PEFT LoRA r=4")
        if name in memory
    ]
    engine.detach()
    whole.detach()
    fit = first + 29 * seconds["engine"]
    rows.append(
        faster(f"fit of 30 steps, prefix pass included, {tokens} tokens", fit, 30 * seconds["full forward"], "s")
    )
    return rows


def rival_steps(model: LanguageModel, prompts: list[Prompt], ask: Ask | None) -> dict[str, Callable[[], object]]:
    """A step of each other library; those that would not fit into memory are left out, and it is said."""
    folder = default_model_folder()
    makers: dict[str, Callable[..., Callable[[], object]]] = {"PEFT BEFT": beft_step, "PEFT LoRA r=4": lora_step}
    steps: dict[str, Callable[[], object]] = {}
    tokens = len(prompts[0].prompt)
    short = prompts_of_length(model, 128, BATCH) if tokens > 256 else None
    for name, make in makers.items():
        if (
            short is not None
            and (needs := peak_above(make(folder, *token_lists(short))) * tokens / 128) > free_megabytes()
        ):
            print(f"left out: {name} at {tokens} tokens, which needs about {needs / 1000:.0f} GB", file=sys.stderr)
            continue
        steps[name] = make(folder, *token_lists(prompts))
    if ask is not None:
        ids, answers = token_lists(prompts)
        if short is not None:
            short_ids, short_answers = token_lists(short)
            ask("setup", kind="pyreft", layer=LAYER, prompts=[i[:12] for i in short_ids], answers=short_answers)
            at_rest = ask("step")["peak_rss"]
            ask("setup", kind="pyreft", layer=LAYER, prompts=short_ids, answers=short_answers)
            needs = (ask("step")["peak_rss"] - at_rest) / 1e6 * tokens / 128
            if needs > free_megabytes():
                print(f"left out: pyreft at {tokens} tokens, which needs about {needs / 1000:.0f} GB", file=sys.stderr)
                return steps
        ask("setup", kind="pyreft", layer=LAYER, prompts=ids, answers=answers)
        steps["pyreft"] = partial(ask, "step")
    return steps


def token_lists(prompts: list[Prompt]) -> tuple[list[list[int]], list[list[int]]]:
    """The ids of prompts and of their answers."""
    return [list(p.prompt) for p in prompts], [list(p.answer) for p in prompts]


def free_megabytes() -> float:
    """Memory that can be had, less what the system needs to stay well."""
    return 0.85 * psutil.virtual_memory().available / 1e6


def growth_rows(model: LanguageModel, lengths: tuple[int, int] = (12, 1024), rounds: int = 15) -> list[Row]:
    """How a step of ours grows with the prompt: long and short ones in turn."""
    steps: dict[str, Callable[[], object]] = {}
    for tokens in lengths:
        engine, step = our_step(laai.load_model(model.name), prompts_of_length(model, tokens, BATCH), "auto")
        step()
        assert engine.engine.way == "split"
        steps[str(tokens)] = step
    short, long = in_turn(steps, rounds).values()
    return [relative(f"engine step at {lengths[1]} tokens / at {lengths[0]} tokens", long, short, "s")]


def auto_rows(model: LanguageModel, task: str, quick: bool = False, seed: int = 0) -> list[Row]:
    """`auto` against one fit at a fixed layer, and against a search of every layer at full length, on one task.

    `quick`: without that search and without testing.
    """
    data = FewShotDataModule(task, 10, seed=seed, test=100)
    template = data.template(model.tokenizer)
    prompts = [prompt for _, prompt in encode_training(template, data.splits.train)]
    depth = len(find_decoder(model.llm).layers)
    learned: dict[str, Intervention] = {}
    seconds: dict[str, float] = {}

    def fit(name: str, layers: str | int) -> None:
        began = time.perf_counter()
        learned[name] = laai.fit(model, data.task, 10, init="zero", site="residual", layers=layers, seed=seed)
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began

    fit("fixed", depth // 3)
    fit("auto", "auto")
    cost = relative(f"auto / one fit at layer {depth // 3}, {task}", seconds["auto"], seconds["fixed"], "s")
    if quick:
        return [cost]
    began = time.perf_counter()
    every = profile_layers(model, "residual", "last_prompt", prompts, rounds=[(depth, 30)], rate=0.03)
    seconds["exhaustive"] = time.perf_counter() - began
    fit("exhaustive", every.best)
    trainer = pl.Trainer(devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    tests = compare(trainer, model, data, [Method(name, vector) for name, vector in learned.items()])
    exact = {test.method.name: test.scores.exact_match for test in tests if test.scores is not None}
    return [
        cost,
        faster(f"search of every layer / auto, {task}", seconds["auto"], seconds["exhaustive"], "s"),
        relative(f"exact match of auto / of the search of every layer, {task}", exact["auto"], exact["exhaustive"], ""),
        relative(f"exact match of auto / of layer {depth // 3}, {task}", exact["auto"], exact["fixed"], ""),
    ]


def auto_means(rows: list[Row]) -> list[Row]:
    """Means of `auto_rows` over the tasks."""
    kinds = {row["name"].rsplit(", ", 1)[0] for row in rows if row["name"].rsplit(", ", 1)[-1] in AUTO_TASKS}
    means = []
    for kind in sorted(kinds):
        found = [row for row in rows if row["name"].startswith(f"{kind}, ")]
        ours, rival = (sum(row[key] for row in found) / len(found) for key in ("ours", "rival"))
        make = faster if kind.startswith("search") else relative
        means.append(make(f"{kind}, mean of {len(found)} tasks", ours, rival, found[0]["unit"]))
    return means
