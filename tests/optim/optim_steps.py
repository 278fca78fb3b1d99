"""Shared code of the optimisers' tests: parameters, gradients, torch's step and the exact one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def to_long_double(tensor):
    """A copy with at least ten bits more than a double has."""
    return tensor.detach().cpu().double().numpy().astype(np.longdouble)


def exact_rmsprop(weight, grad, state, step, lr, alpha, eps, momentum, centered):
    """torch.optim.RMSprop's step as its documentation has it."""
    one = np.longdouble(1)
    state["square_avg"] = alpha * state["square_avg"] + (one - alpha) * grad**2
    variance = state["square_avg"]
    if centered:
        state["grad_avg"] = alpha * state["grad_avg"] + (one - alpha) * grad
        variance = variance - state["grad_avg"] ** 2
    update = grad / (np.sqrt(variance) + eps)
    if momentum:
        update = state["momentum_buffer"] = momentum * state["momentum_buffer"] + update
    return weight - lr * update


def exact_adam(weight, grad, state, step, lr, betas, eps, amsgrad):
    """torch.optim.Adam's step as its documentation has it."""
    one = np.longdouble(1)
    first, second = (np.longdouble(beta) for beta in betas)
    state["exp_avg"] = first * state["exp_avg"] + (one - first) * grad
    state["exp_avg_sq"] = second * state["exp_avg_sq"] + (one - second) * grad**2
    largest = state["exp_avg_sq"]
    if amsgrad:
        largest = state["max_exp_avg_sq"] = np.maximum(state["max_exp_avg_sq"], largest)
    denominator = np.sqrt(largest / (one - second**step)) + eps
    return weight - lr / (one - first**step) * state["exp_avg"] / denominator


@dataclass(frozen=True)
class Row:
    """An optimiser: its exact rule, defaults, and settings with which it keeps all its states."""

    rule: Callable
    defaults: dict
    full: dict
    states: tuple[str, ...]
    decoupled: bool = False


_ADAM = (
    exact_adam,
    {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False},
    {"amsgrad": True},
    ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
)
ROWS = {
    "RMSprop": Row(
        exact_rmsprop,
        {"alpha": 0.99, "eps": 1e-8, "momentum": 0, "centered": False},
        {"momentum": 0.9, "centered": True},
        ("square_avg", "grad_avg", "momentum_buffer"),
    ),
    "Adam": Row(*_ADAM),
    "AdamW": Row(*_ADAM, decoupled=True),
}
#: Those whose numbers differ; and those whose Python does.
NUMERIC = list(ROWS)
OPTIMIZERS = ["RMSprop", "Adam"]


def exact_step(name, weight, grad, state, step, *, weight_decay=0, maximize=False, **options):
    """The new weight, from arrays of np.longdouble; writes the new state into `state`."""
    grad = -grad if maximize else grad
    if ROWS[name].decoupled:
        weight = weight - options["lr"] * weight_decay * weight
    else:
        grad = grad + weight_decay * weight
    with np.errstate(invalid="ignore", divide="ignore"):
        return ROWS[name].rule(weight, grad, state, step, **options)


def parameters(shapes, dtype, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64)
        .to(dtype)
        .to(device)
        .requires_grad_()
        for shape in shapes
    ]


def copies(params):
    return [p.detach().clone(memory_format=torch.preserve_format).requires_grad_() for p in params]


def set_gradients(groups_of_params, seed):
    """The same gradients for every list of parameters, in each parameter's own layout."""
    generator = torch.Generator().manual_seed(seed)
    for same in zip(*groups_of_params, strict=True):
        gradient = torch.randn(same[0].shape, generator=generator, dtype=torch.float64)
        for param in same:
            param.grad = torch.empty_like(param).copy_(gradient)


def reference_step(optimizer, params, bounds, clip_when="after"):
    def clamp():
        with torch.no_grad():
            for param in params:
                param.clamp_(*bounds)

    if bounds is not None and clip_when == "before":
        clamp()
    optimizer.step()
    if bounds is not None and clip_when == "after":
        clamp()


def bounds_of(clip):
    return (-clip, clip) if isinstance(clip, float) else clip
