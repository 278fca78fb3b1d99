"""Each pass of a GAN's convolutions alone, against cuDNN or oneDNN.

Ours on a GPU are the Triton kernels, on a CPU the fastest of the backends; there only those layers
are cases for which the fixed table has one of our own kernels. Both sides take channels-last images
and weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastgan import kernels
from fastgan.bench.cases import DTYPES, Case, Setting
from fastgan.bench.suites.layers import (
    Layer,
    critic_layers,
    generator_layers,
    paper_layers,
    residual_layers,
)
from fastgan.bench.timing import Call
from fastgan.bench.work import ITEM_BYTES
from fastgan.ops.backends import ATEN, Pass, Selector, select_backend, using
from fastgan.ops.stages import Stage

__all__ = ["PASSES", "cases", "contenders"]

#: Name -> what :func:`fastgan.bench.work.convolution_steps` calls it.
PASSES: dict[str, Pass] = {
    "forward": "forward",
    "input gradient": "input_gradient",
    "weight gradient": "weight_gradient",
}


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Of the suite "ops"."""
    layers = (*generator_layers(), *critic_layers())
    if device.type == "cuda":
        dtypes = ["bfloat16"] if quick else ["bfloat16", "float16"]
        batches = [128] if quick else [128, 512]
    else:
        dtypes = ["float32"] if quick else ["float32", "bfloat16"]
        batches = [64]
        others = (*residual_layers(), *paper_layers())
        layers = (*layers[1:4], others[2]) if quick else (*layers[1:], *others)
    return [
        _case(layer, each, dtype, batch)
        for dtype in dtypes
        for batch in batches
        for layer in layers
        for each in PASSES
        if device.type == "cuda" or _on_our_own_kernels(layer, each, dtype, batch)
    ]


def _on_our_own_kernels(layer: Layer, each: str, dtype: str, batch: int) -> bool:
    input = torch.empty((), dtype=DTYPES[dtype]).expand(
        batch, layer.channels_in, layer.size_in, layer.size_in
    )
    weight = torch.empty(layer.weight_shape, dtype=DTYPES[dtype])
    weight = weight.contiguous(memory_format=torch.channels_last)
    # By the fixed table, so that the list of cases is the same everywhere.
    with using(Selector("0")):
        return select_backend(PASSES[each], _stage(layer), input, weight) is not ATEN


def _stage(layer: Layer) -> Stage:
    return Stage(
        "conv_transpose2d" if layer.transposed else "conv2d",
        (layer.stride, layer.stride),
        (layer.padding, layer.padding),
        output_padding=(layer.output_padding, layer.output_padding),
    )


def _case(layer: Layer, each: str, dtype: str, batch: int) -> Case:
    def prepare(setting: Setting) -> dict[str, Call]:
        return contenders(layer, each, dtype, batch, setting)

    elements = layer.channels_in * layer.size_in**2 + layer.channels_out * layer.size_out**2
    return Case(
        suite="ops",
        op=f"convolution, {each}",
        shape=layer.shape,
        dtype=dtype,
        batch=batch,
        work=layer.work(batch, dtype, [PASSES[each]]),
        input_bytes=batch * elements * ITEM_BYTES[dtype],
        prepare=prepare,
        compiled=False,
        capturable=True,
    )


def contenders(
    layer: Layer, each: str, dtype: str, batch: int, setting: Setting
) -> dict[str, Call]:
    """Ours and ATen's; both return what the pass computes.

    Args:
        layer: of which network.
        each: a name of :data:`PASSES`.
        dtype: of all tensors.
        batch: images.
        setting: device and number of input sets.
    """
    torch.manual_seed(0)

    def images(channels: int, size: int) -> list[Tensor]:
        return [
            torch.randn(batch, channels, size, size)
            .to(setting.device, DTYPES[dtype])
            .contiguous(memory_format=torch.channels_last)
            for _ in range(setting.copies)
        ]

    inputs = images(layer.channels_in, layer.size_in)
    gradients = images(layer.channels_out, layer.size_out)
    weight = (
        torch.randn(layer.weight_shape)
        .mul_(0.02)
        .to(setting.device, DTYPES[dtype])
        .contiguous(memory_format=torch.channels_last)
    )
    stride, padding = (layer.stride, layer.stride), (layer.padding, layer.padding)
    output_padding = (layer.output_padding, layer.output_padding)
    geometry = kernels.ConvGeometry(
        (layer.taps, layer.taps), stride, padding, transposed=layer.transposed
    )

    def backward(number: int, wanted: int) -> Tensor:
        found: list[Tensor] = torch.ops.aten.convolution_backward(
            *(gradients[number], inputs[number], weight, None, stride, padding, (1, 1)),
            *(layer.transposed, output_padding, 1, [wanted == 0, wanted == 1, False]),
        )
        return found[wanted]

    if setting.device.type == "cpu" and not kernels.interpreted():
        return {
            "fastgan": _on_a_cpu(_stage(layer), PASSES[each], inputs, gradients, weight),
            "eager": {
                "forward": lambda n: torch.ops.aten.convolution(
                    *(
                        inputs[n],
                        weight,
                        None,
                        stride,
                        padding,
                        (1, 1),
                        layer.transposed,
                        output_padding,
                        1,
                    )
                ),
                "input gradient": lambda n: backward(n, 0),
                "weight gradient": lambda n: backward(n, 1),
            }[each],
        }
    size = (layer.size_in, layer.size_in)
    calls: dict[str, tuple[Callable[[int], Tensor], Callable[[int], Tensor]]] = {
        "forward": (
            lambda n: kernels.forward(inputs[n], weight, geometry)[0],
            lambda n: torch.ops.aten.convolution(
                *(
                    inputs[n],
                    weight,
                    None,
                    stride,
                    padding,
                    (1, 1),
                    layer.transposed,
                    output_padding,
                    1,
                )
            ),
        ),
        "input gradient": (
            lambda n: kernels.input_gradient(gradients[n], weight, geometry, size)[0],
            lambda n: backward(n, 0),
        ),
        "weight gradient": (
            lambda n: kernels.weight_gradient(inputs[n], gradients[n], geometry, weight)[0],
            lambda n: backward(n, 1),
        ),
    }
    ours, theirs = calls[each]
    return {"fastgan": ours, "eager": theirs}


def _on_a_cpu(
    stage: Stage, of: Pass, inputs: list[Tensor], gradients: list[Tensor], weight: Tensor
) -> Callable[[int], Tensor]:
    def call(number: int) -> Tensor:
        input = inputs[number]
        backend = select_backend(of, stage, input, weight)
        if of == "forward":
            return backend.forward(stage, input, weight, None)
        if of == "input_gradient":
            return backend.input_gradient(stage, gradients[number], input, weight)
        return backend.weight_gradient(stage, gradients[number], input, weight, False)[0]

    return call
