"""``torch.ops.fastgan.penalty_mix_(Tensor(a!) batch, Tensor real, Tensor fake, Tensor eps) -> ()``.

Fills a WGAN-GP critic's batch, fakes, reals and interpolates, in one pass::

    batch = [fake; real; eps * real + (1 - eps) * fake]

``real`` and ``fake`` are (N, ...) with any strides; ``batch`` is (3 N, ...) with dense samples.
``real`` and ``fake`` have one of the four dtypes; ``batch`` has the same, or one is float32 and the
other 16-bit. ``eps`` has one number per sample, float32, or float64 for float64. Gulrajani et al.
2017, arXiv 1704.00028, Algorithm 1. Kernels: ``csrc/cpu/penalty_points.cpp``,
``csrc/cuda/penalty_points.cu``. No gradient: it raises if autograd would record it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.define import define_op


def _examples() -> Iterator[tuple[Any, ...]]:
    random = torch.Generator().manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        real, fake = torch.randn(2, 4, 3, 5, 7, generator=random).to(dtype).unbind(0)
        eps = torch.rand(4, generator=random).to(torch.promote_types(dtype, torch.float32))
        batch = torch.zeros(12, 3, 5, 7, dtype=dtype)
        yield batch.to(memory_format=torch.channels_last), real, fake, eps


@define_op(
    "penalty_mix_(Tensor(a!) batch, Tensor real, Tensor fake, Tensor eps) -> ()",
    examples=_examples,
)
def penalty_mix_(batch: Tensor, real: Tensor, fake: Tensor, eps: Tensor) -> None:
    """Fills ``batch``."""
    fakes, reals, points = batch.unflatten(0, (3, -1)).unbind(0)
    fakes.copy_(fake)
    reals.copy_(real)
    shares = eps.view(-1, *[1] * (real.dim() - 1))
    points.copy_((real.to(eps.dtype) - fake.to(eps.dtype)) * shares + fake.to(eps.dtype))
