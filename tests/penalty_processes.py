"""One of the processes of test_penalty_data_parallel.py; run by torch.multiprocessing."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import fused_processes
import torch
import torch.distributed as dist
from torch import nn

import fastgan
from fastgan.models import WGANCritic


def run(rank: int, world: int, folder: str) -> None:
    """Compares the averaged gradients with those of one process that has all images."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    fused_processes.check(rank, world)
    (Path(folder) / f"fused-{rank}").touch()
    torch.manual_seed(0)
    critic = WGANCritic(1, 3, 16, norm="layer").double()
    unused = nn.Linear(2, 2).double()
    n = 3
    real, fake = torch.randn(2, world * n, 1, 16, 16, dtype=torch.float64).unbind(0)
    eps = torch.rand(world * n, 1, 1, 1, dtype=torch.float64)
    share = slice(rank * n, (rank + 1) * n)
    for find_unused, whole, steps in itertools.product((False, True), (False, True), (1, 2)):
        alone, module = copy.deepcopy(critic), copy.deepcopy(critic)
        if find_unused:
            module.unused = copy.deepcopy(unused)
        parallel = nn.parallel.DistributedDataParallel(module, find_unused_parameters=find_unused)
        function = fastgan.wgan_gp_critic_loss if whole else fastgan.gradient_penalty

        def loss(critic, images, weights, function=function, whole=whole):
            result = function(critic, *images, eps=weights, path="fused")
            return result.loss if whole else result

        for _ in range(steps):
            loss(alone, (real, fake), eps).backward()
        with parallel.no_sync():
            for _ in range(steps - 1):
                loss(parallel, (real[share], fake[share]), eps[share]).backward()
        loss(parallel, (real[share], fake[share]), eps[share]).backward()
        assert "forward" not in vars(module)
        for (name, expected), found in zip(
            alone.named_parameters(), module.parameters(), strict=False
        ):
            assert (found.grad is None) == (expected.grad is None), name
            if expected.grad is not None:
                torch.testing.assert_close(found.grad, expected.grad, rtol=1e-9, atol=1e-12)
    (Path(folder) / f"done-{rank}").touch()
    dist.barrier()
    dist.destroy_process_group()
