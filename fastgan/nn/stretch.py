"""Runs a stretch of a plan: from modules to the stages and tensors of a chain, or one by one."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fastgan.nn.plan import PlannedStage, Stretch, class_of
from fastgan.ops.chain import Chain, convolution_path, run_chain
from fastgan.ops.eligibility import autocast_dtype, why_not_chained
from fastgan.ops.stages import Stage, StageTensors, folded, folding_pays

__all__ = ["path_of_layer", "run_stretch", "why_not_fused"]

_Pair = tuple[int, int]

_KIND_OF = {nn.Conv2d: "conv2d", nn.ConvTranspose2d: "conv_transpose2d", nn.Linear: "linear"}
_NAME_OF = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}


def run_stretch(stretch: Stretch, input: Tensor) -> Tensor:
    """The stretch's output: by one chain where that is known to be right, else module by module.

    Args:
        stretch: of a plan made for this call.
        input: what its first layer takes.
    """
    layers = [_tensors_of(stage.layer) for stage in stretch.stages]
    dtype = autocast_dtype(input)
    if why_not_fused(stretch, input, layers, dtype) is not None:
        for planned in stretch.stages:
            for module in planned.modules():
                input = module(input)
        return input
    stages, tensors, paths = [], [], []
    run_dtype = input.dtype if dtype is None else dtype
    batch, places = len(input), (1, 1) if input.dim() == 2 else (input.shape[2], input.shape[3])
    for planned, (weight, bias) in zip(stretch.stages, layers, strict=True):
        stage, of_stage = _stage(planned, weight, bias, batch, places)
        places = stage.output_places(places, weight)
        stages.append(stage)
        tensors.append(of_stage)
        paths.append(convolution_path(stage, of_stage.weight, input.device, run_dtype)[0])
    return run_chain(Chain(tuple(stages), tuple(paths), dtype), input, tensors)


def path_of_layer(planned: PlannedStage) -> tuple[str, str]:
    """Whose convolution runs a stage's layer as it is now, "triton" or "aten", and why."""
    kind = class_of(planned.layer)
    assert kind is not None
    weight, _ = _tensors_of(planned.layer)
    stage = Stage(_KIND_OF[kind], *_geometry(planned.layer))
    return convolution_path(stage, weight, weight.device, weight.dtype)


def why_not_fused(
    stretch: Stretch,
    input: Tensor,
    layers: list[tuple[Tensor, Tensor | None]],
    dtype: torch.dtype | None,
) -> str | None:
    """Why the stretch's modules are called one by one, for this input; None where they are not."""
    reason = why_not_chained(
        input,
        2 if class_of(stretch.stages[0].layer) is nn.Linear else 4,
        dtype,
        (tensor for pair in layers for tensor in pair),
        (tensor for planned in stretch.stages for tensor in _norm_tensors(planned.norm)),
    )
    if reason is not None:
        return reason
    channels = input.shape[1]
    for planned in stretch.stages:
        wanted, channels_out = _channels(planned.layer)
        if channels != wanted or not _fits(planned, channels_out):
            return "channels don't match"
        channels = channels_out
    return None


def _tensors_of(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, each read once: reading a parametrised one computes it."""
    return cast("Tensor", layer.weight), cast("Tensor | None", layer.bias)


def _norm_tensors(norm: nn.Module | None) -> tuple[Tensor | None, ...]:
    if norm is None:
        return ()
    batch_norm = cast("nn.BatchNorm2d", norm)
    return (
        batch_norm.weight,
        batch_norm.bias,
        batch_norm.running_mean,
        batch_norm.running_var,
    )


def _channels(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    convolution = cast("nn.Conv2d", layer)
    return convolution.in_channels, convolution.out_channels


def _fits(planned: PlannedStage, channels: int) -> bool:
    if planned.norm is None:
        return True
    norm = cast("nn.BatchNorm2d", planned.norm)
    tensors = _norm_tensors(norm)
    if (norm.running_mean is None) != (norm.running_var is None):
        return False
    return all(tensor is None or tensor.shape == (channels,) for tensor in tensors)


def _stage(
    planned: PlannedStage, weight: Tensor, bias: Tensor | None, batch: int, places: _Pair
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
        uses_running = not norm.training and norm.running_mean is not None
        if uses_running:
            running = (norm.running_mean, norm.running_var)
        elif norm.training and norm.track_running_stats:
            running = (norm.running_mean, norm.running_var)
            momentum = _momentum(norm)
    stage = Stage(
        _KIND_OF[kind],
        *_geometry(planned.layer),
        norm=norm is not None,
        batch_statistics=not uses_running,
        momentum=momentum,
        eps=eps,
        activation=activation,
        negative_slope=negative_slope,
    )
    if norm is None:
        return stage, StageTensors(weight, bias)
    tensors = StageTensors(weight, bias, norm.weight, norm.bias, *running)
    if uses_running and folding_pays(stage, weight, batch, places):
        return folded(stage, tensors)
    return stage, tensors


def _geometry(layer: nn.Module) -> tuple[_Pair, _Pair, _Pair, _Pair, int]:
    """Stride, padding, dilation, output padding and groups."""
    if isinstance(layer, nn.Linear):
        return (1, 1), (0, 0), (1, 1), (0, 0), 1
    convolution = cast("nn.Conv2d", layer)
    return (
        cast("_Pair", convolution.stride),
        _padding(convolution),
        cast("_Pair", convolution.dilation),
        cast("_Pair", convolution.output_padding),
        convolution.groups,
    )


def _momentum(norm: nn.BatchNorm2d) -> float:
    """Counts the batch, and returns the share of its statistics in the running ones."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            return 1.0 / float(norm.num_batches_tracked)
    return 0.0 if norm.momentum is None else norm.momentum


def _padding(convolution: nn.Conv2d) -> _Pair:
    padding = convolution.padding
    if padding == "valid":
        return (0, 0)
    if padding == "same":  # the plan has seen to it that it is as much on either side
        rows, columns = (
            dilation * (size - 1) // 2
            for dilation, size in zip(convolution.dilation, convolution.kernel_size, strict=True)
        )
        return rows, columns
    return cast("_Pair", padding)
