"""A step and the clip of the weights, ours and torch's; and the clip alone.

Contenders step the same weights with the same gradients, each with a state of its own: so each
finds weights and gradients as a training loop's backward pass leaves them, recently used, and its
state as its last step left it. In a "cold" case each has weights and gradients of its own too,
which the others have pushed out of the nearer caches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import fastgan.optim
from fastgan.bench.cases import Case, Setting
from fastgan.bench.timing import Call
from fastgan.bench.work import Work, elementwise
from fastgan.errors import ConfigError
from fastgan.optim.weight_clipping import clip_weights_

__all__ = ["CLIP", "OPS", "SHAPES", "cases", "contenders", "work_of"]

#: A critic for 64x64 images, ndf = 64: 2,765,568 weights (Radford et al. 2015, figure 1 mirrored).
_CRITIC = (
    *((64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (1, 512, 4, 4)),
    *((128,), (128,), (256,), (256,), (512,), (512,)),
)
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "DCGAN-64 critic": _CRITIC,
    "64 million weights in 200 tensors": ((320, 1000),) * 200,
}
CLIP = 0.01
#: Tensors of the weights' size that an op can't do without reading, and writing.
OPS: dict[str, tuple[int, int]] = {
    "RMSprop and clip": (3, 2),  # weight, gradient, mean square; weight, mean square
    "Adam and clip": (4, 3),  # weight, gradient, two moments; weight, two moments
    "clip alone": (1, 1),
}


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Of the suite "ops"."""
    wanted = [(op, "DCGAN-64 critic", cold) for op in OPS for cold in (False, True)]
    if not quick:
        wanted += [(op, "64 million weights in 200 tensors", True) for op in OPS]
    return [_case(op, shapes, cold) for op, shapes, cold in wanted]


def _case(op: str, shapes: str, cold: bool) -> Case:
    def prepare(setting: Setting) -> dict[str, Call]:
        calls = contenders(op, shapes, cold=cold, device=setting.device)
        return {name: _ignoring_number(call) for name, call in calls.items()}

    return Case(
        suite="ops",
        op=op,
        # Sixty-four million weights are cold anyhow.
        shape=shapes + ", cold" * (cold and shapes == "DCGAN-64 critic"),
        dtype="float32",
        batch=0,
        work=work_of(op, shapes),
        input_bytes=0,  # one set: weights are what the last step made of them
        prepare=prepare,
    )


def work_of(op: str, shapes: str) -> Work:
    """20, 28 or 8 bytes a weight."""
    reads, writes = OPS[op]
    count = sum(torch.Size(shape).numel() for shape in SHAPES[shapes])
    return elementwise(count, reads=reads, writes=writes, dtype="float32")


def _ignoring_number(call: Callable[[], object]) -> Call:
    return lambda number: call()


def _weights(shapes: str, device: torch.device) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = []
    for shape in SHAPES[shapes]:
        weight = torch.randn(shape, generator=generator).mul_(CLIP).to(device).requires_grad_()
        weight.grad = torch.randn(shape, generator=generator).to(device)
        weights.append(weight)
    return weights


def _clamp_each(weights: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for weight in weights:
            weight.clamp_(-CLIP, CLIP)


def _clamp_foreach(weights: list[torch.Tensor]) -> None:
    with torch.no_grad():
        torch._foreach_clamp_min_(weights, -CLIP)
        torch._foreach_clamp_max_(weights, CLIP)


_CLAMPS: dict[str, Callable[[list[torch.Tensor]], None]] = {
    "clamp_": _clamp_each,
    "_foreach_clamp_": _clamp_foreach,
}


def contenders(
    op: str, shapes: str, *, cold: bool, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Name and call of each; fastgan's first, then all of torch's implementations.

    Args:
        op: a name of :data:`OPS`.
        shapes: a name of :data:`SHAPES`.
        cold: whether each has weights and gradients of its own.
        device: of the weights.

    Raises:
        ConfigError: there is no such op or shape.
    """
    if op not in OPS or shapes not in SHAPES:
        raise ConfigError(f"op, shapes: expected one of {list(OPS)} and of {list(SHAPES)}")
    weights = _weights(shapes, device)
    if op == "clip alone":
        calls: dict[str, Callable[[], object]] = {"fastgan": lambda: clip_weights_(weights, CLIP)}
        for clamp_name, clamp in _CLAMPS.items():
            own = _weights(shapes, device) if cold else weights
            calls[clamp_name] = _clamped(lambda: None, clamp, own)
        return calls
    name = op.split()[0]
    ours = getattr(fastgan.optim, name)(weights, lr=5e-5, clip=CLIP)
    calls = {"fastgan": ours.step}
    implementations: dict[str, dict[str, Any]] = {
        "single-tensor": {"foreach": False},
        "foreach": {"foreach": True},
    }
    if name == "Adam":
        implementations["fused"] = {"fused": True}
    for implementation, settings in implementations.items():
        own = _weights(shapes, device) if cold else weights
        theirs = getattr(torch.optim, name)(own, lr=5e-5, **settings)
        for clamp_name, clamp in _CLAMPS.items():
            calls[f"{implementation} and {clamp_name}"] = _clamped(theirs.step, clamp, own)
    return calls


def _clamped(
    step: Callable[[], object],
    clamp: Callable[[list[torch.Tensor]], None],
    weights: list[torch.Tensor],
) -> Callable[[], object]:
    def call() -> None:
        step()
        clamp(weights)

    return call
