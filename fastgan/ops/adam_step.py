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

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.define import define_op
from fastgan.ops.dtypes import DTYPES
from fastgan.ops.plain_step import PlainStep, check_lists, written_by_step

__all__ = ["adam_step_"]


def _examples() -> Iterator[tuple[Any, ...]]:
    random = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        tensors = torch.randn(5, 3, 1367, generator=random).to(dtype)
        weights, grads, means, squares, most = ([t[0, :1], t[1, :17], t[2]] for t in tensors)
        squares, most = ([each**2 + 1 for each in each_list] for each_list in (squares, most))
        steps = [torch.full((), 2.0) for _ in weights]
        shadows = [weight.to(torch.bfloat16) for weight in weights]
        yield (weights, grads, means, squares, most, steps, shadows, 0.1, None, 0.5, 0.9, 1e-3,
               0.01, True, False, -1.0, 0.5, False, None, None)  # fmt: skip
        yield (weights, grads, means, squares, [], steps, [], 0.1, torch.tensor(0.2), 0.5, 0.9,
               1e-3, 0.0, False, True, -1.0, 0.5, True, torch.tensor(2.0),
               torch.tensor(0.0))  # fmt: skip


def _fake(params: Sequence[Tensor], grads: Sequence[Tensor], *args: Any) -> None:
    check_lists("fastgan::adam_step_", [("params", params), ("grads", grads)], ())


@define_op(
    "adam_step_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, "
    "Tensor(d!)[] exp_avg_sqs, Tensor(e!)[] max_exp_avg_sqs, Tensor(f!)[] state_steps, "
    "Tensor(g!)[] shadows, float lr, Tensor? lr_tensor, float beta1, float beta2, float eps, "
    "float weight_decay, bool amsgrad, bool maximize, float clip_min, float clip_max, "
    "bool clip_first, Tensor? grad_scale, Tensor? found_inf) -> ()",
    examples=_examples,
    as_given=("shadows",),
    fake=_fake,
    written=written_by_step,
)
def adam_step_(
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
    """The step in plain PyTorch."""

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
        "fastgan::adam_step_",
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
