"""A DCGAN's layers one by one: batch norm and activation, and with the convolution before them.

Peers are :mod:`fastgan.reference`'s functions on the same tensors, channels-last and in torch's
default layout, and the former under torch.compile. All run forward and backward, to the input as
well. Weights and inputs are of the case's dtype; batch norm's own numbers are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastgan import functional, reference
from fastgan.bench.cases import DTYPES, Case, Setting
from fastgan.bench.suites.layers import Layer, critic_layers, generator_layers
from fastgan.bench.timing import Call
from fastgan.bench.work import ITEM_BYTES, elementwise

__all__ = ["cases"]

Function = Callable[..., Tensor]


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Of the suite "ops"."""
    if device.type == "cuda":
        batches = [64] if quick else [64, 128, 512]
        dtypes = ["bfloat16"] if quick else ["bfloat16", "float16", "float32"]
    else:
        batches = [64]
        dtypes = ["float32"] if quick else ["float32", "bfloat16"]
    generator = [layer for layer in generator_layers() if layer.normalised]
    critic = [layer for layer in critic_layers() if layer.normalised]
    found = [
        _bn_act_case(layer, dtype, batch, not quick or device.type == "cpu")
        for dtype in dtypes
        for batch in batches
        for layer in generator
    ]
    return found + [
        _fused_case(layer, dtype, 16 if quick and device.type == "cpu" else batch, not quick)
        for dtype in dtypes
        for batch in batches
        for layer in (*generator, *critic)
    ]


def _bn_act_case(layer: Layer, dtype: str, batch: int, compiled: bool) -> Case:
    channels, size = layer.channels_out, layer.size_out
    shape = (batch, channels, size, size)
    elements = batch * channels * size * size

    def prepare(setting: Setting) -> dict[str, Call]:
        return _contenders(
            functional.bn_act, reference.bn_act, shape, None, {}, shape, layer, dtype, setting
        )

    return Case(
        suite="ops",
        op="bn_act, forward and backward",
        shape=f"{channels}x{size}x{size}",
        dtype=dtype,
        batch=batch,
        # Twice through the input for its statistics and its result, and twice through input and
        # gradient, for the same reason.
        work=elementwise(elements, reads=6, writes=2, dtype=dtype),
        input_bytes=2 * elements * ITEM_BYTES[dtype],
        prepare=prepare,
        compiled=compiled,
        capturable=True,
    )


def _contenders(
    ours: Function,
    plain: Function,
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...] | None,
    options: dict[str, Any],
    output_shape: tuple[int, ...],
    layer: Layer,
    dtype: str,
    setting: Setting,
) -> dict[str, Call]:
    device, kind = setting.device, DTYPES[dtype]
    torch.manual_seed(0)
    inputs = [torch.randn(shape).to(device, kind) for _ in range(setting.copies)]
    gradients = [torch.randn(output_shape).to(device, kind) for _ in range(setting.copies)]
    channels = layer.channels_out
    scale, shift = torch.rand(channels, device=device) + 0.5, torch.randn(channels, device=device)
    weight = None if weight_shape is None else (0.02 * torch.randn(weight_shape)).to(device, kind)

    def call(function: Function, layout: torch.memory_format, mode: str | None = None) -> Call:
        leaves = [each.contiguous(memory_format=layout).requires_grad_() for each in inputs]
        sets = [each.contiguous(memory_format=layout) for each in gradients]
        parameters = [scale.clone().requires_grad_(), shift.clone().requires_grad_()]
        statistics = [torch.zeros(channels, device=device), torch.ones(channels, device=device)]
        if weight is not None:
            parameters.append(weight.clone(memory_format=layout).requires_grad_())

        def layer_of(input: Tensor, bn_weight: Tensor, bn_bias: Tensor, *weights: Tensor) -> Tensor:
            return function(
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

        run: Function = layer_of if mode is None else torch.compile(layer_of, mode=mode)

        def step(number: int) -> None:
            for leaf in (leaves[number], *parameters):
                leaf.grad = None
            run(leaves[number], *parameters).backward(sets[number])

        return step

    last, default = torch.channels_last, torch.contiguous_format
    calls = {
        "fastgan": call(ours, last),
        "eager": call(plain, last),
        "eager, contiguous": call(plain, default),
    }
    if setting.compile_mode is not None:
        calls["torch.compile"] = call(plain, last, setting.compile_mode)
    return calls


def _fused_case(layer: Layer, dtype: str, batch: int, compiled: bool) -> Case:
    """With the convolution: the generator's are transposed, the critic's are not."""
    name = "conv_transpose2d_bn_act" if layer.transposed else "conv2d_bn_act"
    shape = (batch, layer.channels_in, layer.size_in, layer.size_in)
    output_shape = (batch, layer.channels_out, layer.size_out, layer.size_out)
    ends = (layer.channels_in, layer.channels_out)
    weight_shape = (*(ends if layer.transposed else ends[::-1]), 4, 4)
    options = {"stride": layer.stride, "padding": layer.padding}

    def prepare(setting: Setting) -> dict[str, Call]:
        return _contenders(
            getattr(functional, name),
            getattr(reference, name),
            *(shape, weight_shape, options, output_shape, layer, dtype, setting),
        )

    elements = shape[1] * shape[2] ** 2 + output_shape[1] * output_shape[2] ** 2
    return Case(
        suite="ops",
        op=f"{name}, forward and backward",
        shape=layer.shape,
        dtype=dtype,
        batch=batch,
        work=layer.work(batch, dtype, ("forward", "input_gradient", "weight_gradient")),
        input_bytes=batch * elements * ITEM_BYTES[dtype],
        prepare=prepare,
        compiled=compiled,
        capturable=True,
    )
