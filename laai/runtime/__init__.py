"""Runs under Lightning: trainers, data, devices, checkpoints, signals, run folders, bars, TensorBoard."""

from laai.runtime.checkpoints import CheckpointFiles, RunCheckpoint, check_belongs, newest_checkpoint
from laai.runtime.data import FewShotDataModule, data_facts, encode_training
from laai.runtime.noise import ignore_chatter, ignore_noise
from laai.runtime.progress import StepProgress
from laai.runtime.run_folder import claim_version, folder_options, with_csv
from laai.runtime.signals import heed_sigterm, on_sigterm
from laai.runtime.strategy import ShardedStrategy, average_gradients, check_equal
from laai.runtime.tensorboard import log_figures, log_outcome, log_texts
from laai.runtime.trainer import Trainer, check_precision, quiet_trainer, trainer_of

__all__ = [
    "CheckpointFiles", "FewShotDataModule", "RunCheckpoint", "ShardedStrategy", "StepProgress", "Trainer",
    "average_gradients", "check_belongs", "check_equal", "check_precision", "claim_version", "data_facts",
    "encode_training", "folder_options", "heed_sigterm", "ignore_chatter", "ignore_noise", "log_figures",
    "log_outcome", "log_texts", "newest_checkpoint", "on_sigterm", "quiet_trainer", "trainer_of", "with_csv",
]  # fmt: skip
