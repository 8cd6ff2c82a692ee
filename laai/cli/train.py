"""The command that learns: `python train.py`, which is `laai fit`.

LightningCLI with a recipe's options, this project's callbacks, and a folder for each run.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
from jsonargparse import set_parsing_settings
from jsonargparse.typing import register_type
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from cast.extraction import CastStart
from laai.cli.results import finish
from laai.errors import UserError, ends_in_one_line
from laai.files import check_name
from laai.learn import ADAM, Interruption, LAAIModule, Monitor, Recipe, StopAtBest, StopAtLoss
from laai.runtime import (
    CheckpointFiles,
    FewShotDataModule,
    RunCheckpoint,
    StepProgress,
    claim_version,
    folder_options,
    ignore_chatter,
    newest_checkpoint,
    with_csv,
)
from laai.tasks import Task, load_task

register_type(Task, deserializer=load_task)  # else the parser reads a task's file as if it held settings
set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the lines under a recipe's fields are the help
SUBCOMMANDS = ("fit", "validate", "test")
RUNS = "lightning_logs"
HERE = "."
"""Where runs go, unless --trainer.default_root_dir or the logger says otherwise."""
TRAINER_DEFAULTS: dict[str, Any] = {
    "logger": {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": HERE, "name": RUNS, "default_hp_metric": False},
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
        command = "python train.py" if Path(sys.argv[0]).name == "train.py" else "laai fit"
        self.exit(2, f"error: {' '.join(message.split())}; see {command} --help\n")


class TrainCLI(LightningCLI):
    """LightningCLI with this project's callbacks; after the fit it tests, prints and writes."""

    model: LAAIModule
    datamodule: FewShotDataModule

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, less `predict`: `laai generate` is for that."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name in SUBCOMMANDS}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Lightning's own, but that `--model.*` are the fields of a `Recipe`."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
        parser.add_class_arguments(Recipe, "model", sub_configs=True)
        parser.set_defaults({"model.optimizer": {"class_path": "torch.optim.Adam", "init_args": ADAM.keywords}})
        parser.add_lightning_class_args(FewShotDataModule, "data")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """`--cast.*` sets how another task's CAST vector is extracted; the rest says when to stop."""
        parser.add_class_arguments(CastStart, "cast", sub_configs=True)
        parser.add_argument("--stop_at_loss", type=float, default=0.1, help="stop once the training loss is below this")
        patience = "with --data.validation, instead: stop after this many validations without progress"
        parser.add_argument("--patience", type=int, default=3, help=patience)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """`--trainer.default_root_dir` is where runs go, unless the logger says otherwise."""
        super().parse_arguments(parser, args)
        trainer = self.config[self.config.subcommand].trainer
        if runs_folder(trainer.logger) and trainer.logger.init_args.save_dir == HERE and trainer.default_root_dir:
            trainer.logger.init_args.save_dir = str(Path(trainer.default_root_dir).expanduser())

    def _parse_ckpt_path(self) -> None:
        """`--ckpt_path last` is the newest checkpoint of all runs in the folder; else Lightning's own reading."""
        options = self.config[self.config.subcommand]
        if (path := options.get("ckpt_path")) == "last":
            path = str(newest_checkpoint(runs_folder(options.trainer.logger) or default_runs(options.trainer)))
            sys.argv += ["--ckpt_path", path]  # DDP's other processes get these arguments; the last one counts
            options["ckpt_path"] = path
            sys.stderr.write(f"going on from {path}\n")
        elif path is not None:
            CheckpointFiles().load_checkpoint(check_name(path))  # in one line, before anything is loaded
        super()._parse_ckpt_path()

    def instantiate_classes(self) -> None:
        """The module is made of what the parser makes: a recipe, the data, the settings of a CAST start."""
        super().instantiate_classes()
        recipe, cast = self._get(self.config_init, "model"), self._get(self.config_init, "cast")
        self.model = LAAIModule(recipe, self.datamodule, cast=cast)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer, with this project's callbacks and a folder for the run."""
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
        plugins = self._get(self.config_init, "trainer.plugins") or []
        kwargs |= {"plugins": [*plugins, CheckpointFiles()]} | self._folder()
        return super().instantiate_trainer(**kwargs)

    def _folder(self) -> dict[str, Any]:
        """Trainer options that give a fit a folder of its own; for the first process, which tells the others."""
        options, given = self._get(self.config, "trainer"), self._get(self.config_init, "trainer.logger")
        if self.subcommand != "fit" or options.fast_dev_run or getattr(rank_zero_only, "rank", 0):
            return {}
        if (runs := runs_folder(options.logger)) is None:
            return folder_options(given, default_runs(options))
        if options.logger.init_args.get("version") is None:
            return {"logger": with_csv(given, claim_version(runs))}
        return {}

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
        finish(self.trainer, self.model, time.perf_counter() - self._began)


def runs_folder(logger: Any) -> Path | None:
    """The folder with a folder for each run, by the settings of TensorBoard's logger; None for other loggers."""
    named = getattr(logger, "class_path", "").endswith("TensorBoardLogger")
    return Path(logger.init_args.save_dir).expanduser() / logger.init_args.name if named else None


def default_runs(options: Any) -> Path:
    """That folder with other loggers, or none, by the trainer's options."""
    return Path(options.default_root_dir or HERE).expanduser() / RUNS


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; `arguments` default to those of the process, and a fit is what is done by default."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    sys.argv[1:] = given if given and given[0] in SUBCOMMANDS else ["fit", *given]  # DDP starts others from it
    ignore_chatter()
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    with ends_in_one_line(resume="the same command with --ckpt_path last"):
        TrainCLI(
            LAAIModule,
            FewShotDataModule,
            seed_everything_default=0,
            parser_class=OneLineParser,
            auto_configure_optimizers=False,  # the optimiser is the recipe's: --model.optimizer
            load_from_checkpoint_support=False,
            parser_kwargs={"fit": {"description": "Learn vectors from a few examples, test them, and log it."}},
        )
