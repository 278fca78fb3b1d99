"""Each pass of a GAN's convolutions, against cuDNN or oneDNN.

Ours is the fastest backend, and on a GPU also each of our kernels by itself. On a CPU only layers
with one of our kernels in the fixed table are cases. Both sides take channels-last images and
weights.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

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
from fastgan.ops.backends import ATEN, Backend, Pass, Problem, Selector, select_backend, using
from fastgan.ops.backends.selection import supporting
from fastgan.ops.stages import Stage

#: Name -> what :func:`fastgan.bench.work.convolution_steps` calls it.
PASSES: dict[str, Pass] = {
    "forward": "forward",
    "input gradient": "input_gradient",
    "weight gradient": "weight_gradient",
}


def cases(device: torch.device, quick: bool) -> list[Case]:
    """These cases of the suite "ops"."""
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
        _case(layer, operation, dtype, batch)
        for dtype in dtypes
        for batch in batches
        for layer in layers
        for operation in PASSES
        if device.type == "cuda" or _on_our_own_kernels(layer, operation, dtype, batch)
    ]


def _on_our_own_kernels(layer: Layer, operation: str, dtype: str, batch: int) -> bool:
    input = torch.empty((), dtype=DTYPES[dtype]).expand(
        batch, layer.channels_in, layer.size_in, layer.size_in
    )
    weight = torch.empty(layer.weight_shape, dtype=DTYPES[dtype])
    weight = weight.contiguous(memory_format=torch.channels_last)
    # By the fixed table, for the same list of cases everywhere.
    with using(Selector("0")):
        return select_backend(PASSES[operation], _stage(layer), input, weight) is not ATEN


def _stage(layer: Layer) -> Stage:
    return Stage(
        "conv_transpose2d" if layer.transposed else "conv2d",
        (layer.stride, layer.stride),
        (layer.padding, layer.padding),
        output_padding=(layer.output_padding, layer.output_padding),
    )


def _case(layer: Layer, operation: str, dtype: str, batch: int) -> Case:
    elements = layer.channels_in * layer.size_in**2 + layer.channels_out * layer.size_out**2
    return Case(
        suite="ops",
        op=f"convolution, {operation}",
        shape=layer.shape,
        dtype=dtype,
        batch=batch,
        count_work=partial(layer.work, batch, dtype, [PASSES[operation]]),
        input_bytes=batch * elements * ITEM_BYTES[dtype],
        prepare=partial(contenders, layer, operation, dtype, batch),
        compiled=False,
        capturable=True,
    )


def contenders(
    layer: Layer, operation: str, dtype: str, batch: int, setting: Setting
) -> dict[str, Call]:
    """Ours and ATen's; both return what the pass computes.

    Args:
        layer: the layer.
        operation: a name of :data:`PASSES`.
        dtype: of all tensors.
        batch: images.
        setting: device and number of input sets.
    """
    torch.manual_seed(0)

    def tensor(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape).mul_(scale).to(setting.device, DTYPES[dtype])
        return values.contiguous(memory_format=torch.channels_last)

    def images(channels: int, size: int) -> list[Tensor]:
        return [tensor(batch, channels, size, size) for _ in range(setting.copies)]

    inputs = images(layer.channels_in, layer.size_in)
    gradients = images(layer.channels_out, layer.size_out)
    weight = tensor(*layer.weight_shape, scale=0.02)
    stage, of = _stage(layer), PASSES[operation]

    def ours(number: int, backend: Backend | None = None) -> Tensor:
        input, gradient = inputs[number], gradients[number]
        backend = backend or select_backend(of, stage, input, weight)
        if of == "forward":
            return backend.forward(stage, input, weight, None)
        if of == "input_gradient":
            return backend.input_gradient(stage, gradient, input, weight)
        return backend.weight_gradient(stage, gradient, input, weight, False)[0]

    geometry = (stage.stride, stage.padding, stage.dilation, layer.transposed, stage.output_padding)

    def eager(number: int) -> Tensor:
        if of == "forward":
            return torch.convolution(inputs[number], weight, None, *geometry, 1)
        asked = [of == "input_gradient", of == "weight_gradient", False]
        results: list[Tensor] = torch.ops.aten.convolution_backward(
            gradients[number], inputs[number], weight, None, *geometry, 1, asked
        )
        return results[asked.index(True)]

    problem = Problem.of(of, stage, inputs[0], weight)
    kernels = {
        f"fastgan, {backend.name}": partial(ours, backend=backend)
        for backend in supporting(problem)
        if backend.path in ("triton", "cuda")
    }
    return {"fastgan": ours, **kernels, "eager": eager}
