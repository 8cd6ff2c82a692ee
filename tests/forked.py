"""Whole runs of train.py in processes of their own that are cheap to start, to be killed, starved and interrupted."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType

# A server that has imported everything once, and forks for each run.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.forked", "laai.cli.train", "torch.utils.tensorboard"])


@dataclass
class Run:
    """A run that has been started; `output` is a file that takes stdout and stderr."""

    process: BaseProcess
    output: Path

    def signal(self, which: int, when: Callable[[], bool], seconds: float = 60) -> None:
        """Send a signal once something is true."""
        end = time.monotonic() + seconds
        while not when() and self.process.is_alive():
            assert time.monotonic() < end, "waited for too long"
            time.sleep(0.002)
        if self.process.is_alive():
            os.kill(self.process.pid or 0, which)

    def end(self, seconds: float = 120) -> tuple[int | None, str]:
        """Wait for it; returns its exit code (negative: killed by that signal) and what it wrote."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s: {self.output.read_text()}")
        return self.process.exitcode, self.output.read_text()


def start(
    folder: Path,
    arguments: list[str],
    largest_file: int | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Run:
    """Start train.py in a folder; `largest_file`: bytes that the system lets it write into one file."""
    folder.mkdir(exist_ok=True)
    output = folder / f"output_{time.monotonic_ns()}.txt"
    output.touch()
    process = CONTEXT.Process(
        target=_train, args=(str(folder), arguments, str(output), largest_file, dict(environment))
    )
    process.start()
    return Run(process, output)


def start_two(folder: Path, arguments: list[str], nodes: int = 1, scheduler: str = "torchrun") -> tuple[Run, Run]:
    """Start two processes of one run, each told its place as torchrun or SLURM tells it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    devices, place = 2 // nodes, torchrun_place if scheduler == "torchrun" else slurm_place
    arguments = [*arguments, "--trainer.devices", str(devices), "--trainer.num_nodes", str(nodes)]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    one, other = (start(folder, arguments, environment=address | place(rank, nodes, port)) for rank in (0, 1))
    return one, other


def torchrun_place(rank: int, nodes: int, port: str) -> dict[str, str]:
    """The environment of a process of `torchrun --nnodes NODES`."""
    local = {"LOCAL_RANK": str(rank if nodes == 1 else 0), "LOCAL_WORLD_SIZE": str(2 // nodes)}
    node = {"GROUP_RANK": str(0 if nodes == 1 else rank), "GROUP_WORLD_SIZE": str(nodes)}
    return {"RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": port} | local | node


def slurm_place(rank: int, nodes: int, port: str) -> dict[str, str]:
    """The environment of a task of `srun --nodes NODES --ntasks 2`."""
    facts = {"JOB_ID": port, "JOB_NAME": "train", "NTASKS": 2, "NTASKS_PER_NODE": 2 // nodes, "NNODES": nodes}
    facts |= {"PROCID": rank, "LOCALID": rank if nodes == 1 else 0, "NODEID": 0 if nodes == 1 else rank}
    return {f"SLURM_{name}": str(value) for name, value in facts.items()} | {"SLURM_NODELIST": "127.0.0.1"}


def _train(
    folder: str, arguments: list[str], output: str, largest_file: int | None, environment: Mapping[str, str]
) -> None:
    os.environ.update({"OMP_NUM_THREADS": "1", **environment})  # else Lightning chooses by the processes on a node
    handle = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    import torch
    from lightning.pytorch.utilities import rank_zero_only

    import train

    rank_zero_only.rank = int(
        environment.get("RANK") or environment.get("SLURM_PROCID") or 0
    )  # which a process of its own would have read at import
    torch.set_num_threads(1)
    train.main(arguments)
