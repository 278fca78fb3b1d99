"""``torch.ops.fastgan.rmsprop_step_`` and the other optimisers' steps, each with the weights' clip.

For each weight w with gradient g, its states, and the number t of the step::

    w <- clip(w)                                       where clip_first
    g <- g / grad_scale                                where there is one; stored
    g <- (-g if maximize else g) + weight_decay * w
    w <- the optimiser's rule(w, g, states, lr, t)
    w <- clip(w)                                       unless clip_first

The rules are below, one function for each optimiser; their operations have the order of
``torch.optim``'s. 16-bit weights are updated in float32. Kernels: ``csrc/cpu/optimizers.cpp``,
``csrc/cuda/optimizers.cu``, for the rules of ``csrc/math/optimizers.h``.

One dtype and one device per call. Lists of states that the settings don't use may be empty, and
``shadows`` (see :mod:`fastgan.ops.clip_tensors`), too. ``state_steps`` are float32 or float64
tensors of one element on the parameters' device; each is incremented by 1. ``lr_tensor``,
``grad_scale`` and ``found_inf`` are read on their device, without synchronising; ``lr_tensor``
takes precedence over ``lr``. If ``found_inf`` is not zero, nothing changes.

Order of gradients supported: none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.define import define_op
from fastgan.ops.dtypes import DTYPES
from fastgan.ops.weight_lists import (
    check_apart,
    check_bounds,
    check_lists,
    check_not_expanded,
    clip_list,
)

Rule = Callable[..., Tensor]


def _define_step(
    op: str,
    *,
    states: tuple[str, ...],
    uses: Callable[[dict[str, Any]], tuple[bool, ...]],
    settings: str,
    examples: Sequence[tuple[Any, ...]],
    decoupled: bool = False,
) -> Callable[[Rule], Rule]:
    """Defines an optimiser's op by its rule.

    The rule gets the weight, its gradient, its states (to update in place; None for those not in
    use), the learning rate, the number of the step, and the settings by name without the weight
    decay. It returns the new weight.

    Args:
        op: its name under ``torch.ops.fastgan``.
        states: names of the lists of states.
        uses: given the settings, which of them are in use.
        settings: the optimiser's own arguments, as in a schema.
        examples: values of them.
        decoupled: w <- (1 - lr * weight_decay) * w before the rule, instead of a larger gradient.
    """
    name = f"fastgan::{op}"
    names = [setting.split()[1] for setting in settings.split(", ")]
    lists = ("params", "grads", *states, "state_steps", "shadows")
    schema = ", ".join(
        [
            *(f"Tensor({chr(97 + i)}!)[] {argument}" for i, argument in enumerate(lists)),
            f"float lr, Tensor? lr_tensor, {settings}, bool maximize, float clip_min",
            "float clip_max, bool clip_first, Tensor? grad_scale, Tensor? found_inf",
        ]
    )

    def make_examples() -> Iterator[tuple[Any, ...]]:
        random = torch.Generator().manual_seed(0)
        for dtype in DTYPES:
            drawn = torch.randn(2 + len(states), 3, 1367, generator=random).to(dtype)
            for i, state in enumerate(states, 2):
                if "sq" in state:  # an average of squares: above every average's square
                    drawn[i] = 1 + (drawn**2).sum(0)
            tensors = [[t[0, :1], t[1, :17], t[2]] for t in drawn]
            steps = [torch.full((), 2.0) for _ in tensors[0]]
            shadows = [weight.to(torch.bfloat16) for weight in tensors[0]]
            for example in examples:
                yield (*tensors, steps, shadows, 0.1, None, *example,
                       False, -1.0, 0.5, False, None, None)  # fmt: skip
            used = uses(dict(zip(names, example, strict=True)))
            kept = [list_ if use else [] for list_, use in zip(tensors[2:], used, strict=True)]
            yield (*tensors[:2], *kept, steps, [], 0.1, torch.tensor(0.2), *example,
                   True, -1.0, 0.5, True, torch.tensor(2.0), torch.tensor(0.0))  # fmt: skip

    def fake(params: Sequence[Tensor], grads: Sequence[Tensor], *args: Any) -> None:
        check_lists(name, [("params", params), ("grads", grads)], ())

    def written(args: Sequence[Any]) -> list[Tensor]:
        params, grads, *others = args[: len(lists)]
        unscaled = [] if args[-2] is None else grads
        return [tensor for tensors in (params, unscaled, *others) for tensor in tensors]

    def define(rule: Rule) -> Rule:
        def step(*args: Any) -> None:
            params, grads, *state_lists, steps, shadows = args[: len(lists)]
            lr, lr_tensor, *values = args[len(lists) : -6]
            maximize, lower, upper, clip_first, grad_scale, found_inf = args[-6:]
            given = dict(zip(names, values, strict=True))
            used = uses(given)
            weight_decay = given.pop("weight_decay")
            in_use = [
                (state, tensors)
                for state, tensors, use in zip(states, state_lists, used, strict=True)
                if use
            ]
            check_lists(name, [("params", params), ("grads", grads), *in_use], shadows)
            if len(steps) != len(params):
                raise RuntimeError(
                    f"{name}: state_steps has {len(steps)} tensors for {len(params)} in params"
                )
            if not params:
                return
            check_not_expanded(name, [("params", params), *in_use, ("shadows", shadows)])
            check_bounds(name, params[0].dtype, lower, upper)
            if grad_scale is not None:
                check_apart(name, grads)
            if found_inf is not None and found_inf.item() != 0:
                return
            if lr_tensor is not None:
                lr = float(lr_tensor.item())
            if clip_first:
                clip_list(params, (), lower, upper)
            for i, (param, grad, t) in enumerate(zip(params, grads, steps, strict=True)):
                t += 1
                wide = param.dtype if param.dtype == torch.float64 else torch.float32
                gradient = grad.to(wide)
                if grad_scale is not None:
                    gradient = gradient / grad_scale.to(wide)
                    grad.copy_(gradient)
                if maximize:
                    gradient = -gradient
                weight = param.to(wide)
                if decoupled:
                    weight = weight * (1 - lr * weight_decay)
                elif weight_decay != 0:
                    gradient = gradient.add(weight, alpha=weight_decay)
                own = [
                    tensors[i].to(wide) if use else None
                    for tensors, use in zip(state_lists, used, strict=True)
                ]
                param.copy_(rule(weight, gradient, *own, lr, float(t.item()), **given))
                for tensors, value in zip(state_lists, own, strict=True):
                    if value is not None:
                        tensors[i].copy_(value)
            if clip_first:
                lower, upper = -math.inf, math.inf
            clip_list(params, shadows, lower, upper)

        define_op(
            f"{op}({schema}) -> ()",
            examples=make_examples,
            as_given=("shadows",),
            fake=fake,
            written=written,
        )(step)
        return rule

    return define


@_define_step(
    "rmsprop_step_",
    states=("square_avgs", "momentum_buffers", "grad_avgs"),
    uses=lambda settings: (True, settings["momentum"] > 0, settings["centered"]),
    settings="float alpha, float eps, float weight_decay, float momentum, bool centered",
    examples=[(0.9, 1e-3, 0.01, 0.5, True), (0.9, 1e-3, 0.0, 0.0, False)],
)
def _rmsprop(
    weight: Tensor,
    grad: Tensor,
    square_avg: Tensor,
    momentum_buffer: Tensor | None,
    grad_avg: Tensor | None,
    lr: float,
    t: float,
    *,
    alpha: float,
    eps: float,
    momentum: float,
    centered: bool,
) -> Tensor:
    """RMSprop, v being ``square_avgs``::

        v <- alpha * v + (1 - alpha) * g^2
        d  = sqrt(v) + eps;    centered: m <- m + (1 - alpha) * (g - m), d = sqrt(v - m^2) + eps
        w <- w - lr * g / d;   momentum: b <- momentum * b + g / d,      w <- w - lr * b

    Tieleman & Hinton 2012, lecture 6.5; centered: Graves 2013, arXiv 1308.0850.
    """
    square_avg.mul_(alpha).addcmul_(grad, grad, value=1 - alpha)
    variance = square_avg
    if grad_avg is not None:
        grad_avg.lerp_(grad, 1 - alpha)
        variance = square_avg.addcmul(grad_avg, grad_avg, value=-1)
    denominator = variance.sqrt().add_(eps)
    if momentum_buffer is not None:
        momentum_buffer.mul_(momentum).addcdiv_(grad, denominator)
        return weight.add(momentum_buffer, alpha=-lr)
    return weight.addcdiv(grad, denominator, value=-lr)


_ADAM: dict[str, Any] = {
    "states": ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"),
    "uses": lambda settings: (True, True, settings["amsgrad"]),
    "settings": "float beta1, float beta2, float eps, float weight_decay, bool amsgrad",
    "examples": [(0.5, 0.9, 1e-3, 0.01, True), (0.5, 0.9, 1e-3, 0.0, False)],
}


@_define_step("adam_step_", **_ADAM)
@_define_step("adamw_step_", **_ADAM, decoupled=True)
def _adam(
    weight: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    lr: float,
    t: float,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    amsgrad: bool,
) -> Tensor:
    """Adam, and after the decoupled decay AdamW, m being ``exp_avgs``, v ``exp_avg_sqs``::

        m <- m + (1 - beta1) * (g - m)
        v <- beta2 * v + (1 - beta2) * g^2
        u  = v;                amsgrad: u <- max(u, v), kept in max_exp_avg_sqs
        w <- w - lr / (1 - beta1^t) * m / (sqrt(u) / sqrt(1 - beta2^t) + eps)

    Kingma & Ba 2015, arXiv 1412.6980; amsgrad: Reddi, Kale & Kumar 2018, arXiv 1904.09237;
    AdamW: Loshchilov & Hutter 2019, arXiv 1711.05101.
    """
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    square = exp_avg_sq
    if max_exp_avg_sq is not None:
        square = torch.maximum(max_exp_avg_sq, exp_avg_sq, out=max_exp_avg_sq)
    denominator = (square.sqrt() / (1 - beta2**t) ** 0.5).add_(eps)
    return weight.addcdiv(exp_avg, denominator, value=-lr / (1 - beta1**t))
