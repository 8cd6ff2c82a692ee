"""Fit one intervention on a frozen LLM, test it against prompting, and log it.

    python train.py                                     ten antonyms, the default model
    python train.py --data.task my_examples.jsonl --data.num_examples 20
    python train.py --data.task present-past --model.source singular-plural
    python train.py --model.site residual --model.layers 12 --trainer.max_steps 50
    python train.py --config lightning_logs/version_0/config.yaml

Results go to lightning_logs/version_N: results.json, intervention.safetensors, config.yaml, TensorBoard events.
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cast import CastStart, best_scale
from laai.errors import UserError, between_processes
from laai.evaluation import Method, answers_markdown, compare, markdown_table, print_table, write_results
from laai.files import check_name
from laai.learn import Interruption, LAAIModule, Monitor, StopAtBest, StopAtLoss, layer_effects, log_effects
from laai.models import peak_megabytes
from laai.runtime import (
    CheckpointFiles,
    FewShotDataModule,
    RunCheckpoint,
    StepProgress,
    claim_version,
    encode_training,
    folder_options,
    ignore_noise,
    log_outcome,
    log_texts,
    newest_checkpoint,
    with_csv,
)
from laai.tasks import Task, load_task

register_type(Task, deserializer=load_task)  # else the parser reads a task's file as if it held settings
RUNS = Path("lightning_logs")
SUBCOMMANDS = ("fit", "validate", "test")
TRAINER_DEFAULTS: dict[str, Any] = {
    "logger": {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": ".", "name": "lightning_logs", "default_hp_metric": False},
    },
    "max_steps": 30,
    "max_epochs": -1,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}


class OneLineParser(LightningArgumentParser):
    """A parser that says what is wrong without the usage of all options."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with one line and exit code 2."""
        self.exit(2, f"error: {' '.join(message.split())}; see python train.py --help\n")


class TrainCLI(LightningCLI):
    """LightningCLI with this project's callbacks; after the fit it tests, prints and writes."""

    model: LAAIModule
    datamodule: FewShotDataModule

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, less `predict`: `laai generate` is for that."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name in SUBCOMMANDS}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """`--cast.*` sets how another task's CAST vector is extracted; the rest says when to stop."""
        parser.add_lightning_class_args(CastStart, "cast")
        parser.add_argument("--stop_at_loss", type=float, default=0.1, help="stop once the training loss is below this")
        parser.add_argument(
            "--patience",
            type=int,
            default=3,
            help="with --data.validation, instead: stop after this many validations without progress",
        )

    def _parse_ckpt_path(self) -> None:
        """`--ckpt_path last` is the newest checkpoint of all runs in the folder; else Lightning's own reading."""
        options = self.config[self.config.subcommand]
        if options.get("ckpt_path") == "last":
            path = str(newest_checkpoint(runs_folder(options.trainer.logger) or RUNS))
            sys.argv[1:] = [path if argument == "last" else argument for argument in sys.argv[1:]]  # for DDP's others
            options["ckpt_path"] = path
            sys.stderr.write(f"going on from {path}\n")
        elif (path := options.get("ckpt_path")) is not None:
            CheckpointFiles().load_checkpoint(check_name(path))  # in one line, before anything is loaded
        super()._parse_ckpt_path()

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer, with this project's callbacks."""
        if self.datamodule.splits.validation:
            stop: pl.Callback = StopAtBest(self._get(self.config, "patience"))
        else:
            stop = StopAtLoss(self._get(self.config, "stop_at_loss"))
        callbacks: list[pl.Callback] = [Monitor(), stop, Interruption()]
        if self._get(self.config, "trainer.enable_progress_bar") is not False:
            callbacks.append(StepProgress())
        if self._get(self.config, "trainer.enable_checkpointing") is not False:
            callbacks.append(RunCheckpoint())
        self.trainer_defaults["callbacks"] = callbacks
        runs = runs_folder(self._get(self.config, "trainer.logger"))
        first = getattr(rank_zero_only, "rank", 0) == 0  # the others are told the folder
        writes = self.subcommand == "fit" and not self._get(self.config, "trainer.fast_dev_run")
        given = self._get(self.config_init, "trainer.logger")
        if writes and first and runs is None and self._get(self.config, "trainer.default_root_dir") is None:
            kwargs |= folder_options(given, RUNS)
        elif writes and first and runs is not None and self._version() is None:
            kwargs["logger"] = with_csv(given, claim_version(runs))
        kwargs["plugins"] = [*(self._get(self.config_init, "trainer.plugins") or []), CheckpointFiles()]
        return super().instantiate_trainer(**kwargs)

    def _version(self) -> Any:
        return self._get(self.config, "trainer.logger").init_args.get("version")

    def before_fit(self) -> None:
        """Start the clock, unless the run could not be tested."""
        if not self.datamodule.splits.test:
            raise UserError("nothing to test on: --data.test must be at least 1")
        self._began = time.perf_counter()

    def before_validate(self) -> None:
        """Without examples Lightning would say nothing at all."""
        if not self.datamodule.splits.validation:
            raise UserError("nothing to validate on: --data.validation must be at least 1")

    def after_fit(self) -> None:
        """Test zero-shot, few-shot, CAST and LAAI on the same examples, and leave the run's files."""
        fitted = time.perf_counter()
        trainer, module, data = self.trainer, self.model, self.datamodule
        device = trainer.strategy.root_device
        memory = {"fit": peak_megabytes(device)}
        model = module.language_model
        learned, log_dir = module.learned(), trainer.log_dir  # log_dir asks all processes
        writes = trainer.is_global_zero and log_dir is not None
        folder = Path(log_dir or ".")
        if writes:
            learned.save(folder / "intervention.safetensors")  # kept even if testing is interrupted
        module.steered.detach()
        model.to(device)  # the trainer has put it on the CPU
        prompts = [prompt for _, prompt in encode_training(module.template, data.splits.train)]
        log_effects(trainer, layer_effects(module.engine, learned.to(device), prompts))
        methods = [Method("zero-shot"), Method("few-shot", demonstrations=data.splits.train)]
        named = module.source not in ("auto", "own", ["auto"], ["own"])
        has_cast = data.num_examples > 1 or module.init == "cast" or named
        if module.cast_start is not None and has_cast:
            vector = module.cast_start(module).select(learned.layers)
            methods.append(Method("cast", best_scale(model, vector, prompts, engine=module.engine) * vector))
        methods.append(Method("laai", learned))
        tests = compare(trainer, model, data, methods, module.engine)
        rows = [test.scores for test in tests if test.scores is not None]
        if not writes:
            return
        facts = {"task": data.task.name, "base_model": model.name, "seed": data.seed, "num_examples": data.num_examples}
        seconds = {"fit": fitted - self._began, "test": time.perf_counter() - fitted}
        memory["test"] = peak_megabytes(device)
        learned.provenance = replace(learned.provenance, metrics=rows[-1].as_json())
        learned.save(folder / "intervention.safetensors")
        write_results(folder / "results.json", facts, rows, seconds, memory)
        samples = {test.method.name: test.measured for test in tests}
        log_texts(trainer, {"results": markdown_table(rows), "answers": answers_markdown(data.splits.test, samples)})
        laai = rows[-1].as_json()
        final = {f"final/{k}": v for k in ("exact_match", "choice_accuracy", "nll") if isinstance(v := laai[k], float)}
        settings = {name: value for name, value in module.hparams.items() if name != "_instantiator"}
        log_outcome(trainer, settings | facts, final)
        shown = f"{data.num_examples} example{'s' * (data.num_examples > 1)}, {rows[0].n} test queries"
        print_table(rows, f"{data.task.name}: {shown}, {model.name}")
        took = f"{sum(seconds.values()):.0f} s, {max(memory.values()) / 1000:.1f} GB at most"
        sys.stdout.write(f"run folder: {folder} ({took})\n")


def runs_folder(logger: Any) -> Path | None:
    """The folder with a folder for each run, by the settings of TensorBoard's logger; None for other loggers."""
    named = getattr(logger, "class_path", "").endswith("TensorBoardLogger")
    return Path(logger.init_args.save_dir) / logger.init_args.name if named else None


def main(arguments: list[str] | None = None) -> None:
    """The command line; `arguments` default to those of the process."""
    if arguments is None:
        arguments = sys.argv[1:]
    if not arguments or arguments[0] not in SUBCOMMANDS:
        sys.argv[1:] = arguments = ["fit", *arguments]  # in argv too: DDP starts its other processes from it
    ignore_noise()
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        TrainCLI(
            LAAIModule,
            FewShotDataModule,
            seed_everything_default=0,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            parser_class=OneLineParser,
            auto_configure_optimizers=False,  # the optimiser is the model's: --model.optimizer
            parser_kwargs={"description": __doc__},
            args=None if arguments == sys.argv[1:] else arguments,
        )
    except SIGTERMException:
        sys.exit(143)
    except SystemExit as end:  # Lightning ends with 1 after Ctrl-C
        sys.exit(130 if isinstance(end.__context__, KeyboardInterrupt) else end.code)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        sys.exit(130)
    except RuntimeError as error:
        if (said := between_processes(error)) is None:
            raise
        sys.stderr.write(f"error: {said}; to go on: the same command with --ckpt_path last\n")
        sys.exit(3)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
