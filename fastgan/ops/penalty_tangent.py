"""``torch.ops.fastgan.penalty_tangent_``: the gradient penalty and its derivative in the gradient.

::

    norms_n  = ||g_n||                                   over all elements of a sample
    value    = weight * mean_n excess_n^2,               excess = norm - target (one-sided: >= 0)
    tangent  = N dP/dg_n = 2 weight excess_n / norm_n g_n    (0 where the norm is 0)

``gradient`` and ``tangent`` are (N, ...), with dense samples and equal layouts; ``tangent`` may be
``gradient``. Both have one of the four dtypes, or one is float32 and the other 16-bit. ``norms``
(N,), ``value`` (1,) and the arithmetic are float32, or float64 for float64. Sums have a fixed
order. Gulrajani et al. 2017, arXiv 1704.00028, equation 3.
Kernels: ``csrc/cpu/penalty_points.cpp``, ``csrc/cuda/penalty_points.cu``. No gradient: it raises if
autograd would record it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.define import define_op


def _examples() -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        gradient = torch.randn((3, 2, 5, 7), generator=generator).to(dtype)
        gradient[1] = 0
        gradient[2] /= 16  # of a norm below 1
        wide = torch.promote_types(dtype, torch.float32)
        for target, one_sided in ((1.0, False), (1.0, True), (0.0, False)):
            norms, value = torch.zeros(3, dtype=wide), torch.zeros(1, dtype=wide)
            yield (gradient, torch.zeros_like(gradient), norms, value, 10.0, target, one_sided)


@define_op(
    "penalty_tangent_(Tensor gradient, Tensor(a!) tangent, Tensor(b!) norms, Tensor(c!) value, "
    "float weight, float target, bool one_sided) -> ()",
    examples=_examples,
)
def penalty_tangent_(
    gradient: Tensor,
    tangent: Tensor,
    norms: Tensor,
    value: Tensor,
    weight: float,
    target: float,
    one_sided: bool,
) -> None:
    """Fills ``tangent``, ``norms`` and ``value``."""
    wide = gradient.to(norms.dtype)
    elements = tuple(range(1, wide.dim()))
    norms.copy_(torch.linalg.vector_norm(wide, dim=elements))
    excess = norms - target
    if one_sided:
        excess = excess.relu()
    slope = torch.ones_like(norms) if target == 0 else torch.where(norms == 0, 0, excess / norms)
    value.copy_((weight * excess.square().mean()).view(value.shape))
    tangent.copy_(wide * (2 * weight * slope).view(-1, *[1] * len(elements)))
