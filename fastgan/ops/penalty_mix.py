"""``torch.ops.fastgan.penalty_mix_(Tensor(a!) batch, Tensor real, Tensor fake, Tensor eps) -> ()``.

Fills the batch of a WGAN-GP critic's step, fakes, reals and what lies between, in one pass::

    batch = [fake; real; eps * real + (1 - eps) * fake]

``real`` and ``fake`` are (N, ...), of any strides; ``batch`` is (3 N, ...), samples without gaps
in any order of dimensions. ``real`` and ``fake`` have one of the four dtypes; ``batch`` has the
same, or is a half and they are float32, or the other way round. ``eps``, N numbers, one per sample,
is float32, or float64 for float64. Gulrajani et al. 2017, arXiv 1704.00028, Algorithm 1. Kernels:
``csrc/cpu/penalty_points.cpp``, ``csrc/cuda/penalty_points.cu``. No gradient: it raises where
autograd would record it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.ops.registration import (
    NAMESPACE,
    define_if_absent,
    register_fallback,
    register_in_place_on_lists,
)

__all__ = ["SCHEMA", "check"]

#: As in csrc/penalty_ops.cpp.
SCHEMA = "penalty_mix_(Tensor(a!) batch, Tensor real, Tensor fake, Tensor eps) -> ()"


def _plain_mix_(batch: Tensor, real: Tensor, fake: Tensor, eps: Tensor) -> None:
    fakes, reals, points = batch.unflatten(0, (3, -1)).unbind(0)
    fakes.copy_(fake)
    reals.copy_(real)
    shares = eps.view(-1, *[1] * (real.dim() - 1))
    points.copy_((real.to(eps.dtype) - fake.to(eps.dtype)) * shares + fake.to(eps.dtype))


def _fake_mix_(batch: Tensor, real: Tensor, fake: Tensor, eps: Tensor) -> None:
    return None


def check(device: torch.device | str) -> None:
    """Runs the op on `device` and compares with its formula; for ``fastgan doctor``.

    Raises:
        FastganError: a value is wrong.
    """
    random = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 4, 3, 5, 7, generator=random).to(device).unbind(0)
    eps = torch.rand(4, generator=random).to(device)
    batch = torch.empty(12, 3, 5, 7, device=device).to(memory_format=torch.channels_last)
    torch.ops.fastgan.penalty_mix_(batch, real, fake, eps)
    shares = eps.view(-1, 1, 1, 1)
    expected = torch.cat([fake, real, shares * real + (1 - shares) * fake])
    if not torch.allclose(batch, expected, rtol=1e-5, atol=1e-6):
        raise FastganError(f"fastgan::penalty_mix_ gives wrong values on {device}")


define_if_absent(SCHEMA)
register_fallback("penalty_mix_", _plain_mix_)
torch.library.register_fake(f"{NAMESPACE}::penalty_mix_", _fake_mix_)
register_in_place_on_lists(torch.ops.fastgan.penalty_mix_.default, lambda args: args[:1])
