"""A DCGAN's layers: batch norm and activation, without and with the convolution before them.

Peers are :mod:`fastgan.reference`'s functions on the same tensors, channels-last and in torch's
default layout, and the former under torch.compile. All run forward and backward, including the
input gradient. Weights and inputs have the case's dtype; batch norm's parameters are float32.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastgan import functional, reference
from fastgan.bench.cases import DTYPES, Case, Setting
from fastgan.bench.suites.layers import Layer, critic_layers, generator_layers
from fastgan.bench.timing import Call
from fastgan.bench.work import ITEM_BYTES, elementwise
from fastgan.ops.backends import PASSES


def cases(device: torch.device, quick: bool) -> list[Case]:
    """These cases of the suite "ops"."""
    if device.type == "cuda":
        batches = [64] if quick else [64, 128, 512]
        dtypes = ["bfloat16"] if quick else ["bfloat16", "float16", "float32"]
    else:
        batches = [64]
        dtypes = ["float32"] if quick else ["float32", "bfloat16"]
    generator = [layer for layer in generator_layers() if layer.normalised]
    critic = [layer for layer in critic_layers() if layer.normalised]
    small = quick and device.type == "cpu"
    return [
        _case("bn_act", layer, dtype, batch, compiled=not quick or device.type == "cpu")
        for dtype in dtypes
        for batch in batches
        for layer in generator
    ] + [
        _case(_function(layer), layer, dtype, 16 if small else batch, compiled=not quick)
        for dtype in dtypes
        for batch in batches
        for layer in (*generator, *critic)
    ]


def _function(layer: Layer) -> str:
    """The generator's convolutions are transposed, the critic's are not."""
    return "conv_transpose2d_bn_act" if layer.transposed else "conv2d_bn_act"


def _case(function: str, layer: Layer, dtype: str, batch: int, *, compiled: bool) -> Case:
    output = batch * layer.channels_out * layer.size_out**2
    input = batch * layer.channels_in * layer.size_in**2
    shape, count_work = layer.shape, partial(layer.work, batch, dtype, PASSES)
    if function == "bn_act":
        input, shape = output, f"{layer.channels_out}x{layer.size_out}x{layer.size_out}"
        # Two passes over the input, for statistics and result, and two over input and gradient.
        count_work = partial(elementwise, output, reads=6, writes=2, dtype=dtype)
    return Case(
        suite="ops",
        op=f"{function}, forward and backward",
        shape=shape,
        dtype=dtype,
        batch=batch,
        count_work=count_work,
        input_bytes=(input + output) * ITEM_BYTES[dtype],
        prepare=partial(_contenders, function, layer, dtype, batch),
        compiled=compiled,
        capturable=True,
    )


def _contenders(
    name: str, layer: Layer, dtype: str, batch: int, setting: Setting
) -> dict[str, Call]:
    device, kind, channels = setting.device, DTYPES[dtype], layer.channels_out
    torch.manual_seed(0)

    def maps(channels: int, size: int) -> list[Tensor]:
        shape = (batch, channels, size, size)
        return [torch.randn(shape).to(device, kind) for _ in range(setting.copies)]

    gradients = maps(channels, layer.size_out)
    scale, shift = torch.rand(channels, device=device) + 0.5, torch.randn(channels, device=device)
    options, weights = {}, []
    if name == "bn_act":
        inputs = maps(channels, layer.size_out)
    else:
        inputs = maps(layer.channels_in, layer.size_in)
        options = {"stride": layer.stride, "padding": layer.padding}
        weights = [(0.02 * torch.randn(layer.weight_shape)).to(device, kind)]

    def call(module: Any, layout: torch.memory_format, mode: str | None = None) -> Call:
        leaves = [tensor.contiguous(memory_format=layout).requires_grad_() for tensor in inputs]
        sets = [tensor.contiguous(memory_format=layout) for tensor in gradients]
        parameters = [scale.clone().requires_grad_(), shift.clone().requires_grad_()]
        parameters += [tensor.clone(memory_format=layout).requires_grad_() for tensor in weights]
        statistics = [torch.zeros(channels, device=device), torch.ones(channels, device=device)]

        def forward(input: Tensor, bn_weight: Tensor, bn_bias: Tensor, *weights: Tensor) -> Tensor:
            result: Tensor = getattr(module, name)(
                input,
                *weights,
                bn_weight=bn_weight,
                bn_bias=bn_bias,
                running_mean=statistics[0],
                running_var=statistics[1],
                training=True,
                activation=layer.activation,
                **options,
            )
            return result

        run = forward if mode is None else torch.compile(forward, mode=mode)

        def step(number: int) -> None:
            for leaf in (leaves[number], *parameters):
                leaf.grad = None
            run(leaves[number], *parameters).backward(sets[number])

        return step

    last, default = torch.channels_last, torch.contiguous_format
    calls = {
        "fastgan": call(functional, last),
        "eager": call(reference, last),
        "eager, contiguous": call(reference, default),
    }
    if setting.compile_mode is not None:
        calls["torch.compile"] = call(reference, last, setting.compile_mode)
    return calls
