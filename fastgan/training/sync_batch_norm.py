"""Batch norm over the rows of all processes.

Per channel, process r has n_r values x with mean mu_r and M_r = sum (x - mu_r)^2. They are gathered
and merged in the same order in all processes (Chan, Golub and LeVeque 1983, "Algorithms for
computing the sample variance", (2.1)):

    delta = mu_r - mu,    n' = n + n_r
    mu' = mu + delta n_r / n',    M' = M + M_r + delta^2 n n_r / n'

Then xhat = (x - mu) invstd with invstd = (M / n + eps)^(-1/2), as in one process, and backwards
(Ioffe and Szegedy 2015, arXiv 1502.03167, section 3), with g the gradient of the result, w the
weight, and both sums over all processes:

    dx = w invstd (g - (sum g + xhat sum g xhat) / n)

The weight's and bias's gradients are this process's; the trainer averages them like all others. As
in DistributedDataParallel, each process backpropagates its own loss, and averaging gives the
gradient of the mean loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastgan.losses import at_least_float32
from fastgan.training.processes import Processes


class SynchronizedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """``nn.BatchNorm2d`` with the statistics of all processes' rows in training.

    In eval mode it is ``nn.BatchNorm2d``. Its gradient can't be differentiated again; autograd
    raises.

    Args:
        norm: the module to replace; its parameters and buffers are shared, not copied.
        processes: the run's processes.
    """

    def __init__(self, norm: nn.BatchNorm2d, processes: Processes) -> None:
        super().__init__(
            norm.num_features,
            eps=norm.eps,
            momentum=norm.momentum,
            affine=False,
            track_running_stats=norm.track_running_stats,
        )
        self.affine = norm.affine
        self.weight = norm.weight
        self.bias = norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(norm, name))
        self.training = norm.training
        self._processes = processes

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 4:
            raise ValueError(f"expected 4D input (got {input.dim()}D input)")

    def forward(self, input: Tensor) -> Tensor:
        """The normalised input, of the same shape, dtype and memory format."""
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        result, mean, variance, count = _Normalize.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, self.eps, self._processes
        )
        if self.track_running_stats:
            self._update_running_statistics(mean, variance, count)
        output: Tensor = result
        return output

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            share: Tensor | float = 1 / self.num_batches_tracked.float()
        else:
            share = self.momentum
        unbiased = variance * (count / (count - 1))
        for running, value in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.add_((value.to(running.dtype) - running) * share)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        processes: Processes,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own = at_least_float32(input)
        count = torch.full((1,), own.numel() // own.shape[1], dtype=own.dtype, device=own.device)
        mean = own.mean((0, 2, 3))
        squares = (own - _channels(mean)).square_().sum((0, 2, 3))
        count, mean, squares = _merge(
            processes.gather_rows(torch.cat([count, mean, squares])), own.shape[1]
        )
        variance = squares / count
        invstd = (variance + eps).rsqrt_()
        result = (own - _channels(mean)).mul_(_channels(invstd))
        if weight is not None:
            result.mul_(_channels(weight.to(own.dtype)))
        if bias is not None:
            result.add_(_channels(bias.to(own.dtype)))
        ctx.save_for_backward(input, weight, mean, invstd, count)
        ctx.processes = processes
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(mean, variance, count)
        return result.to(input.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, invstd, count = ctx.saved_tensors
        grad = at_least_float32(grad_output)
        xhat = (at_least_float32(input) - _channels(mean)).mul_(_channels(invstd))
        sums = torch.stack([grad.sum((0, 2, 3)), (grad * xhat).sum((0, 2, 3))])
        own_sum, own_sum_xhat = sums.clone()
        total, total_xhat = ctx.processes.sum_(sums) / count
        scale = invstd if weight is None else invstd * weight.to(invstd.dtype)
        result = grad - _channels(total) - xhat.mul_(_channels(total_xhat))
        result = result.mul_(_channels(scale)).to(input.dtype)
        return (
            result,
            None if weight is None else own_sum_xhat.to(weight.dtype),
            own_sum if ctx.has_bias else None,
            None,
            None,
        )


def _merge(rows: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merged count, mean and sum of squares; each row is (count, means, sums)."""
    count, mean, squares = rows[0].split([1, channels, channels])
    for row in rows[1:]:
        next_count, next_mean, next_squares = row.split([1, channels, channels])
        both = count + next_count
        delta = next_mean - mean
        mean = mean + delta * (next_count / both)
        squares = squares + next_squares + delta.square() * (count * next_count / both)
        count = both
    return count, mean, squares


def _channels(value: Tensor) -> Tensor:
    return value.view(1, -1, 1, 1)


def synchronize_batch_norm(module: nn.Module, processes: Processes) -> None:
    """Replaces every ``nn.BatchNorm2d`` in a network by :class:`SynchronizedBatchNorm`.

    Parameters and buffers stay the same tensors with the same names, so optimisers and
    ``state_dict`` aren't affected.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        >>> keys = list(network.state_dict())
        >>> synchronize_batch_norm(network, Processes())
        >>> type(network[1]).__name__, list(network.state_dict()) == keys
        ('SynchronizedBatchNorm', True)
    """
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, SynchronizedBatchNorm(child, processes))
