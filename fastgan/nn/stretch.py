"""Runs a stretch of a plan: from modules to the stages and tensors of a chain, or one by one."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastgan.fallback import warn_once
from fastgan.nn.plan import PlannedStage, Stretch, class_of
from fastgan.ops.backends import describe_layer
from fastgan.ops.chain import Chain, run_chain
from fastgan.ops.eligibility import autocast_dtype, why_not_chained, why_not_this_stage
from fastgan.ops.stages import (
    Pair,
    Stage,
    StageTensors,
    folded,
    folding_pays,
    padding_named,
    pair,
)

__all__ = ["path_of_layer", "run_stretch"]

_Norm = nn.BatchNorm2d

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
            [tensor for each in read for tensor in each[:2]],
            [tensor for each in read for tensor in each[2:]],
        )
    stages: list[Stage] = []
    channels = input.shape[1] if reason is None else 0
    for planned, each in zip(stretch.stages, read if reason is None else (), strict=reason is None):
        found = _matched(*_settings(planned, each))
        if isinstance(found, str):
            reason = found
            break
        stage, takes, makes = found
        if channels != takes:
            reason = "channels don't match"
            break
        stages.append(stage)
        channels = makes
    if reason is not None:
        warn_once(f"FusedSequential runs layers one by one: {reason}", stacklevel=6)
        for planned in stretch.stages:
            for module in planned.modules():
                input = module(input)
        return input
    tensors = []
    batch, places = len(input), (1, 1) if dimensions == 2 else (input.shape[2], input.shape[3])
    evaluates = any(stage.norm and not stage.batch_statistics for stage in stages)
    for number, (planned, of_stage) in enumerate(zip(stretch.stages, read, strict=True)):
        stage = stages[number]
        weight = of_stage.weight
        if stage.norm and stage.batch_statistics:
            stages[number], of_stage = _counted(stage, of_stage, cast("_Norm", planned.norm))
        if evaluates:
            here, places = places, stage.output_places(places, weight)
            uses_running = stage.norm and not stage.batch_statistics
            if uses_running and folding_pays(stage, of_stage, batch, here):
                stages[number], of_stage = folded(stage, of_stage)
        tensors.append(of_stage)
    return run_chain(Chain(tuple(stages), dtype), input, tensors)


def path_of_layer(planned: PlannedStage) -> tuple[str, str]:
    """The path of a stage's convolution as it is now, and what is known of its backends.

    Reads no weight, since that of a parametrised layer changes by being read.
    """
    layer = planned.layer
    kind = class_of(layer)
    assert kind is not None
    one = next(layer.parameters(), torch.empty(()))
    size: tuple[int, ...] = ()
    stage = Stage(_KIND_OF[kind])
    if kind is not nn.Linear:
        convolution: Any = layer
        size = pair(convolution.kernel_size)
        geometry = _geometry(*_settings_of_convolution(convolution), size)
        assert geometry is not None  # the plan has no other
        stage = Stage(_KIND_OF[kind], *geometry)
    weight = _weight_without_values(layer, size)
    return describe_layer(stage, weight, one.dtype, one.device)


def _weight_without_values(layer: nn.Module, size: tuple[int, ...]) -> Tensor:
    """Of its shape and layout. Its values may be computed from others' at every call."""
    for parameter in layer.parameters():
        if parameter.dim() == 2 + len(size):
            return torch.empty_like(parameter, device="meta")
    return torch.empty((1, 1, *size), device="meta")


def _read(planned: PlannedStage) -> StageTensors:
    """The tensors of a planned stage, each read once: reading a parametrised one computes it."""
    layer = planned.layer
    weight, bias = _parameter(layer, "weight"), _parameter(layer, "bias")
    assert weight is not None
    norm = planned.norm
    if norm is None:
        return StageTensors(weight, bias)
    buffers = norm._buffers
    return StageTensors(
        weight,
        bias,
        _parameter(norm, "weight"),
        _parameter(norm, "bias"),
        buffers["running_mean"],
        buffers["running_var"],
    )


def _parameter(module: nn.Module, name: str) -> Tensor | None:
    # Found here without nn.Module's search, unless it is parametrised or was deleted.
    parameters = module._parameters
    if name in parameters:
        return parameters[name]
    return cast("Tensor | None", getattr(module, name))


def _settings(planned: PlannedStage, read: StageTensors) -> tuple[Any, ...]:
    """All that a stage depends on, as :func:`_matched` takes it."""
    layer: Any = planned.layer
    kind = class_of(layer)
    activation = planned.activation
    norm: Any = planned.norm
    return (
        kind,
        None if kind is nn.Linear else _settings_of_convolution(layer),
        None if activation is None else class_of(activation),
        getattr(activation, "negative_slope", 0.0),
        None if norm is None else (norm.training, norm.track_running_stats, norm.eps),
        tuple(None if tensor is None else tensor.shape for tensor in read),
    )


@lru_cache(maxsize=4096)
def _matched(
    kind: type[nn.Module],
    settings: _Settings | None,
    activation: type[nn.Module] | None,
    negative_slope: float,
    norm: tuple[bool, bool, float] | None,
    shapes: tuple[torch.Size | None, ...],
) -> tuple[Stage, int, int] | str:
    """The stage, the channels that it takes and those that it makes.

    Or in words why there is none: where shapes or settings are such that torch has to say what is
    wrong with them.
    """
    weight, *vectors = shapes
    assert weight is not None
    if len(weight) != (2 if kind is nn.Linear else 4):
        return f"a weight has {len(weight)} dimensions"
    kernel_size = tuple(weight[2:])
    geometry: _Geometry = ((1, 1), (0, 0), (1, 1), (0, 0), 1)
    if settings is not None:
        found = _geometry(*settings, kernel_size)
        if found is None:
            return "its padding is not the same on either side"
        geometry = found
    # Its own parameters' shapes, then the running statistics'.
    has_running = vectors[3] is not None
    if has_running != (vectors[4] is not None):
        return "a norm has one running statistic of two"
    uses_running = norm is not None and not norm[0] and has_running
    stage = Stage(
        _KIND_OF[kind],
        *geometry,
        norm=norm is not None,
        batch_statistics=not uses_running,
        eps=0.0 if norm is None else norm[2],
        activation="none" if activation is None else _NAME_OF[activation],
        negative_slope=negative_slope,
    )
    reason = why_not_this_stage(stage)
    if reason is not None:
        return reason
    takes, makes = stage.channels(weight)
    if any(shape is not None and shape != (makes,) for shape in vectors):
        return "channels don't match"
    return stage, takes, makes


def _counted(
    stage: Stage, tensors: StageTensors, norm: nn.BatchNorm2d
) -> tuple[Stage, StageTensors]:
    """With the running statistics' share, the batch counted; without them, where none are kept."""
    if not (norm.training and norm.track_running_stats):
        return stage, tensors._replace(running_mean=None, running_var=None)
    momentum = _momentum(norm)
    return (stage if momentum == stage.momentum else replace(stage, momentum=momentum)), tensors


_Geometry = tuple[Pair, Pair, Pair, Pair, int]


def _geometry(
    stride: int | Pair,
    padding: int | Pair | str,
    dilation: int | Pair,
    output_padding: int | Pair,
    groups: int,
    kernel_size: tuple[int, ...],
) -> _Geometry | None:
    """A convolution's settings as pairs, in the order of a stage's; None with lopsided padding."""
    reach, steps = pair(dilation), pair(stride)
    if isinstance(padding, str):
        named = padding_named(padding, kernel_size, reach, steps)
        return None if named is None else (steps, named, reach, pair(output_padding), groups)
    return steps, pair(padding), reach, pair(output_padding), groups


_Settings = tuple[Any, Any, Any, Any, int]


def _settings_of_convolution(layer: Any) -> _Settings:
    """As :func:`_geometry` takes them, and hashable: torch takes lists too."""
    stride, padding, dilation, output_padding = (
        tuple(each) if isinstance(each, list) else each
        for each in (layer.stride, layer.padding, layer.dilation, layer.output_padding)
    )
    return stride, padding, dilation, output_padding, layer.groups


def _momentum(norm: nn.BatchNorm2d) -> float:
    """Counts the batch, and returns the share of its statistics in the running ones."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            return 1.0 / float(norm.num_batches_tracked)
    return 0.0 if norm.momentum is None else norm.momentum
