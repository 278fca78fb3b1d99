"""A step with the clip of the weights, and the clip alone, by fastgan and torch.

Providers step the same weights with the same gradients, each with its own state: weights and
gradients are recently used, as after a backward pass, and the state is as old as the last step. In
"cold" cases each has its own weights and gradients, too, which the others have evicted from the
nearer caches.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import fastgan.optim
from fastgan.bench.cases import Case, Setting
from fastgan.bench.timing import Call
from fastgan.bench.work import elementwise
from fastgan.optim.weight_clipping import clip_weights_
from fastgan.training.optimizer_kinds import OPTIMIZER_KINDS

#: A critic for 64x64 images, ndf = 64: 2,765,568 weights (Radford et al. 2015, figure 1 mirrored).
_CRITIC = (
    *((64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (1, 512, 4, 4)),
    *((128,), (128,), (256,), (256,), (512,), (512,)),
)
_SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "DCGAN-64 critic": _CRITIC,
    "64 million weights in 200 tensors": ((320, 1000),) * 200,
}
_CLIP = 0.01


def _states(name: str) -> int:
    """How many tensors of the weights' size an optimiser keeps by default."""
    optimizer = getattr(fastgan.optim, name)([torch.zeros(1)])
    return sum(optimizer._states(optimizer.defaults).values())


#: Tensors of the weights' size that an op must read, and write: weight, gradient and states; weight
#: and states.
OPS: dict[str, tuple[int, int]] = {
    f"{row.name} and clip": (2 + _states(row.name), 1 + _states(row.name))
    for row in OPTIMIZER_KINDS.values()
    if hasattr(fastgan.optim, row.name)
} | {"clip alone": (1, 1)}


def cases(device: torch.device, quick: bool) -> list[Case]:
    """These cases of the suite "ops"."""
    wanted = [(op, "DCGAN-64 critic", cold) for op in OPS for cold in (False, True)]
    if not quick:
        wanted += [(op, "64 million weights in 200 tensors", True) for op in OPS]
    return [_case(op, shapes, cold) for op, shapes, cold in wanted]


def _case(op: str, shapes: str, cold: bool) -> Case:
    reads, writes = OPS[op]
    count = sum(torch.Size(shape).numel() for shape in _SHAPES[shapes])
    return Case(
        suite="ops",
        op=op,
        # 64 million weights are cold anyway.
        shape=shapes + ", cold" * (cold and shapes == "DCGAN-64 critic"),
        dtype="float32",
        batch=0,
        count_work=partial(elementwise, count, reads=reads, writes=writes, dtype="float32"),
        input_bytes=0,  # one set, as steps change the weights
        prepare=partial(_contenders, op, shapes, cold),
    )


def _weights(shapes: str, device: torch.device) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = []
    for shape in _SHAPES[shapes]:
        weight = torch.randn(shape, generator=generator).mul_(_CLIP).to(device).requires_grad_()
        weight.grad = torch.randn(shape, generator=generator).to(device)
        weights.append(weight)
    return weights


def _clamp_each(weights: list[torch.Tensor]) -> None:
    for weight in weights:
        weight.clamp_(-_CLIP, _CLIP)


def _clamp_foreach(weights: list[torch.Tensor]) -> None:
    torch._foreach_clamp_min_(weights, -_CLIP)
    torch._foreach_clamp_max_(weights, _CLIP)


_CLAMPS = {"clamp_": _clamp_each, "_foreach_clamp_": _clamp_foreach}


def _contenders(op: str, shapes: str, cold: bool, setting: Setting) -> dict[str, Call]:
    """fastgan's, then torch's implementations with each kind of clamp."""
    weights = _weights(shapes, setting.device)

    def own() -> list[torch.Tensor]:
        return _weights(shapes, setting.device) if cold else weights

    if op == "clip alone":
        calls: dict[str, Call] = {"fastgan": lambda _: clip_weights_(weights, _CLIP)}
        return calls | {name: _then_clamp(None, clamp, own()) for name, clamp in _CLAMPS.items()}
    name = op.split()[0]
    optimizer = getattr(fastgan.optim, name)(weights, lr=5e-5, clip=_CLIP)
    calls = {"fastgan": lambda _: optimizer.step()}
    implementations: dict[str, dict[str, Any]] = {
        "single-tensor": {"foreach": False},
        "foreach": {"foreach": True},
    }
    if "fused" in inspect.signature(getattr(torch.optim, name)).parameters:
        implementations["fused"] = {"fused": True}
    for implementation, settings in implementations.items():
        copies = own()
        peer = getattr(torch.optim, name)(copies, lr=5e-5, **settings)
        for clamp_name, clamp in _CLAMPS.items():
            calls[f"{implementation} and {clamp_name}"] = _then_clamp(peer.step, clamp, copies)
    return calls


def _then_clamp(
    step: Callable[[], object] | None,
    clamp: Callable[[list[torch.Tensor]], None],
    weights: list[torch.Tensor],
) -> Call:
    def call(_: int) -> None:
        if step is not None:
            step()
        with torch.no_grad():
            clamp(weights)

    return call
