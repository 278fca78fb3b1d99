"""A fused network inside DistributedDataParallel.

Annotations are evaluated here: register_comm_hook looks at them.
"""

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastgan.nn import fuse


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="this torch is built without distributed")
@pytest.mark.usefixtures("process_group")
def test_gradients_arrive_through_its_hooks() -> None:
    """Each gradient goes through the communication hook once, and is what it returns."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 4, bias=False)
    )
    fused = DistributedDataParallel(fuse(copy.deepcopy(plain)))
    sizes: list[int] = []

    def double(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sizes.append(bucket.buffer().numel())
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer() * 2)
        return future

    fused.register_comm_hook(None, double)
    x = torch.randn(2, 3, 8, 8)
    for network in (plain, fused):
        network(x).square().sum().backward()
    assert sum(sizes) == sum(p.numel() for p in plain.parameters())
    for mine, reference in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, 2 * reference.grad, rtol=1e-4, atol=1e-5)
