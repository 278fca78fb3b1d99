"""``torch.ops.fastgan.penalty_tangent_``: the gradient penalty and its derivative in the gradient.

::

    norms_n  = ||g_n||                                   over all elements of a sample
    value    = weight * mean_n excess_n^2,               excess = norm - target (one-sided: >= 0)
    tangent  = N dP/dg_n = 2 weight excess_n / norm_n g_n    (0 where the norm is 0)

``gradient`` and ``tangent`` are (N, ...), samples without gaps, lying in memory alike; ``tangent``
may be ``gradient``. Both have one of the four dtypes, or one is float32 and the other a half.
``norms`` (N,) and ``value`` (1,) are float32, or float64 for float64, as is what is computed in.
The sums' order doesn't change between runs. Gulrajani et al. 2017, arXiv 1704.00028, equation 3.
Kernels: ``csrc/cpu/penalty_points.cpp``, ``csrc/cuda/penalty_points.cu``. No gradient: it raises
where autograd would record it.
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
SCHEMA = (
    "penalty_tangent_(Tensor gradient, Tensor(a!) tangent, Tensor(b!) norms, Tensor(c!) value, "
    "float weight, float target, bool one_sided) -> ()"
)


def _plain_tangent_(
    gradient: Tensor,
    tangent: Tensor,
    norms: Tensor,
    value: Tensor,
    weight: float,
    target: float,
    one_sided: bool,
) -> None:
    wide = gradient.to(norms.dtype)
    elements = tuple(range(1, wide.dim()))
    norms.copy_(torch.linalg.vector_norm(wide, dim=elements))
    excess = norms - target
    if one_sided:
        excess = excess.relu()
    slope = torch.ones_like(norms) if target == 0 else torch.where(norms == 0, 0, excess / norms)
    value.copy_((weight * excess.square().mean()).view(value.shape))
    tangent.copy_(wide * (2 * weight * slope).view(-1, *[1] * len(elements)))


def _fake_tangent_(
    gradient: Tensor,
    tangent: Tensor,
    norms: Tensor,
    value: Tensor,
    weight: float,
    target: float,
    one_sided: bool,
) -> None:
    return None


def check(device: torch.device | str) -> None:
    """Runs the op on `device` and compares with its formula; for ``fastgan doctor``.

    Raises:
        FastganError: a value is wrong.
    """
    # Sample 0 has the norm 5, sample 1 the norm 0.
    gradient = torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]], device=device)
    tangent = torch.empty_like(gradient)
    norms, value = gradient.new_empty(2), gradient.new_empty(1)
    torch.ops.fastgan.penalty_tangent_(gradient, tangent, norms, value, 10.0, 1.0, False)
    expected = gradient * 20 * 0.8
    right = (
        torch.allclose(tangent, expected)
        and norms.tolist() == [5.0, 0.0]
        and abs(value.item() - 85.0) < 1e-4
    )
    if not right:
        raise FastganError(f"fastgan::penalty_tangent_ gives wrong values on {device}")


define_if_absent(SCHEMA)
register_fallback("penalty_tangent_", _plain_tangent_)
torch.library.register_fake(f"{NAMESPACE}::penalty_tangent_", _fake_tangent_)
register_in_place_on_lists(torch.ops.fastgan.penalty_tangent_.default, lambda args: args[1:4])
