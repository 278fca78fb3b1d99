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

One dtype and one device per call. ``momentum_buffers`` and ``grad_avgs`` are empty if unused,
``shadows`` (see :mod:`fastgan.ops.clip_tensors`) may be. ``state_steps`` are float32 or float64
tensors of one element on the parameters' device; each is incremented by 1. ``lr_tensor``,
``grad_scale`` and ``found_inf`` are read on their device, without synchronising; ``lr_tensor``
takes precedence over ``lr``. If ``found_inf`` is not zero, nothing changes.

Order of gradients supported: none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.define import define_op
from fastgan.ops.dtypes import DTYPES
from fastgan.ops.plain_step import PlainStep, check_lists, written_by_step

__all__ = ["rmsprop_step_"]


def _examples() -> Iterator[tuple[Any, ...]]:
    random = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        tensors = torch.randn(5, 3, 1367, generator=random).to(dtype)
        weights, grads, squares, buffers, means = ([t[0, :1], t[1, :17], t[2]] for t in tensors)
        squares = [square.abs() + means[i] ** 2 + 1 for i, square in enumerate(squares)]
        steps = [torch.zeros(()) for _ in weights]
        shadows = [weight.to(torch.bfloat16) for weight in weights]
        yield (weights, grads, squares, buffers, means, steps, shadows, 0.1, None, 0.9, 1e-3, 0.01,
               0.5, True, False, -1.0, 0.5, False, None, None)  # fmt: skip
        yield (weights, grads, squares, [], [], steps, [], 0.1, torch.tensor(0.2), 0.9, 1e-3, 0.0,
               0.0, False, True, -1.0, 0.5, True, torch.tensor(2.0), torch.tensor(0.0))  # fmt: skip


def _fake(params: Sequence[Tensor], grads: Sequence[Tensor], *args: Any) -> None:
    check_lists("fastgan::rmsprop_step_", [("params", params), ("grads", grads)], ())


@define_op(
    "rmsprop_step_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] square_avgs, "
    "Tensor(d!)[] momentum_buffers, Tensor(e!)[] grad_avgs, Tensor(f!)[] state_steps, "
    "Tensor(g!)[] shadows, float lr, Tensor? lr_tensor, float alpha, float eps, "
    "float weight_decay, float momentum, bool centered, bool maximize, float clip_min, "
    "float clip_max, bool clip_first, Tensor? grad_scale, Tensor? found_inf) -> ()",
    examples=_examples,
    as_given=("shadows",),
    fake=_fake,
    written=written_by_step,
)
def rmsprop_step_(
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
    """The step in plain PyTorch."""

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
        "fastgan::rmsprop_step_",
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
