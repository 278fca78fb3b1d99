"""A DCGAN's networks at 64 pixels and other people's, forward and backward to the weights.

Peers are :mod:`fastgan.reference`'s networks with the same weights, channels-last and in torch's
default layout, and the former under torch.compile; for networks of :mod:`fastgan.bench.styles`,
which ``fastgan.fuse`` makes ours with weights in either layout, the networks as they are. Weights
are float32; "bfloat16" and "float16" are autocast's, for all alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastgan import models, reference
from fastgan.bench.cases import DTYPES, Case, Setting, autocast, placed
from fastgan.bench.styles import STYLES, DcganCritic
from fastgan.bench.suites.layers import Layer, critic_layers, generator_layers, network_work
from fastgan.bench.timing import Call
from fastgan.bench.work import products_work
from fastgan.nn import fuse

__all__ = ["cases"]

#: Op -> layers, ours, the reference's, and the shape of an input without its batch.
_NETWORKS: dict[
    str,
    tuple[
        Callable[[], list[Layer]],
        Callable[[], nn.Module],
        Callable[[], nn.Module],
        tuple[int, int, int],
    ],
] = {
    "generator": (
        generator_layers,
        models.DCGANGenerator,
        reference.DCGANGenerator,
        (100, 1, 1),
    ),
    "discriminator": (
        critic_layers,
        lambda: models.DCGANDiscriminator(output="logits"),
        lambda: reference.DCGANDiscriminator(output="logits"),
        (3, 64, 64),
    ),
    "critic": (
        critic_layers,
        lambda: models.WGANCritic(norm="batch"),
        lambda: reference.WGANCritic(norm="batch"),
        (3, 64, 64),
    ),
}


def cases(device: torch.device, quick: bool) -> list[Case]:
    """The suite "models"."""
    if device.type == "cuda":
        batches = [64] if quick else [64, 128, 512]
        dtypes = ["bfloat16"] if quick else ["bfloat16", "float16", "float32"]
    else:
        batches = [32] if quick else [16, 64]
        dtypes = ["float32"] if quick else ["float32", "bfloat16"]
    own = [
        _case(network, dtype, batch)
        for network in _NETWORKS
        for dtype in dtypes
        for batch in batches
    ]
    return own if quick else own + [_style_case(kind, dtype) for kind in STYLES for dtype in dtypes]


def _style_case(kind: type[nn.Module], dtype: str, batch: int = 16) -> Case:
    shape = STYLES[kind]

    def prepare(setting: Setting) -> dict[str, Call]:
        device = setting.device
        torch.manual_seed(0)
        weights = kind().state_dict()
        inputs = torch.randn(setting.copies, batch, *shape).to(device)

        def call(layout: torch.memory_format, *, fused: bool, mode: str | None = None) -> Call:
            model = placed(kind(), weights, device, layout)
            model = fuse(model) if fused else model
            run = model if mode is None else torch.compile(model, mode=mode)
            sets = list(inputs)
            if inputs.dim() == 5:
                sets = [each.contiguous(memory_format=layout) for each in inputs]
            with torch.no_grad(), autocast(device, dtype):
                output = model(sets[0])
            return _forward_and_backward(model, run, sets, torch.randn_like(output), dtype)

        last, default = torch.channels_last, torch.contiguous_format
        calls = {"fastgan, contiguous": call(default, fused=True)}
        calls["eager, contiguous"] = call(default, fused=False)
        if kind is not DcganCritic:  # whose view takes no other layout
            calls["fastgan"] = call(last, fused=True)
            calls["eager"] = call(last, fused=False)
        if setting.compile_mode is not None:
            calls["torch.compile"] = call(default, fused=False, mode=setting.compile_mode)
        return calls

    with torch.device("meta"):
        work = products_work(
            kind().eval(), torch.empty(batch, *shape), dtype, gradients="of parameters"
        )
    return Case(
        suite="models",
        op=f"{kind.__name__}, forward and backward",
        shape="x".join(map(str, shape)),
        dtype=dtype,
        batch=batch,
        work=work,
        input_bytes=4 * batch * math.prod(shape),
        prepare=prepare,
        capturable=True,
        breakdown=True,
    )


def _case(network: str, dtype: str, batch: int) -> Case:
    layers, ours, theirs, shape = _NETWORKS[network]
    elements = batch * shape[0] * shape[1] * shape[2]

    def prepare(setting: Setting) -> dict[str, Call]:
        device = setting.device
        torch.manual_seed(0)
        model = ours()
        weights = model.state_dict()
        inputs = torch.randn(setting.copies, batch, *shape).to(device)

        def call(model: nn.Module, layout: torch.memory_format, mode: str | None = None) -> Call:
            placed(model, weights, device, layout)
            run = model if mode is None else torch.compile(model, mode=mode)
            sets = [each.contiguous(memory_format=layout) for each in inputs]
            with torch.no_grad(), autocast(device, dtype):
                output = model(sets[0])
            gradients = torch.randn(output.shape).to(device, DTYPES[dtype])
            if gradients.dim() == 4:
                gradients = gradients.contiguous(memory_format=layout)
            return _forward_and_backward(model, run, sets, gradients, dtype)

        last, default = torch.channels_last, torch.contiguous_format
        calls = {
            "fastgan": call(model, last),
            "eager": call(theirs(), last),
            "eager, contiguous": call(theirs(), default),
        }
        if setting.compile_mode is not None:
            calls["torch.compile"] = call(theirs(), last, setting.compile_mode)
        return calls

    return Case(
        suite="models",
        op=f"{network}, forward and backward",
        shape="DCGAN-64",
        dtype=dtype,
        batch=batch,
        work=network_work(layers(), batch, dtype),
        input_bytes=4 * elements,
        prepare=prepare,
        capturable=True,
        breakdown=True,
    )


def _forward_and_backward(
    model: nn.Module,
    run: Callable[[Tensor], Tensor],
    inputs: list[Tensor],
    gradients: Tensor,
    dtype: str,
) -> Call:
    device = gradients.device

    def call(number: int) -> None:
        model.zero_grad()
        with autocast(device, dtype):
            output = run(inputs[number])
        output.backward(gradients)

    return call
