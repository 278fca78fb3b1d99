"""``torch.ops.fastgan.adam_step_``: Adam's step and the weights' clip, in one pass.

For each weight w with gradient g at step t, m being ``exp_avgs``, v ``exp_avg_sqs``::

    w <- clip(w)                                       where clip_first
    g <- g / grad_scale                                where there is one; stored
    g <- (-g if maximize else g) + weight_decay * w
    m <- m + (1 - beta1) * (g - m)
    v <- beta2 * v + (1 - beta2) * g^2
    u  = v;                amsgrad: u <- max(u, v), kept in max_exp_avg_sqs
    w <- w - lr / (1 - beta1^t) * m / (sqrt(u) / sqrt(1 - beta2^t) + eps)
    w <- clip(w)                                       unless clip_first

Kingma & Ba 2015, arXiv 1412.6980; amsgrad: Reddi, Kale & Kumar 2018, arXiv 1904.09237. Operations
in ``torch.optim.Adam``'s order. Kernels: ``csrc/cpu/optimizers.cpp``, ``csrc/cuda/adam.cu``; the
formula: ``csrc/math/adam.h``.

The other arguments are those of :mod:`fastgan.ops.rmsprop_step`; ``max_exp_avg_sqs`` is empty
unless ``amsgrad``.

Order of gradients supported: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.ops.dtypes import DTYPES
from fastgan.ops.plain_step import PlainStep, check_lists, written_by_step
from fastgan.ops.registration import (
    NAMESPACE,
    define_if_absent,
    register_in_place_on_lists,
    register_list_fallback,
)

__all__ = ["SCHEMA", "check"]

#: As in csrc/ops.cpp.
SCHEMA = (
    "adam_step_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, "
    "Tensor(d!)[] exp_avg_sqs, Tensor(e!)[] max_exp_avg_sqs, Tensor(f!)[] state_steps, "
    "Tensor(g!)[] shadows, float lr, Tensor? lr_tensor, float beta1, float beta2, float eps, "
    "float weight_decay, bool amsgrad, bool maximize, float clip_min, float clip_max, "
    "bool clip_first, Tensor? grad_scale, Tensor? found_inf) -> ()"
)


def _plain(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor],
    state_steps: Sequence[Tensor],
    shadows: Sequence[Tensor],
    lr: float,
    lr_tensor: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    amsgrad: bool,
    maximize: bool,
    clip_min: float,
    clip_max: float,
    clip_first: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    def rule(weight: Tensor, grad: Tensor, states: list[Tensor], lr: float, step: float) -> Tensor:
        exp_avg, exp_avg_sq, *others = states
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        square = exp_avg_sq
        if amsgrad:
            square = torch.maximum(others[0], exp_avg_sq, out=others[0])
        denominator = (square.sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
        return weight.addcdiv(exp_avg, denominator, value=-lr / (1 - beta1**step))

    states = [("exp_avgs", exp_avgs), ("exp_avg_sqs", exp_avg_sqs)]
    if amsgrad:
        states.append(("max_exp_avg_sqs", max_exp_avg_sqs))
    PlainStep(
        f"{NAMESPACE}::adam_step_",
        params,
        grads,
        state_steps,
        shadows,
        lr,
        lr_tensor,
        weight_decay,
        maximize,
        clip_min,
        clip_max,
        clip_first,
        grad_scale,
        found_inf,
    ).run(states, rule)


def _fake(params: Sequence[Tensor], grads: Sequence[Tensor], *args: Any) -> None:
    check_lists(f"{NAMESPACE}::adam_step_", [("params", params), ("grads", grads)], ())


def _written(args: Sequence[Any]) -> list[Tensor]:
    return written_by_step(args[0], args[1], args[2:7], grad_scale=args[18])


def check(device: torch.device | str) -> None:
    """Runs the op on `device` and compares with its formula in float64; for ``fastgan doctor``.

    Raises:
        FastganError: a value is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        sizes = (1, 17, 4099)
        w, g, m = (
            [torch.randn(n, generator=generator, dtype=torch.float64).to(dtype) for n in sizes]
            for _ in range(3)
        )
        v = [m_i**2 + 1 for m_i in m]
        on_device = [[t.to(device, copy=True) for t in tensors] for tensors in (w, g, m, v, v)]
        steps = [torch.full((), 2.0, device=device) for _ in sizes]
        torch.ops.fastgan.adam_step_(
            *on_device, steps, [], 0.1, None, 0.5, 0.9, 1e-3, 0.01, True, False, -1.0, 0.5, False,
            None, None,
        )  # fmt: skip
        for i in range(len(sizes)):
            weight, grad, mean, square = (t[i].double() for t in (w, g, m, v))
            largest = square
            grad = grad + 0.01 * weight
            mean = 0.5 * mean + 0.5 * grad
            square = 0.9 * square + 0.1 * grad**2
            largest = torch.maximum(largest, square)
            denominator = (largest / (1 - 0.9**3)).sqrt() + 1e-3
            expected = (weight - 0.1 / (1 - 0.5**3) * mean / denominator).clamp(-1.0, 0.5)
            actual = on_device[0][i].cpu().double()
            tolerance = 8 * torch.finfo(dtype).eps
            if not torch.allclose(actual, expected, rtol=tolerance, atol=tolerance):
                raise FastganError(
                    f"fastgan::adam_step_ gives wrong values on {device}, for {dtype}"
                )
            if steps[i].item() != 3:
                raise FastganError(f"fastgan::adam_step_ miscounts its steps on {device}")


define_if_absent(SCHEMA)
register_list_fallback("adam_step_", _plain)
torch.library.register_fake(f"{NAMESPACE}::adam_step_", _fake)
register_in_place_on_lists(torch.ops.fastgan.adam_step_.default, _written)
