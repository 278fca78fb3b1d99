"""``grid_sample``: bilinear sampling whose gradients can be differentiated.

Samples at a grid's positions, zero outside, with ``align_corners=False``: Jaderberg et al. 2015,
arXiv 1506.02025. It is linear in the input, so double backward samples the gradient of the
gradient. torch's own ``grid_sampler_2d_backward`` has no derivative.

Order of gradients supported: any in the input, the first in the grid; more raise.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops.convolution import needs_gradient
from fastgan.ops.eligibility import PLAIN

_forward = torch.ops.aten.grid_sampler_2d.default
_backward = torch.ops.aten.grid_sampler_2d_backward.default
#: Bilinear, zeros outside, corners not aligned.
_SETTINGS = (0, 0, False)


def grid_sample(input: Tensor, grid: Tensor) -> Tensor:
    """``F.grid_sample(input, grid, "bilinear", "zeros", align_corners=False)``.

    Args:
        input: (N, C, H, W).
        grid: (N, H', W', 2), positions from -1 to 1, x first; of the input's dtype.

    Returns:
        (N, C, H', W').

    Raises:
        RuntimeError: a second derivative by the grid is needed; or shapes that torch refuses.

    Example:
        >>> grid = F.affine_grid(torch.eye(2, 3)[None], [1, 1, 2, 2], align_corners=False)
        >>> grid_sample(torch.arange(4.0).view(1, 1, 2, 2), grid)
        tensor([[[[0., 1.],
                  [2., 3.]]]])
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or type(input) not in PLAIN
        or type(grid) not in PLAIN
        or not (input.requires_grad or grid.requires_grad)
        or input.dim() != 4
    ):
        return F.grid_sample(input, grid, align_corners=False)
    if torch.is_autocast_enabled(input.device.type):  # autocast uses float32 for it
        input, grid = (t if t.dtype == torch.float64 else t.float() for t in (input, grid))
    return _Sampled.apply(input, grid)  # type: ignore[no-any-return, no-untyped-call]


class _Sampled(torch.autograd.Function):
    """(input, grid) -> values."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, grid: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, grid)
        output: Tensor = _forward(input, grid, *_SETTINGS)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if grad is None:
            return None, None
        return _SampledGradient.apply(grad, *ctx.saved_tensors, ctx.needs_input_grad[1])  # type: ignore[no-any-return, no-untyped-call]


class _SampledGradient(torch.autograd.Function):
    """(grad, input, grid) -> gradients of input and grid."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, input: Tensor, grid: Tensor, with_grid: bool
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grid)
        of_input, of_grid = _backward(grad, input, grid, *_SETTINGS, [True, with_grid])
        return of_input, of_grid if with_grid else None

    @staticmethod
    def backward(
        ctx: Any, of_input: Tensor | None, of_grid: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        (grid,) = ctx.saved_tensors
        if of_grid is not None or (of_input is not None and needs_gradient(ctx, 2, 2)):
            raise RuntimeError(
                "grid_sample: its second derivative by the grid is not supported; detach the grid, "
                "or ask for first derivatives"
            )
        if of_input is None or not ctx.needs_input_grad[0]:
            return None, None, None, None
        return _Sampled.apply(of_input, grid), None, None, None  # type: ignore[no-untyped-call]
