"""``torch.ops.fastgan.rmsprop_step_``: RMSprop's step and the weights' clip, in one pass.

For each weight w with gradient g, v being ``square_avgs``::

    w <- clip(w)                                       where clip_first
    g <- g / grad_scale                                where there is one; stored
    g <- (-g if maximize else g) + weight_decay * w
    v <- alpha * v + (1 - alpha) * g^2
    d  = sqrt(v) + eps;    centered: m <- m + (1 - alpha) * (g - m), d = sqrt(v - m^2) + eps
    w <- w - lr * g / d;   momentum: b <- momentum * b + g / d,      w <- w - lr * b
    w <- clip(w)                                       unless clip_first

Tieleman & Hinton 2012, lecture 6.5; centered: Graves 2013, arXiv 1308.0850. Operations in
``torch.optim.RMSprop``'s order. Kernels: ``csrc/cpu/optimizers.cpp``, ``csrc/cuda/rmsprop.cu``; the
formula: ``csrc/math/rmsprop.h``.

One dtype and one device a call. ``momentum_buffers`` and ``grad_avgs`` are empty where not used,
``shadows`` (see :mod:`fastgan.ops.clip_tensors`) may be. ``state_steps`` are float32 or float64
tensors of one element on the parameters' device; each is counted up by 1. ``lr_tensor``,
``grad_scale`` and ``found_inf`` are read where they are, without waiting for the device;
``lr_tensor`` goes before ``lr``. Where ``found_inf`` is not zero, nothing happens.

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
    "rmsprop_step_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] square_avgs, "
    "Tensor(d!)[] momentum_buffers, Tensor(e!)[] grad_avgs, Tensor(f!)[] state_steps, "
    "Tensor(g!)[] shadows, float lr, Tensor? lr_tensor, float alpha, float eps, "
    "float weight_decay, float momentum, bool centered, bool maximize, float clip_min, "
    "float clip_max, bool clip_first, Tensor? grad_scale, Tensor? found_inf) -> ()"
)


def _plain(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    square_avgs: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    grad_avgs: Sequence[Tensor],
    state_steps: Sequence[Tensor],
    shadows: Sequence[Tensor],
    lr: float,
    lr_tensor: Tensor | None,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    centered: bool,
    maximize: bool,
    clip_min: float,
    clip_max: float,
    clip_first: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    def rule(weight: Tensor, grad: Tensor, states: list[Tensor], lr: float, step: float) -> Tensor:
        square_avg, *others = states
        square_avg.mul_(alpha).addcmul_(grad, grad, value=1 - alpha)
        denominator = square_avg
        if centered:
            grad_avg = others[-1]
            grad_avg.lerp_(grad, 1 - alpha)
            denominator = square_avg.addcmul(grad_avg, grad_avg, value=-1)
        denominator = denominator.sqrt().add_(eps)
        if momentum > 0:
            others[0].mul_(momentum).addcdiv_(grad, denominator)
            return weight.add(others[0], alpha=-lr)
        return weight.addcdiv(grad, denominator, value=-lr)

    states = [("square_avgs", square_avgs)]
    if momentum > 0:
        states.append(("momentum_buffers", momentum_buffers))
    if centered:
        states.append(("grad_avgs", grad_avgs))
    PlainStep(
        f"{NAMESPACE}::rmsprop_step_",
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
    check_lists(f"{NAMESPACE}::rmsprop_step_", [("params", params), ("grads", grads)], ())


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
        w, g, b, m = (
            [torch.randn(n, generator=generator, dtype=torch.float64).to(dtype) for n in sizes]
            for _ in range(4)
        )
        v = [m_i**2 + 1 for m_i in m]
        on_device = [[t.to(device, copy=True) for t in tensors] for tensors in (w, g, v, b, m)]
        steps = [torch.zeros((), device=device) for _ in sizes]
        torch.ops.fastgan.rmsprop_step_(
            *on_device, steps, [], 0.1, None, 0.9, 1e-3, 0.01, 0.5, True, False, -1.0, 0.5, False,
            None, None,
        )  # fmt: skip
        for i in range(len(sizes)):
            weight, grad, square, buffer, mean = (t[i].double() for t in (w, g, v, b, m))
            grad = grad + 0.01 * weight
            square = 0.9 * square + 0.1 * grad**2
            mean = 0.9 * mean + 0.1 * grad
            buffer = 0.5 * buffer + grad / ((square - mean**2).sqrt() + 1e-3)
            expected = (weight - 0.1 * buffer).clamp(-1.0, 0.5)
            actual = on_device[0][i].cpu().double()
            tolerance = 8 * torch.finfo(dtype).eps
            if not torch.allclose(actual, expected, rtol=tolerance, atol=tolerance):
                raise FastganError(
                    f"fastgan::rmsprop_step_ gives wrong values on {device}, for {dtype}"
                )
            if steps[i].item() != 1:
                raise FastganError(f"fastgan::rmsprop_step_ miscounts its steps on {device}")


define_if_absent(SCHEMA)
register_list_fallback("rmsprop_step_", _plain)
torch.library.register_fake(f"{NAMESPACE}::rmsprop_step_", _fake)
register_in_place_on_lists(torch.ops.fastgan.rmsprop_step_.default, _written)
