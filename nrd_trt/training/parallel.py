"""Several processes started by ``torchrun`` as one: ranks, sums over ranks. torch only.

Without torchrun's variables in the environment there is one rank and nothing is communicated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from nrd_trt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of one run, seen from one of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and shows progress."""
        return self.rank == 0

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean of a tensor over all ranks; its values are replaced."""
        return self.sum(tensor).div_(self.size) if self.size > 1 else tensor

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks; its values are replaced."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined_world(device: str) -> Iterator[World]:
    """Join the processes that torchrun started, for as long as the block lasts.

    Args:
        device: ``"cpu"``, ``"cuda"``, or ``"auto"`` for a GPU where there is one. Each rank has its own GPU.

    Raises:
        ConfigError: A GPU is asked for and PyTorch sees none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda': PyTorch sees no GPU; install a CUDA build of it, or leave out device=.")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(place)
    if "WORLD_SIZE" not in os.environ:
        yield World(device=place)
        return
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=place)
    finally:
        dist.destroy_process_group()
