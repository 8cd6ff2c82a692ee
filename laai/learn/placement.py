"""Where the language model of a run lives: one device for each process, or one process over all its devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laai.errors import UserError
from laai.models import LanguageModel, load_model, load_sharded
from laai.runtime import ShardedStrategy

if TYPE_CHECKING:
    from laai.learn.module import LAAIModule


def place(module: LAAIModule) -> LanguageModel:
    """Load the module's language model, unless it has one, and bring it to the process's device.

    Raises:
        UserError: a precision that would cast the vectors, or a device map in a run of several processes.
    """
    trainer = module.trainer
    if trainer.precision in ("16-true", "bf16-true", "64-true"):
        raise UserError(f"precision {trainer.precision} would cast the vectors, which are fp32; set dtype instead")
    if module.device_map is not None and trainer.world_size > 1:
        raise UserError(
            f"device_map spreads the model over the devices of one process, found {trainer.world_size} processes: "
            "set trainer.devices to 1, or leave out device_map"
        )
    if isinstance(trainer.strategy, ShardedStrategy):
        if hasattr(module, "language_model"):
            raise UserError("strategy fsdp2 loads the model itself, into shards: give it by name, through train.py")
        if module.layers == "auto" and module.site == "residual":
            raise UserError("layers=auto at residual does not go with strategy fsdp2: choose a layer")
        where = trainer.strategy.mesh, trainer.strategy.root_device
        module.language_model = load_sharded(module.base_model, module.dtype_name, *where)
        return module.language_model
    if not hasattr(module, "language_model"):
        module.language_model = load_model(module.base_model, dtype=module.dtype_name, device_map=module.device_map)
    module.language_model.to(trainer.strategy.root_device)
    return module.language_model
