"""The gradient penalty and the whole critic loss with gradients, of a DCGAN-64 critic.

Peers are :mod:`fastgan.reference`'s double backward, channels-last and in torch's default layout,
and the former under torch.compile, which needs ``trace_autograd_ops`` for it. All get the same
weights, images and points between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastgan import penalty, reference
from fastgan.bench.cases import Case, Setting, autocast, placed, tracing_autograd
from fastgan.bench.suites.layers import critic_layers, penalty_work
from fastgan.bench.timing import Call
from fastgan.models import WGANCritic

__all__ = ["OPS", "cases"]

#: Op -> whether it is the whole loss.
OPS = {"gradient penalty": False, "critic loss": True}

Loss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Of the suite "ops"."""
    if device.type == "cuda":
        batches = [64] if quick else [64, 128, 512]
        dtypes = ["bfloat16"] if quick else ["float32", "bfloat16"]
    else:
        batches = [16] if quick else [16, 32, 64]
        dtypes = ["float32"] if quick else ["float32", "bfloat16"]
    found = [_case(op, "none", dtype, batch) for op in OPS for dtype in dtypes for batch in batches]
    normalised = [("critic loss", "layer", dtype, batch) for dtype in dtypes for batch in batches]
    return found + [_case(*each) for each in normalised]


def _case(op: str, norm: str, dtype: str, batch: int) -> Case:
    whole = OPS[op]

    def prepare(setting: Setting) -> dict[str, Call]:
        return _contenders(whole, norm, dtype, batch, setting)

    return Case(
        suite="ops",
        op=op,
        shape="DCGAN-64 critic" + (", layer norm" if norm == "layer" else ""),
        dtype=dtype,
        batch=batch,
        work=penalty_work(critic_layers(), batch, dtype, whole=whole),
        input_bytes=2 * 4 * batch * 3 * 64 * 64,
        prepare=prepare,
        capturable=True,
        breakdown=whole,
    )


def _contenders(
    whole: bool, norm: str, dtype: str, batch: int, setting: Setting
) -> dict[str, Call]:
    device = setting.device
    torch.manual_seed(0)
    ours = WGANCritic(norm=norm)
    weights = ours.state_dict()
    images = torch.randn(setting.copies, 2, batch, 3, 64, 64).to(device)
    eps = torch.rand(setting.copies, batch, 1, 1, 1).to(device)

    def call(
        loss: Loss, model: nn.Module, layout: torch.memory_format, mode: str | None = None
    ) -> Call:
        placed(model, weights, device, layout)
        pairs = [
            tuple(each.contiguous(memory_format=layout) for each in pair.unbind(0))
            for pair in images
        ]
        run: Callable[..., Any] = loss if mode is None else torch.compile(loss, mode=mode)

        def step(number: int) -> None:
            model.zero_grad()
            with autocast(device, dtype):
                value = run(model, *pairs[number], eps[number])
            value.backward()

        if mode is None:
            return step

        def step_traced(number: int) -> None:
            with tracing_autograd():
                step(number)

        return step_traced

    plain = _plain_loss if whole else _plain_penalty
    last, default = torch.channels_last, torch.contiguous_format
    calls = {
        "fastgan": call(_our_loss if whole else _our_penalty, ours, last),
        "eager": call(plain, reference.WGANCritic(norm=norm), last),
        "eager, contiguous": call(plain, reference.WGANCritic(norm=norm), default),
    }
    if setting.compile_mode is not None:
        model = reference.WGANCritic(norm=norm)
        calls["torch.compile"] = call(plain, model, last, setting.compile_mode)
    return calls


def _our_penalty(critic: nn.Module, real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    return penalty.gradient_penalty(critic, real, fake, eps=eps)


def _our_loss(critic: nn.Module, real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    return penalty.wgan_gp_critic_loss(critic, real, fake, eps=eps).loss


def _plain_penalty(critic: nn.Module, real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    return reference.gradient_penalty(critic, real, fake, eps=eps)


def _plain_loss(critic: nn.Module, real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    return reference.wgan_gp_critic_loss(critic, real, fake, eps=eps).loss
