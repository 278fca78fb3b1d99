"""Random chains, critics and optimiser steps on strange values, against float64 and eager.

NaN, infinities, subnormal numbers, 1e30, a mean far above the spread. What must hold, with `exact`
the same program of plain PyTorch in float64, and `eager` in float32:

- where `exact` fits a float32 and `eager` is finite, ours is too, and the largest error is at most
  four times eager's, or 1e-4 of the largest value (3e-2 where a mean 1e5 times the spread makes
  that much of float32's rounding);
- where neither is finite, ours isn't: what went wrong stays visible.

Where eager overflows and float64 doesn't, nothing is promised: eager isn't finite there, or, if
what overflowed was a variance, off by more than a tenth.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from penalty.test_penalty_programs import CHANNELS, SIZE, N, Program, flat
from torch import Tensor, nn

import fastgan
from fastgan.nn import fuse
from fastgan.ops.backends import measuring_nothing

STRANGE = (float("nan"), float("inf"), -float("inf"), 1e-42, -1e-40, 1e30, -1e30, 0.0, -0.0, 3e38)
SMOOTH = ("none", "tanh", "sigmoid")
#: Steps of a program without kinks: two precisions don't fall on different sides of one.
SMOOTH_STEPS = (
    *("conv", "grouped", "transposed", "gelu", "silu", "gain", "shared gain", "residual"),
    *("product", "norm", "instance norm", "layer norm", "batch norm", "attention", "centred"),
    *("shuffled", "turned", "rolled", "stacked", "einsum", "spread"),
)


def strange(draw: random.Random, kind: str, *shape: int) -> Tensor:
    """Normal numbers, of which `kind` makes something else."""
    values = torch.randn(shape)
    if kind == "some":
        flat_values = values.view(-1)
        for _ in range(min(3, flat_values.numel())):
            flat_values[draw.randrange(flat_values.numel())] = draw.choice(STRANGE)
    return {"far": 1e3 + 1e-2 * values, "tiny": 1e-40 * values, "large": 1e30 * values}.get(
        kind, values
    )


KINDS_OF_VALUES = ("plain", "some", "some", "far", "tiny", "large")


def right(ours: Tensor, eager: Tensor, exact: Tensor, kind: str) -> bool:
    """Whether these results of values of that kind hold what this file promises."""
    fits, finite = exact.float().isfinite(), ours.isfinite()
    if bool((finite & ~fits & ~eager.isfinite()).any()):
        return False
    known = fits & eager.isfinite()
    if not bool(known.any()):
        return True
    expected = exact[known]
    largest = float(expected.abs().max())
    eager_error = float((eager[known].double() - expected).abs().max())
    if eager_error > 0.1 * largest:
        return True
    error = float((ours[known].double() - expected).abs().max())  # NaN where ours isn't finite
    return error <= 4 * eager_error + (3e-2 if kind == "far" else 1e-4) * largest + 1e-37


# --- Chains ---------------------------------------------------------------------------------------


def _chain(draw: random.Random, activations: tuple[str, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    modules: dict[str, Callable[[], nn.Module]] = {
        "relu": nn.ReLU, "leaky_relu": lambda: nn.LeakyReLU(0.2), "tanh": nn.Tanh,
        "sigmoid": nn.Sigmoid,
    }  # fmt: skip
    for _ in range(draw.randint(1, 3)):
        after = draw.choice([1, 4, 8])
        taps, stride, padding = draw.choice([(3, 1, 1), (4, 2, 1), (1, 1, 0), (5, 2, 2)])
        layer = draw.choice([nn.Conv2d, nn.ConvTranspose2d])
        layers.append(layer(channels, after, taps, stride, padding, bias=draw.random() < 0.5))
        if draw.random() < 0.7:
            affine, tracked = draw.random() < 0.7, draw.random() < 0.7
            layers.append(nn.BatchNorm2d(after, affine=affine, track_running_stats=tracked))
        activation = draw.choice(activations)
        if activation != "none":
            layers.append(modules[activation]())
        channels = after
    return nn.Sequential(*layers)


def _results(net: nn.Module, images: Tensor, grad: Tensor) -> list[Tensor]:
    """Output, the input's gradient, the parameters' in one, and running statistics.

    Of all parameters in one, as that of a bias before a norm is 0, and its rounding errors are not.
    """
    leaf = images.clone().requires_grad_()
    output = net(leaf)
    output.backward(grad)
    assert leaf.grad is not None
    gradients = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    statistics = [buffer for buffer in net.buffers() if buffer.is_floating_point()]
    return [output.detach(), leaf.grad, gradients, *statistics]


def chains_are_right(draw: random.Random) -> bool:
    """One chain, forward and backward, in training or evaluation."""
    torch.manual_seed(draw.randrange(2**32))
    kind = draw.choice(KINDS_OF_VALUES)
    activations = SMOOTH if kind in ("far", "tiny") else (*SMOOTH, "relu", "leaky_relu")
    plain = _chain(draw, activations).train(draw.random() < 0.6)
    images = strange(draw, kind, 3, 3, 8, 8)
    exact_net, ours_net = copy.deepcopy(plain).double(), fuse(copy.deepcopy(plain))
    with torch.no_grad():
        shape = copy.deepcopy(plain)(images).shape
    grad = strange(draw, draw.choice(["plain", "plain", "some"]), *shape)
    exact = _results(exact_net, images.double(), grad.double())
    eager = _results(plain, images, grad)
    # Small layers as well, and what a backend is chosen by is not their speed.
    with mock.patch("fastgan.nn.stretch.LEAVE_TO_TORCH", False), measuring_nothing():
        ours = _results(ours_net, images, grad)
    return all(right(*each, kind) for each in zip(ours, eager, exact, strict=True))


# --- Critics --------------------------------------------------------------------------------------


def critics_are_right(draw: random.Random) -> bool:
    """One critic, a random program, with a loss and penalties."""
    torch.manual_seed(draw.randrange(2**32))
    steps = draw.choices(SMOOTH_STEPS, k=draw.randint(1, 5))
    kind = draw.choice(KINDS_OF_VALUES)
    real, fake = (strange(draw, kind, N, CHANNELS, SIZE, SIZE) for _ in range(2))
    critic = Program(list(steps))
    asked: dict[str, Any] = {
        "loss": draw.choice(["wasserstein", "logistic", "relativistic"]),
        **{name: 0.5 for name in ("gp", "r1", "r2") if draw.random() < 0.5},
    }
    eps = torch.rand(N, 1, 1, 1)

    def results(dtype: torch.dtype, path: str) -> tuple[Tensor, Tensor]:
        net = copy.deepcopy(critic).to(dtype)
        arguments = (real.to(dtype), fake.to(dtype))
        found = fastgan.discriminator_loss(net, *arguments, eps=eps.to(dtype), path=path, **asked)
        return found.loss.detach(), flat(net, found.loss)

    try:
        exact, eager = results(torch.float64, "autograd"), results(torch.float32, "autograd")
    except RuntimeError:
        return True  # autograd has no answer
    ours = results(torch.float32, "auto")
    for mine, theirs, truth in zip(ours, eager, exact, strict=True):
        known = bool(truth.float().isfinite().all()) and bool(theirs.isfinite().all())
        sick = not bool(truth.float().isfinite().all()) and not bool(theirs.isfinite().all())
        if sick and bool(mine.isfinite().all()):
            return False
        if known and not right(mine, theirs, truth, kind):
            return False
    return True


# --- Optimisers -----------------------------------------------------------------------------------


def steps_are_right(draw: random.Random) -> bool:
    """Some steps of an optimiser whose weights, gradients and states are strange."""
    torch.manual_seed(draw.randrange(2**32))
    name = draw.choice(["Adam", "AdamW", "RMSprop"])
    options: dict[str, Any] = {"lr": draw.choice([1e-3, 0.1]), "maximize": draw.random() < 0.3,
                               "weight_decay": draw.choice([0.0, 0.1])}  # fmt: skip
    if name != "RMSprop":
        options["amsgrad"] = draw.random() < 0.3
    else:
        options |= {"momentum": draw.choice([0.0, 0.9]), "centered": draw.random() < 0.3}
    shapes = [(draw.choice([1, 3, 17, 64]), draw.choice([1, 5])) for _ in range(draw.randint(1, 3))]
    weights = [strange(draw, draw.choice(KINDS_OF_VALUES), *shape) for shape in shapes]
    gradients = [
        [strange(draw, draw.choice(KINDS_OF_VALUES), *shape) for shape in shapes] for _ in range(3)
    ]

    def results(module: Any, dtype: torch.dtype) -> list[Tensor]:
        params = [nn.Parameter(weight.to(dtype, copy=True)) for weight in weights]
        optimizer = getattr(module, name)(params, **options)
        for step in gradients:
            for param, gradient in zip(params, step, strict=True):
                param.grad = gradient.to(dtype, copy=True)
            optimizer.step()
        states = [optimizer.state[param] for param in params]
        return [p.detach() for p in params] + [
            state[key] for state in states for key in sorted(state) if key != "step"
        ]

    exact, eager = results(torch.optim, torch.float64), results(torch.optim, torch.float32)
    ours = results(fastgan.optim, torch.float32)
    return all(right(*each, "") for each in zip(ours, eager, exact, strict=True))


def quietly(check: Callable[[random.Random], bool], draw: random.Random) -> bool:
    """`check` without warnings, and with torch's random state as it was."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        return check(draw)
