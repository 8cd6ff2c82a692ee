"""What follows a fit: its vectors are tested beside prompting, and the run's files are written."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import lightning.pytorch as pl

from laai.compare import compare
from laai.evaluation import Evaluation, answers_markdown, markdown_table, print_table, write_results
from laai.learn import LAAIModule, layer_effects, log_effects
from laai.models import peak_megabytes
from laai.runtime import log_outcome, log_texts
from laai.steering import Intervention


def measured(trainer: pl.Trainer, module: LAAIModule, learned: Intervention) -> list[Evaluation]:
    """The learned vectors beside prompts without and with the same examples, and their CAST vector."""
    data, made = module.data, {"laai": learned}
    methods = ["zero-shot", "few-shot", "laai"]
    if data.num_examples > 1 or module.recipe.init == "cast" or module.recipe.sources not in (["auto"], ["own"]):
        made["own"] = module.cast_vector().select(learned.layers)
        methods.insert(2, "cast")
    return compare(module.language_model, data, methods, made=made, trainer=trainer, engine=module.engine)


def finish(trainer: pl.Trainer, module: LAAIModule, fit_seconds: float) -> None:
    """Test the learned vectors, print a table, and write into the run's folder, if it has one."""
    began = time.perf_counter()
    model, data, device = module.language_model, module.data, trainer.strategy.root_device
    memory = {"fit": peak_megabytes(device)}
    learned, log_dir = module.learned(), trainer.log_dir  # log_dir asks all processes
    writes = trainer.is_global_zero and log_dir is not None
    folder = Path(log_dir or ".")
    if writes:
        learned.save(folder / "intervention.safetensors")  # kept even if testing is interrupted
    module.steered.detach()
    model.to(device)  # the trainer has put it on the CPU
    log_effects(trainer, layer_effects(module.engine, learned.to(device), data.prompts))
    tests = measured(trainer, module, learned)
    rows = [test.scores for test in tests if test.scores is not None]
    if not writes:
        return
    facts = {"task": data.task.name, "base_model": model.name, "seed": data.seed, "num_examples": data.num_examples}
    seconds = {"fit": fit_seconds, "test": time.perf_counter() - began}
    memory["test"] = peak_megabytes(device)
    laai = rows[-1].as_json()
    module.learned(metrics=laai).save(folder / "intervention.safetensors")
    write_results(folder / "results.json", facts, rows, seconds, memory)
    samples = {test.arm.name: test.measured for test in tests}
    log_texts(trainer, {"results": markdown_table(rows), "answers": answers_markdown(data.splits.test, samples)})
    final = {f"final/{k}": v for k in ("exact_match", "choice_accuracy", "nll") if isinstance(v := laai[k], float)}
    log_outcome(trainer, dict(module.hparams) | facts, final)
    shown = f"{data.num_examples} example{'s' * (data.num_examples > 1)}, {rows[0].n} test queries"
    print_table(rows, f"{data.task.name}: {shown}, {model.name}")
    took = f"{sum(seconds.values()):.0f} s, {max(memory.values()) / 1000:.1f} GB at most"
    sys.stdout.write(f"run folder: {folder} ({took})\n")
