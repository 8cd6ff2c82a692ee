"""Rows of `engine.py` on learning: a training step against rivals, and the choice of a layer."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from functools import partial

import psutil
from inference import prompts_of_length
from measuring import Row, Tasks, faster, in_turn, over_first, relative, timed
from peer_worker import adam_step, reset_peak, resident
from peers import PEFT, Bench, peft_step

import laai
from laai.engine import Engine, mean_nll
from laai.evaluation import Arm, evaluate_arms
from laai.learn import SteeredLM, profile_layers
from laai.prompts import Prompt, collate
from laai.runtime import FewShotDataModule, encode_training, quiet_trainer
from laai.steering import Intervention

LAYER, BATCH = 10, 10
ROUNDS = {12: 7, 64: 5, 256: 3, 1024: 2}  # by tokens in the prompt
AUTO_TASKS = (
    *("antonym", "country-capital", "capital-country", "country-language"),
    *("present-past", "singular-plural", "adjective-comparative", "word-sentiment"),
)


def our_step(engine: Engine, prompts: list[Prompt]) -> tuple[SteeredLM, Callable[[], float]]:
    """A training step of one residual vector at the last prompt token."""
    batch = collate(prompts, 0)
    steered = SteeredLM(engine, Intervention.zeros(engine.model, "residual", [LAYER]))
    step = adam_step(steered.intervention.parameters(), 1e-2, lambda: mean_nll(steered(batch).nll, batch.labels))
    return steered, step


def step_rows(bench: Bench, tokens: int) -> list[Row]:
    """Time and memory of a step at prompts of `tokens` tokens: ours, by full forward, PEFT and pyreft, in turn.

    `quick`: only ours and the full forward, and fewer rounds.
    """
    model, _, quick = bench
    prompts = prompts_of_length(model, tokens, BATCH)
    engine = Engine(model)
    steered, ours = our_step(engine, prompts)
    first, _ = timed(ours)  # with the prefix pass and the comparison with a whole forward
    assert engine.way == "split"
    # Each way has a model of its own, as vectors stay attached between steps.
    _, full = our_step(Engine(laai.load_model(model.name), "off"), prompts)
    tasks: Tasks = {"engine": ours, "full forward": full}
    if not quick:
        tasks |= rival_steps(bench, prompts)
    memory = {name: peak_above(task) for name, task in tasks.items() if name != "pyreft"}  # this warms up too
    seconds, _ = in_turn(tasks, 1 if quick else ROUNDS[tokens], warm=tokens < 1024 and not quick)
    steered.detach()
    fit = first + 29 * seconds["engine"]
    return [
        *over_first(f"{{}} step / engine step, {tokens} tokens", seconds, "s"),
        *over_first(f"{{}} / engine, memory of a step, {tokens} tokens", memory, "MB"),
        faster(f"fit of 30 steps, prefix pass included, {tokens} tokens", fit, 30 * seconds["full forward"], "s"),
    ]


def rival_steps(bench: Bench, prompts: list[Prompt]) -> Tasks:
    """A step of each other library; those that would not fit into memory are left out, and it is said."""
    steps: Tasks = {}
    tokens = len(prompts[0].prompt)
    short = token_lists(prompts_of_length(bench.model, 128, BATCH)) if tokens > 256 else None

    def fits(name: str, short_megabytes: float) -> bool:
        needs = short_megabytes * tokens / 128
        too_much = needs > 0.85 * psutil.virtual_memory().available / 1e6  # the system needs some to stay well
        if too_much:
            print(f"left out: {name} at {tokens} tokens, which needs about {needs / 1000:.0f} GB", file=sys.stderr)
        return not too_much

    for name in PEFT:
        make = partial(peft_step, name, bench.model.name)
        if short is None or fits(name, peak_above(make(*short))):
            steps[name] = make(*token_lists(prompts))
    if bench.ask is not None:
        set_up, step = partial(bench.ask, "setup", layer=LAYER), partial(bench.ask, "step")
        if short is not None:
            set_up(prompts=[ids[:12] for ids in short[0]], answers=short[1])
            at_rest = step()["peak_rss"]
            set_up(prompts=short[0], answers=short[1])
            if not fits("pyreft", (step()["peak_rss"] - at_rest) / 1e6):
                return steps
        ids, answers = token_lists(prompts)
        set_up(prompts=ids, answers=answers)
        steps["pyreft"] = step
    return steps


def token_lists(prompts: list[Prompt]) -> tuple[list[list[int]], list[list[int]]]:
    """The ids of prompts and of their answers."""
    return [list(p.prompt) for p in prompts], [list(p.answer) for p in prompts]


def peak_above(task: Callable[[], object]) -> float:
    """Megabytes of resident memory that a call needs above what there was before it, at least 1 (Linux; else nan)."""
    try:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else memory that was freed before would hide what is needed now
        reset_peak()
        before = resident("VmRSS:")
        task()
        return max(resident("VmHWM:") - before, 1e6) / 1e6
    except OSError:
        return float("nan")


def growth_rows(bench: Bench) -> list[Row]:
    """How a step of ours grows with the prompt: long and short ones in turn."""
    steps: Tasks = {}
    for tokens in (12, 1024):
        engine = Engine(laai.load_model(bench.model.name))
        _, step = our_step(engine, prompts_of_length(engine.model, tokens, BATCH))
        step()
        assert engine.way == "split"
        steps[str(tokens)] = step
    short, long = in_turn(steps, 15)[0].values()
    return [relative("engine step at 1024 tokens / at 12 tokens", long, short, "s")]


def auto_rows(bench: Bench, task: str, seed: int = 0) -> list[Row]:
    """`auto` against one fit at a fixed layer, and against a search of every layer at full length, on one task.

    `quick`: without that search and without testing.
    """
    model = bench.model
    data = FewShotDataModule(task, 10, seed=seed, test=100)
    depth = len(model.decoder.layers)
    learned: dict[str, Intervention] = {}

    def fit(name: str, layers: str | int) -> None:
        learned[name] = laai.fit(model, data.task, 10, init="zero", site="residual", layers=layers, seed=seed)

    def search() -> None:
        template = data.template(model.tokenizer)
        prompts = [prompt for _, prompt in encode_training(template, data.splits.train)]
        every = profile_layers(Engine(model), "residual", "last_prompt", prompts, rounds=[(depth, 30)], rate=0.03)
        fit("exhaustive", every.best)

    middle = f"layer {depth // 3}, {task}"
    fixed, _ = timed(lambda: fit("fixed", depth // 3))
    auto, _ = timed(lambda: fit("auto", "auto"))
    cost = relative(f"auto / one fit at {middle}", auto, fixed, "s")
    if bench.quick:
        return [cost]
    exhaustive, _ = timed(search)
    trainer = quiet_trainer()
    tests = evaluate_arms(trainer, model, data, [Arm(name, vector) for name, vector in learned.items()])
    exact = {test.arm.name: test.scores.exact_match for test in tests if test.scores is not None}
    return [
        cost,
        faster(f"search of every layer / auto, {task}", auto, exhaustive, "s"),
        relative(f"exact match of auto / of the search of every layer, {task}", exact["auto"], exact["exhaustive"], ""),
        relative(f"exact match of auto / of {middle}", exact["auto"], exact["fixed"], ""),
    ]


def auto_means(rows: list[Row]) -> list[Row]:
    """Means of `auto_rows` over the tasks."""
    kinds = {kind for kind, _, task in (row["name"].rpartition(", ") for row in rows) if task in AUTO_TASKS}
    means = []
    for kind in sorted(kinds):
        found = [row for row in rows if row["name"].startswith(f"{kind}, ")]
        ours, rival = (sum(row[key] for row in found) / len(found) for key in ("ours", "rival"))
        make = faster if kind.startswith("search") else relative
        means.append(make(f"{kind}, mean of {len(found)} tasks", ours, rival, found[0]["unit"]))
    return means
