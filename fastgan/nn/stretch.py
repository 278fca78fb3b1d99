"""Runs a sequence of pending functions: as chains, in fastgan's own passes, or by torch.

A sequence is split into units: a convolution (or the input) with the norm and the activation after
it; a norm with per-sample scale or statistics; a sum with its activation. Consecutive units with a
selected backend other than torch's run as one autograd node (:mod:`fastgan.ops.chain`). In other
units norm and activation run in one pass (:func:`fastgan.functional.bn_act`,
:func:`fastgan.ops.sample_norm.sample_norm_act`), sums are added in place if nothing else reads the
operand, and all other functions run as they were called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan import kernels
from fastgan.activations import ACTIVATIONS
from fastgan.explaining.report import Row
from fastgan.nn.recording_cost import recording_milliseconds
from fastgan.nn.waiting import Op, Waiting, nodes_made, order_nodes
from fastgan.ops import norm_choice, op_path
from fastgan.ops.backends import (
    PASSES,
    Pass,
    Way,
    describe_layer,
    select_layout,
)
from fastgan.ops.bn_act import bn_act
from fastgan.ops.chain import Chain, run_chain
from fastgan.ops.eligibility import uncast
from fastgan.ops.memory_format import (
    is_channels_last,
    lay_out_weight_gradient,
    map_strides,
    relaid,
)
from fastgan.ops.sample_norm import sample_norm_act
from fastgan.ops.stages import IDENTITY, Stage, StageTensors, folded, is_folding_faster

__all__ = [
    "EVERYTHING",
    "TORCHS",
    "Log",
    "cast_to_convolve",
    "convolves_faster",
    "is_in_place_faster",
    "leaves_to_torch",
    "norm_savings",
    "run_stretch",
]

#: On CPUs torch's functions run if they are as fast. False fuses everything possible, for tests.
LEAVE_TO_TORCH = True
#: Devices on which everything is fused.
EVERYTHING = Way(True, False, math.inf)
#: Why torch's function runs.
TORCHS = "by torch's own function, the fastest here"


class Log:
    """Records what ran, and why.

    Args:
        rows: receives the records; None for none.
        layer: returns the running module's name.

    Attributes:
        saves: the milliseconds saved compared to torch's own functions.
        usual: the milliseconds that torch's convolutions would take, as far as measured.
        calls: the number of calls of torch's functions.
    """

    def __init__(self, rows: list[Row] | None, layer: Callable[[], str]) -> None:
        self.rows, self.layer = rows, layer
        self.saves, self.usual, self.calls = 0.0, 0.0, 0

    def say(self, op: Op, path: str, reason: str) -> None:
        """Records what ran an op.

        Args:
            op: the op.
            path: :func:`fastgan.explain`'s path.
            reason: for which.
        """
        if self.rows is not None:
            self.rows.append(Row(op.layer, op.name, path, reason))

    def refused(self, name: str, reason: str) -> None:
        """Records a function that torch runs now.

        Args:
            name: the function's.
            reason: for which.
        """
        if self.rows is not None:
            self.rows.append(Row(self.layer(), name, "aten", reason))


# --- Savings --------------------------------------------------------------------------------------


def leaves_to_torch(device: torch.device) -> bool:
    """Whether torch's functions run if they are as fast."""
    return LEAVE_TO_TORCH and device.type == "cpu" and not kernels.interpreted()


def is_in_place_faster(values: int, input: Tensor) -> bool:
    """Whether recording a convolution run by torch saves time, by in-place ops after it.

    Args:
        values: its result's number of values.
        input: its input, which may be pending.
    """
    device = input.device
    return not leaves_to_torch(device) or bool(
        norm_choice.in_place_savings(values, input, recording_milliseconds)
    )


def norm_savings(over: str, input: Tensor, groups: int = 1, *, own: bool = False) -> float:
    """The milliseconds saved by a norm and its activation in one pass, on CPUs by measurement.

    Args:
        over: as for :func:`fastgan.ops.norm_choice.one_pass_savings`, like the others.
        input: (N, C, H, W) or (N, C), which may be pending.
        groups: of a group norm.
        own: whether each sample has its own scale and shift.
    """
    if not leaves_to_torch(input.device):
        return math.inf
    return norm_choice.one_pass_savings(over, input, groups, own=own, costs=recording_milliseconds)


def convolves_faster(
    stage: Stage, input: Tensor, weight: Tensor, dtype: torch.dtype | None
) -> tuple[Way, Way]:
    """The fastest way to run a convolution, and the fastest without converting its maps.

    Args:
        stage: the convolution.
        input: its input, which may be waiting.
        weight: its weight.
        dtype: autocast's, or None.
    """
    if not leaves_to_torch(input.device):
        return EVERYTHING, EVERYTHING
    passes: tuple[Pass, ...] = ("forward",)
    if torch.is_grad_enabled():
        passes = ("forward", "weight_gradient")
        if type(input) is Waiting or input.requires_grad:
            passes = PASSES
    if dtype is not None:
        input, weight = (
            each
            if each.dtype == dtype
            else Waiting.like(each.shape, dtype, each.device, is_channels_last(each))
            for each in (input, weight)
        )
    return select_layout(stage, input, weight, passes, recording_milliseconds)


def _folds(unit: list[Op], input: tuple[int, ...]) -> bool:
    """Whether a norm with running statistics is folded into the convolution."""
    convolution, norm = unit[0], unit[1] if len(unit) > 1 else unit[0]
    if convolution.stage is None or norm.kind != "norm" or norm.settings[0]:
        return False
    tensors = StageTensors(convolution.tensors[0], None, *norm.tensors)  # type: ignore[arg-type]
    return is_folding_faster(convolution.stage, tensors, input[0], _places(input))


def _places(shape: tuple[int, ...]) -> tuple[int, int]:
    return (1, 1) if len(shape) == 2 else (shape[2], shape[3]) if len(shape) == 4 else (1, shape[2])


# --- Running --------------------------------------------------------------------------------------


def run_stretch(ops: list[Op], input: Tensor, log: Log) -> Tensor:
    """Runs the ops, and returns the last one's value.

    Args:
        ops: each takes the result of the one before.
        input: of the first.
        log: records what ran.
    """
    ops = _with_padding(ops, log)
    log.saves += sum(op.way.saves for op in ops)
    units: list[list[Op]] = []
    for op, following in zip(ops, [*ops[1:], None], strict=True):
        if (
            not units
            or op.kind in _FIRST
            or op.widens
            or (op.kind == "norm" and _is_own(following))
        ):
            units.append([])
        units[-1].append(op)
    together: list[list[Op]] = []
    shape: tuple[int, ...] = input.shape
    for unit, following_unit in zip(units, [*units[1:], None], strict=True):
        if _joins(unit, shape, input, ops):
            together.append(unit)
        else:
            input, made = _run_chain(together, input, log), nodes_made()
            if unit[0].widens and following_unit is not None and _convolves(following_unit, input):
                input = _run_bias(unit, input, log)
            else:
                input = _run_unit(unit, input, unit is not units[0], log)
            order_nodes(input.grad_fn, made, unit[0].order)
            together = []
        shape = unit[0].shape
    return _run_chain(together, input, log)


def _with_padding(ops: list[Op], log: Log) -> list[Op]:
    """The ops, with padding moved into the convolutions."""
    kept: list[Op] = []
    for op in ops:
        before = kept[-1] if kept else None
        if before is not None and before.kind == "pad" and op.name == "conv2d":
            log.say(before, "aten", f"padding of {op.layer!r}")
            _pad_by(op, before)
            kept.pop()
        kept.append(op)
    return kept


def _pad_by(convolution: Op, pad: Op) -> None:
    """A convolution with padding: zeros by itself, other modes by its stage."""
    stage, call = convolution.stage, convolution.call
    mode, added = pad.settings
    assert stage is not None
    if mode != "constant":
        cast_to_convolve(pad, convolution)
        padded = pad.call
        convolution.stage = replace(stage, pad=added, pad_mode=mode)
        convolution.call = lambda input, *bias: call(padded(input), *bias)
        return
    rows, columns = (one + other for one, other in zip(stage.padding, added, strict=True))
    stage = convolution.stage = replace(stage, padding=(rows, columns))
    weight, bias = convolution.tensors
    assert weight is not None
    settings = (stage.stride, stage.padding, stage.dilation, stage.groups)
    convolution.call = lambda input, bias=bias: F.conv2d(input, weight, bias, *settings)


def cast_to_convolve(pad: Op, convolution: Op) -> None:
    """Makes a padding cast its input to autocast's dtype, instead of its convolution the result.

    Args:
        pad: its result is for the convolution alone.
        convolution: the op after it.
    """
    dtype, padded = convolution.state.autocast, pad.call

    def padded_cast(input: Tensor) -> Tensor:
        # Autocast itself pads in float32.
        with uncast():
            return padded(input.to(dtype))

    if dtype is not None:
        pad.call = padded_cast


#: Kinds that begin a unit.
_FIRST = ("pad", "convolution", "sample norm", "layer norm", "sum")


def _is_own(op: Op | None) -> bool:
    """Whether an op scales or shifts per sample."""
    return op is not None and op.kind in ("scale", "shift")


def _joins(unit: list[Op], shape: tuple[int, ...], input: Tensor, ops: list[Op]) -> bool:
    """Whether a unit runs as part of a chain."""
    first, leaves = unit[0], leaves_to_torch(input.device)
    if first.kind == "convolution":
        return (first.way.chained and (leaves or len(ops) > 1)) or (leaves and _folds(unit, shape))
    # The first convolution applies it on load, unless autocast changes its dtype.
    return (
        first.kind == "norm"
        and not leaves
        and len(unit) < len(ops)
        and not any(map(_is_own, unit))
        and first.state.autocast in (None, input.dtype)
    )


def _convolves(unit: list[Op], value: Tensor) -> bool:
    """Whether a unit starts with a convolution that autocast runs in a value's dtype."""
    return unit[0].kind == "convolution" and unit[0].state.autocast == value.dtype


def _run_bias(unit: list[Op], value: Tensor, log: Log) -> Tensor:
    """Runs a float32 bias and its activation on a 16-bit map, for a 16-bit convolution.

    In float32, as eager, which casts the map before and after. It is a batch norm with constants.
    """
    saves = norm_savings("bias", value)
    if not saves > 0:
        return _run_unit(unit, value, True, log)
    log.saves += saves
    bias, name, slope = _bias_of(unit[0]), "none", 0.0
    path = op_path("bn_act", value.device.type).path
    for op in unit:
        log.say(op, path, "bias and activation in one pass, and 16 bits on store")
        if op.kind == "activation":
            name, slope = op.settings
    return bn_act(
        value,
        bn_weight=None,
        bn_bias=bias,
        running_mean=torch.zeros_like(bias),
        running_var=torch.ones_like(bias),
        training=False,
        eps=0.0,
        activation=name,
        negative_slope=slope,
    )


def _run_unit(unit: list[Op], value: Tensor, owned: bool, log: Log) -> Tensor:
    """Runs a convolution, norm, sum and activation, or some of them, without a chain.

    `owned`: whether nothing else will read ``value``; autograd doesn't read convolutions' or norms'
    results.
    """
    beside = ""
    for number, op in enumerate(unit):
        rest = unit[number + 1 :]
        if op.kind in ("norm", "sample norm") and rest and _takes_one_pass(op, rest, value):
            return _run_norm(op, rest, value, log)
        if op.kind == "sum" and owned and _adds_in_place(op, value):
            log.say(op, "aten", "in place, on the result of what it is added to")
            assert op.tensors[0] is not None
            value = value.add_(op.tensors[0])
        elif op.kind == "convolution" and rest and rest[0].kind == "bias":
            log.say(op, "aten", TORCHS)
            value = op.call(value, _bias_of(rest[0]))
            _lay_out_gradient(op, value)
        elif op.kind == "bias" and op is not unit[0]:
            log.say(op, "aten", f"in the convolution of {beside!r}")
        elif op.kind == "activation" and op is not unit[0]:
            log.say(op, "aten", f"in place, on the result of {beside!r}")
            name, negative_slope = op.settings
            value = ACTIVATIONS[name].overwrite(value, negative_slope)
        else:
            log.say(op, "aten", "a pass of its own" if op.kind == "pad" else TORCHS)
            value = op.call(value)
            _lay_out_gradient(op, value)
        beside = op.layer
    return value


def _lay_out_gradient(op: Op, value: Tensor) -> None:
    if op.is_converted and op.kind == "convolution" and op.tensors[0] is not None:
        lay_out_weight_gradient(value, op.tensors[0])


def _adds_in_place(op: Op, value: Tensor) -> bool:
    """Whether torch's sum of the two would have the first one's layout."""
    (other,) = op.tensors
    if other is None or value.stride() != other.stride() or value._is_view():
        return False
    return not value.is_contiguous() or value.stride() == map_strides(value.shape, False)


def _takes_one_pass(norm: Op, rest: list[Op], value: Tensor) -> bool:
    over, groups = _statistics_of(norm)
    own = any(map(_is_own, rest))
    return norm_savings(over, value, groups, own=own) > 0


def _statistics_of(norm: Op) -> tuple[str, int]:
    """A norm's kind of statistics, and the number of groups."""
    if norm.kind == "norm":
        return "batch" if norm.settings[0] else "running", 1
    groups = norm.settings[1]
    return ("sample", 1) if groups is None else ("group", groups)


def _run_norm(norm: Op, rest: list[Op], value: Tensor, log: Log) -> Tensor:
    """Runs a norm with its scale, shift and activation in one pass."""
    over, groups = _statistics_of(norm)
    log.saves += norm_savings(over, value, groups, own=any(map(_is_own, rest)))
    of = {op.kind: op for op in rest}
    name, slope = of["activation"].settings if "activation" in of else ("none", 0.0)
    is_batch = norm.kind == "norm"
    own = [op for op in rest if _is_own(op)]
    original = None
    if own and value.requires_grad and torch.is_grad_enabled():
        # In eager, gradients by way of the scale and shift may reach the input before the norm's,
        # but not before the norm's of second order.
        original, value = value, torch.ops.aten.alias(value)
        value.grad_fn._set_sequence_nr(norm.order)  # type: ignore[union-attr]
    made = nodes_made()
    name_of_op = "bn_act" if is_batch else "sample_norm_act" if value.is_cpu else "norm_act"
    path = op_path(name_of_op, value.device.type).path
    what = "activation" if list(of) == ["activation"] else ", ".join(of)
    log.say(norm, path, f"with the {what} after it, in one pass")
    for op in rest:
        log.say(op, path, f"together with {norm.layer!r}")
    weight, bias, *running = norm.tensors
    mean, variance = running or (None, None)
    if is_batch and not own:
        training, momentum, eps = norm.settings
        return bn_act(
            value,
            bn_weight=weight,
            bn_bias=bias,
            running_mean=mean,
            running_var=variance,
            training=training,
            momentum=momentum,
            eps=eps,
            activation=name,
            negative_slope=slope,
        )
    momentum, eps = norm.settings[1:] if is_batch else (0.0, norm.settings[0])
    # Torch's instance norm is contiguous whatever it is of, and so are its input's gradients.
    is_anew = over == "sample" and not norm.keeps_channels_last
    input = value.contiguous() if is_anew else value if value.is_cpu else relaid(value, False)
    output = sample_norm_act(
        input,
        over=over,
        groups=groups,
        weight=weight,
        bias=bias,
        running_mean=mean,
        running_var=variance,
        momentum=momentum,
        eps=eps,
        gain=of["scale"].tensors[0] if "scale" in of else None,
        shift=of["shift"].tensors[0] if "shift" in of else None,
        activation=name,
        negative_slope=slope,
        original=original if input is value and over == "batch" else None,
    )
    output = output if is_anew else relaid(output, is_channels_last(value))
    if own:
        order_nodes(output.grad_fn, made, own[-1].order)
    return output


def _run_chain(units: list[list[Op]], input: Tensor, log: Log) -> Tensor:
    """Runs units as stages of a chain."""
    if not units:
        return input
    log.saves += 0.0 if leaves_to_torch(input.device) else math.inf
    places, made = _places(input.shape), nodes_made()
    stages, tensors = [], []
    for unit in units:
        stage, of_stage = _stage_of(unit)
        if stage.kind != "identity":
            weight, uses_running = of_stage.weight, stage.norm and not stage.batch_statistics
            if uses_running and is_folding_faster(stage, of_stage, len(input), places):
                stage, of_stage = folded(stage, of_stage)
            places = stage.output_size(places, weight)
        stages.append(stage)
        tensors.append(of_stage)
    if log.rows is not None:
        _say_chain(units, stages, input, log)
    chain, rows = Chain(tuple(stages), units[0][0].state.autocast), input.dim() == 3
    output = run_chain(chain, input.unsqueeze(2) if rows else input, tensors)
    # Not a view: its gradient would be lost after an in-place write.
    shape = units[-1][0].shape
    output = torch.ops.aten._unsafe_view(output, shape) if rows else output
    order_nodes(output.grad_fn, made, units[0][0].order)
    return output


def _stage_of(unit: list[Op]) -> tuple[Stage, StageTensors]:
    stage, tensors = IDENTITY, StageTensors()
    for op in unit:
        if op.stage is not None:
            stage, tensors = op.stage, StageTensors(*op.tensors)  # type: ignore[arg-type]
        elif op.kind == "norm":
            stage = _with_norm(stage, *op.settings)
            tensors = StageTensors(tensors.weight, tensors.bias, *op.tensors)
        elif op.kind == "bias":
            tensors = tensors._replace(bias=_bias_of(op))
        else:
            stage = _with_activation(stage, *op.settings)
    return stage, tensors


def _bias_of(op: Op) -> Tensor:
    """(1, C, 1, 1) or (C, 1, 1) -> (C,), for a convolution."""
    assert op.tensors[0] is not None
    return op.tensors[0].reshape(-1)


@lru_cache(maxsize=4096)
def _with_norm(stage: Stage, batch_statistics: bool, momentum: float, eps: float) -> Stage:
    return replace(stage, norm=True, batch_statistics=batch_statistics, momentum=momentum, eps=eps)


@lru_cache(maxsize=4096)
def _with_activation(stage: Stage, name: str, negative_slope: float) -> Stage:
    return replace(stage, activation=name, negative_slope=negative_slope)


# --- For explain ----------------------------------------------------------------------------------


def _say_chain(units: list[list[Op]], stages: list[Stage], input: Tensor, log: Log) -> None:
    device = input.device
    described = []
    for unit, stage in zip(units, stages, strict=True):
        weight = unit[0].tensors[0]
        description = ("aten", "")
        if stage.kind != "identity" and weight is not None:
            description = describe_layer(stage, weight, input.dtype, device)
        described.append(description)
    norm_path = op_path("norm_act", device.type).path
    for number, (unit, stage) in enumerate(zip(units, stages, strict=True)):
        path, how = described[number]
        where = "normalised and activated as the last step"
        if number + 1 < len(units):
            next_layer = units[number + 1][0].layer
            where = f"normalised and activated for {next_layer!r} alone, and not kept"
        beside = unit[0].layer
        for op in unit:
            by = path
            if op.kind == "convolution":
                reason = how
            elif op.kind == "bias":
                reason = f"in the convolution of {beside!r}"
            elif op.kind == "norm" and not stage.norm:
                reason = f"folded into {beside!r}"
            elif op.kind == "norm":
                of = "batch" if stage.batch_statistics else "running ones"
                by = path if path == "triton" else norm_path
                reason, beside = f"statistics of the {of}; {where}", op.layer
            elif stage.norm or path in ("triton", "cuda"):
                reason = f"together with {beside!r}"
            elif ACTIVATIONS[stage.activation].keeps_input(stage.negative_slope):
                by, reason = norm_path, "left to the next layer"
            else:
                by, reason = "aten", f"in place, on the result of {beside!r}"
            log.say(op, by, reason)
