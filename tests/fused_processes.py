"""What the processes of test_penalty_data_parallel check of fused modules.

No annotations: register_comm_hook evaluates those of a hook.
"""

import copy
import itertools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import fastgan


class Critic(nn.Module):
    """A forward by hand: pre-activation, a skip, a layer that only some calls use."""

    def __init__(self):
        super().__init__()
        self.first = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 4, 2, 1))
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.unused, self.last = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 1, 4, bias=False)

    def forward(self, x):
        h = self.first(x)
        h = h + self.conv(F.leaky_relu(self.norm(h), 0.2))
        return torch.tanh(self.last(F.relu(h)))


def is_fused(node):
    return "Chain" in node.name() or any(is_fused(each) for each, _ in node.next_functions if each)


def check(rank, world):
    """Gradients are the average of the processes' own, each through the hook once."""
    from fastgan.nn import stretch

    stretch.LEAVE_TO_TORCH = False
    torch.manual_seed(0)
    critic = Critic().double()
    images = torch.randn(world, 2, 3, 8, 8, dtype=torch.float64)[rank]
    for find_unused, hooked in itertools.product((False, True), (False, True)):
        plain, module = copy.deepcopy(critic), fastgan.fuse(copy.deepcopy(critic))
        if not find_unused:
            del plain.unused, module.unused
        parallel = nn.parallel.DistributedDataParallel(module, find_unused_parameters=find_unused)
        sizes = []

        def average(state, bucket, sizes=sizes):
            sizes.append(bucket.buffer().numel())
            work = dist.all_reduce(bucket.buffer(), async_op=True)
            return work.get_future().then(lambda done: done.value()[0] / world)

        if hooked:
            parallel.register_comm_hook(None, average)
        for _ in range(2):
            plain(images).square().sum().backward()
        with parallel.no_sync():
            parallel(images).square().sum().backward()
        output = parallel(images)
        assert is_fused(output.grad_fn)
        output.square().sum().backward()
        used = [p for p in plain.parameters() if p.grad is not None]
        assert not hooked or sum(sizes) >= sum(p.numel() for p in used)
        for (name, mine), own in zip(module.named_parameters(), plain.parameters(), strict=True):
            assert (mine.grad is None) == (own.grad is None), name
            if own.grad is not None:
                dist.all_reduce(own.grad)
                torch.testing.assert_close(mine.grad, own.grad / world, rtol=1e-9, atol=1e-12)
        for buffer, own in zip(module.buffers(), plain.buffers(), strict=True):
            if rank == 0:  # whose buffers DDP gives to the others
                torch.testing.assert_close(buffer, own, rtol=1e-9, atol=1e-12)
