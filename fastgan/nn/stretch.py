"""Runs a stretch of a plan: from modules to the stages and tensors of a chain, or one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fastgan.fallback import warn_once
from fastgan.nn.plan import PlannedStage, Stretch, class_of, pair
from fastgan.ops.chain import Chain, convolution_path, run_chain
from fastgan.ops.eligibility import autocast_dtype, why_not_chained, why_not_this_stage
from fastgan.ops.stages import Stage, StageTensors, folded, folding_pays

__all__ = ["path_of_layer", "run_stretch"]

_Pair = tuple[int, int]

_KIND_OF = {nn.Conv2d: "conv2d", nn.ConvTranspose2d: "conv_transpose2d", nn.Linear: "linear"}
_NAME_OF = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}


@dataclass
class _Read:
    """The tensors of a planned stage, each read once: reading a parametrised one computes it."""

    weight: Tensor
    bias: Tensor | None
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None

    def of_norm(self) -> tuple[Tensor | None, ...]:
        return self.norm_weight, self.norm_bias, self.running_mean, self.running_var


def run_stretch(stretch: Stretch, input: Tensor) -> Tensor:
    """The stretch's output: by one chain where that is known to be right, else module by module.

    Args:
        stretch: of a plan made for this call.
        input: what its first layer takes.
    """
    dtype = autocast_dtype(input)
    dimensions = 2 if class_of(stretch.stages[0].layer) is nn.Linear else 4
    # Of the input first: what is asked of it needs no weight to be computed.
    reason = why_not_chained(input, dimensions, dtype, (), ())
    if reason is None:
        read = [_read(planned) for planned in stretch.stages]
        reason = why_not_chained(
            input,
            dimensions,
            dtype,
            (tensor for each in read for tensor in (each.weight, each.bias)),
            (tensor for each in read for tensor in each.of_norm()),
        ) or _why_not_matching(stretch, read, input.shape[1])
    if reason is not None:
        warn_once(f"FusedSequential runs layers one by one: {reason}", stacklevel=6)
        for planned in stretch.stages:
            for module in planned.modules():
                input = module(input)
        return input
    stages, tensors, paths = [], [], []
    run_dtype = input.dtype if dtype is None else dtype
    batch, places = len(input), (1, 1) if dimensions == 2 else (input.shape[2], input.shape[3])
    for planned, each in zip(stretch.stages, read, strict=True):
        stage, of_stage = _stage(planned, each, batch, places)
        places = stage.output_places(places, each.weight)
        stages.append(stage)
        tensors.append(of_stage)
        paths.append(convolution_path(stage, of_stage.weight, input.device, run_dtype)[0])
    return run_chain(Chain(tuple(stages), tuple(paths), dtype), input, tensors)


def path_of_layer(planned: PlannedStage) -> tuple[str, str]:
    """Whose convolution runs a stage's layer as it is now, "triton" or "aten", and why.

    Reads no weight, since that of a parametrised layer changes by being read.
    """
    layer = planned.layer
    kind = class_of(layer)
    assert kind is not None
    one = next(layer.parameters())
    size: tuple[int, ...] = ()
    if kind is not nn.Linear:
        size = pair(cast("_Pair", layer.kernel_size))
    stage = Stage(_KIND_OF[kind], *_geometry(layer, size))
    shape = torch.empty((1, 1, *size), device="meta")
    return convolution_path(stage, shape, one.device, one.dtype)


def _read(planned: PlannedStage) -> _Read:
    layer = cast("nn.Conv2d", planned.layer)
    norm = cast("nn.BatchNorm2d | None", planned.norm)
    if norm is None:
        return _Read(layer.weight, layer.bias)
    vectors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return _Read(layer.weight, layer.bias, *vectors)


def _why_not_matching(stretch: Stretch, read: list[_Read], channels: int) -> str | None:
    """Where shapes or settings are such that torch has to say what is wrong with them."""
    for planned, each in zip(stretch.stages, read, strict=True):
        kind = class_of(planned.layer)
        assert kind is not None
        weight = each.weight
        if weight.dim() != (2 if kind is nn.Linear else 4):
            return f"a weight has {weight.dim()} dimensions"
        kernel_size = tuple(weight.shape[2:])
        if getattr(planned.layer, "padding", None) == "same" and kernel_size != pair(
            cast("_Pair", planned.layer.kernel_size)
        ):
            return "a weight is of another kernel size than its layer"
        stage = Stage(_KIND_OF[kind], *_geometry(planned.layer, kernel_size))
        reason = why_not_this_stage(stage)
        if reason is not None:
            return reason
        if kind is nn.ConvTranspose2d:
            takes, makes = weight.shape[0], weight.shape[1] * stage.groups
        else:
            takes, makes = weight.shape[1] * stage.groups, weight.shape[0]
        vectors = (each.bias, *each.of_norm())
        if channels != takes or any(v is not None and v.shape != (makes,) for v in vectors):
            return "channels don't match"
        if (each.running_mean is None) != (each.running_var is None):
            return "a norm has one running statistic of two"
        channels = makes
    return None


def _stage(
    planned: PlannedStage, read: _Read, batch: int, places: _Pair
) -> tuple[Stage, StageTensors]:
    """The stage as a chain takes it; counts the batch where running statistics are kept."""
    kind = class_of(planned.layer)
    assert kind is not None
    activation, negative_slope = "none", 0.0
    if planned.activation is not None:
        activation_class = class_of(planned.activation)
        assert activation_class is not None
        activation = _NAME_OF[activation_class]
        negative_slope = getattr(planned.activation, "negative_slope", 0.0)
    norm = cast("nn.BatchNorm2d | None", planned.norm)
    running: tuple[Tensor | None, Tensor | None] = (None, None)
    uses_running, momentum, eps = False, 0.0, 0.0
    if norm is not None:
        eps = norm.eps
        uses_running = not norm.training and read.running_mean is not None
        if uses_running or (norm.training and norm.track_running_stats):
            running = (read.running_mean, read.running_var)
        if norm.training and norm.track_running_stats:
            momentum = _momentum(norm)
    stage = Stage(
        _KIND_OF[kind],
        *_geometry(planned.layer, tuple(read.weight.shape[2:])),
        norm=norm is not None,
        batch_statistics=not uses_running,
        momentum=momentum,
        eps=eps,
        activation=activation,
        negative_slope=negative_slope,
    )
    tensors = StageTensors(read.weight, read.bias, read.norm_weight, read.norm_bias, *running)
    if uses_running and folding_pays(stage, read.weight, batch, places):
        return folded(stage, tensors)
    return stage, tensors


def _geometry(
    layer: nn.Module, kernel_size: tuple[int, ...]
) -> tuple[_Pair, _Pair, _Pair, _Pair, int]:
    """Stride, padding, dilation, output padding and groups."""
    if isinstance(layer, nn.Linear):
        return (1, 1), (0, 0), (1, 1), (0, 0), 1
    convolution = cast("nn.Conv2d", layer)
    dilation = pair(cast("_Pair", convolution.dilation))
    padding = convolution.padding
    if padding == "valid":
        padding = (0, 0)
    elif padding == "same":  # the plan has seen to it that it is as much on either side
        rows, columns = (d * (size - 1) // 2 for d, size in zip(dilation, kernel_size, strict=True))
        padding = (rows, columns)
    return (
        pair(cast("_Pair", convolution.stride)),
        pair(cast("_Pair", padding)),
        dilation,
        pair(cast("_Pair", convolution.output_padding)),
        convolution.groups,
    )


def _momentum(norm: nn.BatchNorm2d) -> float:
    """Counts the batch, and returns the share of its statistics in the running ones."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            return 1.0 / float(norm.num_batches_tracked)
    return 0.0 if norm.momentum is None else norm.momentum
