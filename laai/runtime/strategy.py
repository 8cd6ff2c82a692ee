"""FSDP2 for the frozen model, under Lightning: the vectors stay whole on every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP2 strategy, with checkpoints that hold the vectors alone, as one small file."""

    def __init__(self, **options: Any) -> None:
        super().__init__(save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        """One group of all devices, for shards and for data."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_processes * self.num_nodes, 1
        super().setup_environment()

    @property
    def mesh(self) -> DeviceMesh:
        """All devices."""
        return self.device_mesh["data_parallel"]

    # Lightning's own would gather the language model's weights, and store them.
    lightning_restore_optimizer = True
    optimizer_state = Strategy.optimizer_state
    load_checkpoint = Strategy.load_checkpoint
    load_model_state_dict = Strategy.load_model_state_dict
    load_optimizer_state_dict = Strategy.load_optimizer_state_dict
    save_checkpoint = Strategy.save_checkpoint

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The vectors, which every process has."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()


StrategyRegistry.register("fsdp2", ShardedStrategy, description="shards the frozen model; the vectors stay whole")


@torch.no_grad()
def average_gradients(vectors: Sequence[Tensor]) -> None:
    """Average the gradients of vectors that every process holds; those that have none on any process keep none."""
    for vector in vectors:
        if vector.grad is not None:
            distributed.all_reduce(vector.grad)
            vector.grad /= distributed.get_world_size()


def check_equal(vectors: Sequence[Tensor]) -> None:
    """Compare the vectors of all processes bit by bit.

    Raises:
        RuntimeError: on every process, if they differ.
    """
    flat = torch.cat([vector.detach().flatten() for vector in vectors])
    all_flat = [torch.empty_like(flat) for _ in range(distributed.get_world_size())]
    distributed.all_gather(all_flat, flat)
    if not all(torch.equal(all_flat[0].view(torch.int32), other.view(torch.int32)) for other in all_flat):
        raise RuntimeError("the vectors of the processes differ, so their steps do: this is a defect, please report it")
