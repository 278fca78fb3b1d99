"""A chain of stages (:mod:`fastgan.ops.stages`) as one autograd node.

Forward, for each stage: convolve. If it has a batch norm, keep the *raw* result and its statistics;
the next stage's convolution normalises and activates on load (:mod:`fastgan.kernels.fusion`). So
between two convolutions one tensor is kept, where eager PyTorch keeps two, and a kernel with a
prologue reads and writes nothing else.

Backward, from the last stage to the first, with dy the gradient of a stage's raw result:

    dW = weight_gradient(z(norm(y before)), dy)
    g  = input_gradient(dy, W) * z'                  of the stage before, and on through its norm:
    dy = scale * g + (y - mean) * slope + offset     (Ioffe and Szegedy 2015, section 3)

Each convolution runs on the backend that :mod:`fastgan.ops.backends` selects for it: Triton's
kernels, which fuse all of this on load and on store, or another with separate ops for the norm.

Order of gradients supported: any. With ``create_graph=True`` the chain runs again layer by layer
(:func:`run_layers`), and autograd differentiates that.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.activations import ACTIVATIONS, activation_named
from fastgan.kernels.fusion import (
    ActivationGradient,
    BatchNormGradient,
    BiasActivation,
    GradientSums,
    GradPrologue,
    NormActivation,
    NormActivationGradient,
    PartialStatistics,
    Statistics,
)
from fastgan.ops.backends import (
    ATEN,
    UNFUSED,
    Triton,
    fusion,
    select_backend,
)
from fastgan.ops.batch_norm import arithmetic_dtype
from fastgan.ops.bn_act import bn_act
from fastgan.ops.eligibility import uncast
from fastgan.ops.memory_format import gives_channels_last, is_channels_last, laid_out
from fastgan.ops.stages import Stage, StageTensors

_FIELDS = len(StageTensors._fields)
_ops = torch.ops.fastgan


@dataclass(frozen=True)
class Chain:
    """A chain's fixed settings.

    Attributes:
        stages: in the order they run.
        dtype: autocast's dtype, to which inputs, weights and biases are cast; None doesn't cast.
    """

    stages: tuple[Stage, ...]
    dtype: torch.dtype | None = None


@dataclass
class _Kept:
    """What the forward pass keeps for a stage: its raw result and norm, or its finished result.

    It also keeps the weight if autocast cast it, and the padded input if the stage pads. An
    activation that keeps its input, without a norm, has one of mean 0 and scale 1 in ``norm``, and
    no ``invstd``.
    """

    value: Tensor
    norm: NormActivation | None = None
    invstd: Tensor | None = None
    cast_weight: Tensor | None = None
    padded: Tensor | None = None


#: Placeholders for values kept by ``save_for_backward``, and for those not kept.
_ELSEWHERE, _NOT_READ = torch.empty(0), torch.empty(0)


def run_chain(chain: Chain, input: Tensor, tensors: Sequence[StageTensors]) -> Tensor:
    """The chain's output, differentiable to any order; updates the running statistics.

    Args:
        chain: the stages.
        input: (N, C, H, W), or (N, C) for linear stages.
        tensors: of each stage.

    Returns:
        The last stage's activation, in the convolutions' dtype.
    """
    output: Tensor = _ChainFunction.apply(  # type: ignore[no-untyped-call]
        chain, torch.is_grad_enabled(), input, *(tensor for stage in tensors for tensor in stage)
    )
    return output


def run_layers(
    stages: Sequence[Stage],
    input: Tensor,
    tensors: Sequence[StageTensors],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The same, layer by layer; doesn't update running statistics.

    Example:
        >>> stage = Stage("linear", activation="relu")
        >>> run_layers([stage], torch.ones(1, 2), [StageTensors(torch.tensor([[1.0, 2.0]]))])
        tensor([[3.]])
    """
    for stage, of_stage in zip(stages, tensors, strict=True):
        weight, bias = _cast(of_stage.weight, dtype), _cast(of_stage.bias, dtype)
        input = _cast(input, dtype)
        if stage.kind != "identity":
            input = ATEN.forward(_unpadded(stage), pad(stage, input), weight, bias)
        if stage.norm:
            # torch's has a wrong third derivative in training mode (2.13).
            training = stage.batch_statistics
            input = bn_act(
                input,
                bn_weight=of_stage.norm_weight,
                bn_bias=of_stage.norm_bias,
                running_mean=None if training else of_stage.running_mean,
                running_var=None if training else of_stage.running_var,
                training=training,
                eps=stage.eps,
                activation=stage.activation,
                negative_slope=stage.negative_slope,
            )
        else:
            input = ACTIVATIONS[stage.activation].forward(input, stage.negative_slope)
    return input


def is_chain(node: Any) -> bool:
    """Whether an autograd node is :func:`run_chain`'s."""
    return isinstance(getattr(node, "chain", None), Chain)


_weights_are_left_out = False


@contextmanager
def weights_left_out() -> Iterator[None]:
    """A context in which chains' backward passes compute only input gradients.

    For ``torch.autograd.grad(loss, images)``: torch doesn't tell a node which gradients are needed,
    so it would compute the weights' in vain. Applies to the whole process, as a GPU's backward pass
    runs on other threads.
    """
    global _weights_are_left_out
    before, _weights_are_left_out = _weights_are_left_out, True
    try:
        yield
    finally:
        _weights_are_left_out = before


def weights_are_left_out() -> bool:
    """Whether :func:`weights_left_out` is active."""
    return _weights_are_left_out


class _ChainFunction(torch.autograd.Function):
    """Frees each stage's kept tensors as the backward pass consumes them.

    Autograd would hold them until the whole node has run, so they are attributes of the node.
    ``save_for_backward`` is used for tensors that users can reach (arguments and output), and if
    there are saved-tensor hooks (offloading, activation checkpointing).

    Vectors (biases, a norm's parameters) are arguments, too, but as in eager the first order
    doesn't read them again: they may change between forward and backward, and only a recorded
    backward pass checks them.
    """

    @staticmethod
    def forward(
        ctx: Any, chain: Chain, recorded: bool, input: Tensor, *flat: Tensor | None
    ) -> Tensor:
        tensors = _unflatten(flat)
        with OneDispatch():
            output, kept, as_run = _forward(chain, input, tensors, recorded)
        ctx.chain = chain
        # The first stage's gradients read the input as autocast cast it.
        ctx.cast_input = None if as_run is input else as_run
        ctx.vectors = [
            _Vectors(of_stage, copied=not stage.batch_statistics)
            for stage, of_stage in zip(chain.stages, tensors, strict=True)
        ]
        saved: list[Tensor] = [input, *(of_stage.weight for of_stage in tensors)]
        hooks: object = torch._C._autograd._top_saved_tensors_default_hooks(True)
        ctx.output = None
        for stage, of_kept in zip(chain.stages, kept, strict=True):
            if of_kept.value is output and stage.activation == "none":
                of_kept.value = _NOT_READ
            elif of_kept.value is output and stage.activation == "leaky_relu" and hooks is None:
                # Eager reads its input: users may overwrite the output, and few do.
                ctx.output, ctx.version = output.detach(), _version(output)
                of_kept.value = _ELSEWHERE
            elif hooks is not None or of_kept.value is output or of_kept.value is input:
                saved.append(of_kept.value)
                of_kept.value = _ELSEWHERE
            if hooks is not None:
                of_kept.cast_weight = of_kept.padded = ctx.cast_input = None  # cheap to recompute
        ctx.kept = kept
        ctx.save_for_backward(*saved)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        chain: Chain = ctx.chain
        saved = ctx.saved_tensors
        count = len(chain.stages)
        input, weights, values = saved[0], saved[1 : 1 + count], list(saved[1 + count :])
        wanted = ctx.needs_input_grad[2:]
        if _weights_are_left_out:
            wanted = (wanted[0], *(False for _ in wanted[1:]))
            if not wanted[0]:
                return (None,) * (2 + len(wanted))
        output = ctx.output
        written = output is not None and _version(output) != ctx.version
        if torch.is_grad_enabled() or written:
            tensors = [
                vectors.unchanged(weight)
                for vectors, weight in zip(ctx.vectors, weights, strict=True)
            ]
        if torch.is_grad_enabled():
            with uncast():
                return None, None, *_recorded_gradients(chain, input, tensors, grad_output, wanted)
        if written:
            output = run_layers(chain.stages, input, tensors, chain.dtype)
        if output is not None:
            values.append(output)
        tensors = [
            vectors.of_stage._replace(weight=weight)
            for vectors, weight in zip(ctx.vectors, weights, strict=True)
        ]
        kept = [
            replace(stage, value=values.pop(0)) if stage.value is _ELSEWHERE else stage
            for stage in ctx.kept
        ]
        with OneDispatch():
            as_run = _cast(input, chain.dtype) if ctx.cast_input is None else ctx.cast_input
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            ctx.kept = ctx.output = ctx.cast_input = None
        del saved, values
        with OneDispatch():
            gradients = _gradients(chain, input, as_run, tensors, kept, grad_output, wanted)
        return None, None, *gradients


class _Vectors:
    """A stage's arguments without the weight, and their version counters."""

    def __init__(self, of_stage: StageTensors, copied: bool) -> None:
        mean, variance = of_stage.running_mean, of_stage.running_var
        if copied:  # a norm uses them, and the next pass in training mode writes them
            mean = None if mean is None else mean.clone()
            variance = None if variance is None else variance.clone()
        else:
            mean = variance = None
        self.of_stage = of_stage._replace(
            weight=_ELSEWHERE, running_mean=mean, running_var=variance
        )
        self.versions = [_version(tensor) for tensor in self.of_stage]

    def unchanged(self, weight: Tensor) -> StageTensors:
        """All arguments, with the weight; raises if one has been written since."""
        for name, tensor, version in zip(
            StageTensors._fields, self.of_stage, self.versions, strict=True
        ):
            if _version(tensor) != version:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an "
                    f"inplace operation: the {name} of a fused layer, which its backward pass "
                    "reads again"
                )
        return self.of_stage._replace(weight=weight)


def _version(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.is_inference() else tensor._version


class OneDispatch:
    """A context in which calls go directly to the kernels: past autograd, which the chain handles
    itself; past version counting, for tensors that nobody else has; and past autocast, since casts
    are done.
    """

    def __enter__(self) -> None:
        self._below = torch._C._AutoDispatchBelowADInplaceOrView()
        self._uncast = uncast()
        self._below.__enter__()
        self._uncast.__enter__()

    def __exit__(self, *error: object) -> None:
        self._uncast.__exit__(*error)
        self._below.__exit__(*error)


# --- Forward --------------------------------------------------------------------------------------


def _forward(
    chain: Chain, input: Tensor, tensors: Sequence[StageTensors], recorded: bool
) -> tuple[Tensor, list[_Kept], Tensor]:
    """The output, what is kept of each stage, and the input as cast."""
    kept: list[_Kept] = []
    cast_input, as_run = _as_run(chain, input, tensors)
    copies = _BiasCopies(as_run, recorded)
    value = cast_input
    before: NormActivation | None = None
    for stage, given, of_stage in zip(chain.stages, tensors, as_run, strict=True):
        padded = _padded(stage, value, before)
        if padded is not None:
            value, before = padded, None
        of_kept = _stage_forward(_unpadded(stage), value, before, of_stage, copies)
        of_kept.padded = padded
        of_kept.cast_weight = None if of_stage.weight is given.weight else of_stage.weight
        kept.append(of_kept)
        value, before = of_kept.value, of_kept.norm
    output = value if before is None else _normalised(value, before)
    if input.dim() == 4:
        # Triton's kernels write channels-last.
        output = laid_out(output, _gives_channels_last(chain.stages, input, tensors))
        if before is None:
            kept[-1].value = output  # its identity tells what autograd saves
    return output, kept, cast_input


def _padded(stage: Stage, value: Tensor, norm: NormActivation | None) -> Tensor | None:
    """A padding stage's padded input; None for other stages."""
    if stage.pad == (0, 0):
        return None
    return pad(stage, value if norm is None else _normalised(value, norm))


def pad(stage: Stage, input: Tensor) -> Tensor:
    """A stage's input, padded on each side."""
    rows, columns = stage.pad
    if stage.pad == (0, 0):
        return input
    return F.pad(input, (columns, columns, rows, rows), stage.pad_mode)


@lru_cache(maxsize=4096)
def _unpadded(stage: Stage) -> Stage:
    """The stage for an input that is padded already."""
    return stage if stage.pad == (0, 0) else replace(stage, pad=(0, 0))


def _pad_gradient(stage: Stage, grad: Tensor, input: Tensor) -> Tensor:
    """The unpadded input's gradient from the padded input's."""
    rows, columns = stage.pad
    backward = {
        "reflect": torch.ops.aten.reflection_pad2d_backward,
        "replicate": torch.ops.aten.replication_pad2d_backward,
    }[stage.pad_mode]
    result: Tensor = backward(grad, input, (columns, columns, rows, rows))
    return result


def _gives_channels_last(
    stages: Sequence[Stage], input: Tensor, tensors: Sequence[StageTensors]
) -> bool:
    """Whether the chain's output would be channels-last by torch's convolutions."""
    if input.dim() != 4:
        return False
    channels_last, size = is_channels_last(input), (input.shape[2], input.shape[3])
    for stage, (weight, *_) in zip(stages, tensors, strict=True):
        if stage.kind == "identity":
            continue
        size = stage.output_size(size, weight)
        # With one value per sample both layouts have the same strides, and torch takes it for
        # contiguous.
        one_value = (stage.channels(weight.shape)[1], *size) == (1, 1, 1)
        channels_last = (channels_last or is_channels_last(weight)) and not one_value
    return channels_last


def _as_run(
    chain: Chain, input: Tensor, tensors: Sequence[StageTensors]
) -> tuple[Tensor, Sequence[StageTensors]]:
    """Inputs, weights and biases as cast by autocast, in one launch."""
    if chain.dtype is None:
        return input, tensors
    given = [tensor for of_stage in tensors for tensor in (of_stage.weight, of_stage.bias)]
    known = _earlier_casts(chain.dtype, given)
    input, *cast = _cast_together([input, *([] if known else given)], chain.dtype)
    cast = known or cast
    _keep_casts(chain.dtype, given, cast)
    return input, [
        of_stage._replace(weight=weight, bias=bias)
        for of_stage, weight, bias in zip(tensors, cast[::2], cast[1::2], strict=True)
    ]


class _Casts(threading.local):
    """Within :func:`weights_cast_once`, the casts of each group of tensors, and their versions."""

    kept: dict[Any, tuple[list[Tensor | None], list[int], list[Any]]] | None = None


_casts = _Casts()


@contextmanager
def weights_cast_once() -> Iterator[None]:
    """A context in which chains cast weights, and copy norms' biases, in the first pass alone.

    For passes that follow one another. A later pass casts them again if one was written meanwhile,
    as its version counter says.
    """
    before, _casts.kept = _casts.kept, {}
    try:
        yield
    finally:
        _casts.kept = before


def _key(dtype: torch.dtype, tensors: Sequence[Tensor | None]) -> Any:
    return dtype, *(None if each is None else (id(each), each.data_ptr()) for each in tensors)


def _earlier_casts(dtype: torch.dtype, tensors: Sequence[Tensor | None]) -> list[Any] | None:
    """What :func:`_keep_casts` kept of these tensors, if they haven't been written since."""
    if not _casts.kept:
        return None
    _, versions, casts = _casts.kept.get(_key(dtype, tensors), ([], [], None))
    return casts if versions == [_version(each) for each in tensors] else None


def _keep_casts(dtype: torch.dtype, tensors: Sequence[Tensor | None], casts: Sequence[Any]) -> None:
    if _casts.kept is not None:
        # The tensors too: their ids stay theirs.
        kept = list(tensors), [_version(each) for each in tensors], list(casts)
        _casts.kept[_key(dtype, tensors)] = kept


class _BiasCopies:
    """The norms' biases in the arithmetic's dtype, copied if there will be a backward pass."""

    def __init__(self, tensors: Sequence[StageTensors], recorded: bool) -> None:
        self._biases = [each.norm_bias for each in tensors if each.norm_bias is not None]
        self._recorded = recorded
        self._copies: dict[int, Tensor] = {}

    def of_one(self, tensors: StageTensors, value: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """A stage's, and if it is a copy, the same again, to be written."""
        bias, dtype = tensors.norm_bias, arithmetic_dtype(value.dtype)
        if bias is None or not (self._recorded or bias.dtype != dtype):
            return bias, None
        copy = torch.empty_like(bias, dtype=dtype, memory_format=torch.contiguous_format)
        return copy, copy

    def of(self, tensors: StageTensors, value: Tensor) -> Tensor | None:
        """A stage's; all copies take one launch."""
        bias, dtype = tensors.norm_bias, arithmetic_dtype(value.dtype)
        if bias is None or not (self._recorded or bias.dtype != dtype):
            return bias
        if not self._copies:
            copies = _earlier_casts(dtype, self._biases)
            if copies is None:
                joined = torch.cat(self._biases).to(dtype)
                copies = list(joined.split([len(each) for each in self._biases]))
                _keep_casts(dtype, self._biases, copies)
            ids = [id(each) for each in self._biases]
            self._copies = dict(zip(ids, copies, strict=True))
        return self._copies[id(bias)]


class _Counters(threading.local):
    """Within :func:`counting`, norms' counts of batches that wait."""

    waiting: list[Tensor] | None = None


_counters = _Counters()
#: Of one launch, ``BatchCounters`` in csrc/batch_norm.h.
_MOST_COUNTERS = 16


@contextmanager
def counting(counters: list[Tensor]) -> Iterator[None]:
    """A context in which chains may increment int64 counters, and take from the list those that
    they did."""
    before, _counters.waiting = _counters.waiting, counters
    try:
        yield
    finally:
        _counters.waiting = before


def _counters_to_add(device: torch.device) -> list[Tensor]:
    waiting = _counters.waiting
    if not waiting:
        return []
    taken = [each for each in waiting if each.device == device][:_MOST_COUNTERS]
    waiting[:] = [each for each in waiting if not any(each is other for other in taken)]
    torch._C._increment_version(taken)
    return taken


def _stage_forward(
    stage: Stage,
    input: Tensor,
    prologue: NormActivation | None,
    tensors: StageTensors,
    copies: _BiasCopies,
) -> _Kept:
    weight, bias = tensors.weight, tensors.bias
    activation, slope = activation_named(stage.activation), stage.negative_slope
    is_deferred = stage.norm or activation.keeps_input(slope)
    partials: PartialStatistics | None = None
    takes_statistics = stage.norm and stage.batch_statistics
    store = "statistics" if takes_statistics else "" if is_deferred else "activation"
    around = fusion("" if prologue is None else "norm", "", store)
    convolves = stage.kind != "identity"
    backend = select_backend("forward", stage, input, weight, around) if convolves else ATEN
    if prologue is not None and not backend.loads:
        input, prologue = _normalised(input, prologue), None
    if not convolves:
        value = input
    elif isinstance(backend, Triton):
        epilogue: Statistics | BiasActivation = (
            Statistics(bias)
            if takes_statistics
            else BiasActivation(bias)
            if is_deferred
            else BiasActivation(bias, activation.name, slope)
        )
        value, partials = backend.fused_forward(stage, input, weight, prologue, epilogue)
    else:
        run = backend.forward if is_deferred else backend.activated_forward
        value = run(stage, input, weight, bias)
    if not is_deferred:
        return _Kept(value)
    if not stage.norm:
        zeros = value.new_zeros(value.shape[1], dtype=arithmetic_dtype(value.dtype))
        norm = NormActivation(zeros, torch.ones_like(zeros), None, activation.name, slope)
        return _Kept(value, norm)
    mean, invstd, scale, norm_bias = _vectors_of_norm(stage, value, partials, tensors, copies)
    norm = NormActivation(mean, scale, norm_bias, activation.name, slope)
    return _Kept(value, norm, invstd)


def _vectors_of_norm(
    stage: Stage,
    value: Tensor,
    partials: PartialStatistics | None,
    tensors: StageTensors,
    copies: _BiasCopies,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Mean, invstd, invstd times the norm's weight, and its bias; updates running statistics."""
    if not stage.batch_statistics:
        assert tensors.running_mean is not None
        assert tensors.running_var is not None
        dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
        invstd = torch.rsqrt(tensors.running_var.to(dtype) + stage.eps)
        weight = tensors.norm_weight
        scale = invstd if weight is None else invstd * weight.to(dtype)
        # A copy: a pass in training mode may write it before this one's backward pass.
        mean = tensors.running_mean.to(dtype, copy=True)
        return mean, invstd, scale, copies.of(tensors, value)
    if value.numel() == value.shape[1]:
        raise ValueError(  # torch's message
            f"Expected more than 1 value per channel when training, got input size {value.size()}"
        )
    rest = (
        tensors.norm_weight,
        tensors.running_mean,
        tensors.running_var,
        stage.momentum,
        stage.eps,
    )
    if partials is None:
        mean, invstd, scale = _ops.batch_norm_statistics(value, *rest)
        return mean, invstd, scale, copies.of(tensors, value)
    bias, copy = copies.of_one(tensors, value)
    mean, invstd, scale = _ops.batch_norm_finalize(
        *(partials.count, partials.mean, partials.m2, *rest),
        *(tensors.norm_bias, copy, _counters_to_add(value.device)),
    )
    return mean, invstd, scale, bias


def _normalised(value: Tensor, norm: NormActivation) -> Tensor:
    code = ACTIVATIONS[norm.activation].code
    output: Tensor = _ops.norm_act(
        value, norm.mean, norm.scale, norm.bias, code, norm.negative_slope
    )
    return output


# --- Backward -------------------------------------------------------------------------------------


@dataclass
class _Carried:
    """The gradient of a stage's raw result: a tensor and the pending prologue."""

    grad: Tensor
    prologue: GradPrologue | None = None

    def pending(self) -> str:
        """The pending prologue, as :class:`Fusion` names it for a gradient."""
        if self.prologue is None:
            return ""
        return "norm" if isinstance(self.prologue, BatchNormGradient) else "activation"

    def finish(self) -> None:
        """Applies the pending prologue to the tensor in place."""
        prologue = self.prologue
        if isinstance(prologue, BatchNormGradient):
            _ops.norm_act_gradient_(
                self.grad,
                prologue.input,
                prologue.mean,
                prologue.scale,
                None,
                prologue.slope,
                prologue.offset,
                ACTIVATIONS["none"].code,
                0.0,
            )
        elif prologue is not None:
            code = ACTIVATIONS[prologue.activation].code
            _ops.act_gradient_(self.grad, prologue.kept, code, prologue.negative_slope)
        self.prologue = None


class _Gradients:
    """The computed gradients of the input and of every tensor that needs one."""

    def __init__(
        self, input: Tensor, tensors: Sequence[StageTensors], wanted: Sequence[bool]
    ) -> None:
        self.gradients: list[Tensor | None] = [None] * (1 + len(tensors) * _FIELDS)
        self._input = input
        self._tensors = tensors
        self._wanted = wanted

    def wants_input(self) -> bool:
        return self._wanted[0]

    def wants(self, number: int, *names: str) -> bool:
        return any(self._wanted[_place(number, name)] for name in names)

    def lowest_stage(self) -> int:
        """The first stage with a gradient to compute."""
        return next(
            number
            for number in range(len(self._tensors))
            if (number == 0 and self._wanted[0]) or self.wants(number, *StageTensors._fields)
        )

    def put_input(self, grad: Tensor) -> None:
        self.gradients[0] = grad.to(self._input.dtype)

    def put(self, number: int, name: str, grad: Tensor | None) -> None:
        if grad is not None and self.wants(number, name):
            dtype = self._tensors[number][_PLACES[name]].dtype  # type: ignore[union-attr]
            self.gradients[_place(number, name)] = grad if grad.dtype == dtype else grad.to(dtype)


def _gradients(
    chain: Chain,
    input: Tensor,
    as_run: Tensor,
    tensors: Sequence[StageTensors],
    kept: list[_Kept],
    grad_output: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of the input and of every tensor, None if not needed.

    `as_run`: the input as autocast cast it. Empties `kept` on the way, so that each stage's memory
    is free for the next one.
    """
    gradients = _Gradients(input, tensors, wanted)
    stages = chain.stages
    last, lowest = len(stages) - 1, gradients.lowest_stage()
    current = kept.pop()
    carried = _through_norm(stages, last, current, grad_output, False, gradients)
    for number in range(last, lowest - 1, -1):
        if stages[number].kind == "identity":
            if gradients.wants_input():  # the layout of eager's norm
                carried.finish()
                carried = _Carried(laid_out(carried.grad, is_channels_last(input)))
            break
        weight, padded = current.cast_weight, current.padded
        current = before = kept.pop() if number > 0 else _Kept(as_run)
        if padded is None:
            padded = _padded(stages[number], before.value, before.norm)
        if weight is None:
            weight = _cast(tensors[number].weight, chain.dtype)
        if gradients.wants(number, "weight", "bias"):
            grad_weight, grad_bias = _weight_gradient(
                _unpadded(stages[number]),
                carried,
                before if padded is None else _Kept(padded),
                weight,
                gradients.wants(number, "bias"),
                tensors[number].weight.dtype,
            )
            # As autograd stores it in .grad, but also where it is asked for by itself.
            grad_weight = laid_out(grad_weight, is_channels_last(weight))
            gradients.put(number, "weight", grad_weight)
            gradients.put(number, "bias", grad_bias)
            del grad_weight, grad_bias
        if number > lowest or (number == 0 and gradients.wants_input()):
            carried = _input_gradient(stages, number, carried, before, padded, weight, gradients)
    if gradients.wants_input():
        gradients.put_input(carried.grad)
    return gradients.gradients


def _through_norm(
    stages: Sequence[Stage],
    number: int,
    kept: _Kept,
    grad: Tensor,
    own: bool,
    gradients: _Gradients,
) -> _Carried:
    """From the gradient of a stage's output to that of its raw result.

    `own`: whether ``grad`` may be overwritten.
    """
    stage, norm = stages[number], kept.norm
    code, negative_slope = stage.activation_code, stage.negative_slope
    if norm is None or kept.invstd is None:
        if stage.activation == "none":
            return _Carried(grad)
        if own:
            _ops.act_gradient_(grad, kept.value, code, negative_slope)
            return _Carried(grad)
        return _Carried(_ops.act_gradient(grad, kept.value, code, negative_slope))
    sums = _ops.norm_act_gradient_sums(
        grad, kept.value, norm.mean, kept.invstd, norm.scale, norm.bias, code, negative_slope
    )
    slope, offset = _finalize(GradientSums(*sums), stages, number, kept, gradients)
    rest = (kept.value, norm.mean, norm.scale, norm.bias, slope, offset, code, negative_slope)
    if own:
        _ops.norm_act_gradient_(grad, *rest)
        return _Carried(grad)
    return _Carried(_ops.norm_act_gradient(grad, *rest))


def _finalize(
    sums: GradientSums,
    stages: Sequence[Stage],
    number: int,
    kept: _Kept,
    gradients: _Gradients,
) -> tuple[Tensor, Tensor]:
    """Stores the gradients of the norm's weight and bias; returns slope and offset."""
    assert kept.norm is not None
    # Constant statistics have no gradient, like those of infinitely many values.
    count = kept.value.numel() // kept.value.shape[1] if stages[number].batch_statistics else 0
    slope, offset, grad_weight, grad_bias = _ops.norm_act_gradient_finalize(
        sums.grad, sums.grad_xhat, kept.norm.scale, kept.invstd, count
    )
    gradients.put(number, "norm_weight", grad_weight)
    gradients.put(number, "norm_bias", grad_bias)
    return slope, offset


def _weight_gradient(
    stage: Stage,
    carried: _Carried,
    before: _Kept,
    weight: Tensor,
    with_bias: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of weight and bias, in ``dtype`` if the kernels can write it directly."""
    around = fusion("" if before.norm is None else "norm", carried.pending())
    backend = select_backend("weight_gradient", stage, before.value, weight, around)
    input, norm = before.value, before.norm
    if not backend.loads:
        carried.finish()
        if norm is not None:
            input, norm = _normalised(input, norm), None
    if isinstance(backend, Triton):
        return backend.fused_weight_gradient(
            stage, carried.grad, input, weight, norm, carried.prologue, with_bias, dtype
        )
    return backend.weight_gradient(stage, carried.grad, input, weight, with_bias)


def _input_gradient(
    stages: Sequence[Stage],
    number: int,
    carried: _Carried,
    before: _Kept,
    padded: Tensor | None,
    weight: Tensor,
    gradients: _Gradients,
) -> _Carried:
    """The gradient of the previous stage's raw result, or of the chain's input."""
    stage = _unpadded(stages[number])
    activates = number > 0 and stages[number - 1].activation != "none"
    store = "norm" if before.invstd is not None else "activation" if activates else ""
    around = UNFUSED if padded is not None else fusion("", carried.pending(), store)
    input = before.value if padded is None else padded
    backend = select_backend("input_gradient", stage, input, weight, around)
    if padded is not None or not backend.loads:
        carried.finish()
    mask: ActivationGradient | None = None
    if activates and before.invstd is None:
        previous = stages[number - 1]
        mask = ActivationGradient(before.value, previous.activation, previous.negative_slope)
    if padded is None and not backend.fuses and mask is not None:
        return _Carried(backend.masked_input_gradient(stage, carried.grad, input, weight, mask))
    if padded is not None or not isinstance(backend, Triton):
        grad = backend.input_gradient(stage, carried.grad, input, weight)
        if padded is not None:
            grad = _pad_gradient(stages[number], grad, before.value)
        if number == 0:
            if padded is not None:
                grad = laid_out(grad, is_channels_last(before.value))
            elif grad.dim() == 4:
                grad = laid_out(grad, gives_channels_last(before.value, weight))
            return _Carried(grad)
        return _through_norm(stages, number - 1, before, grad, True, gradients)
    epilogue: NormActivationGradient | ActivationGradient | None = mask
    if before.norm is not None and before.invstd is not None:
        epilogue = NormActivationGradient(before.value, before.norm, before.invstd)
    grad, sums = backend.fused_input_gradient(
        stage, carried.grad, before.value, weight, carried.prologue, epilogue
    )
    if number == 0:
        grad = laid_out(grad, gives_channels_last(before.value, weight))
    if sums is None:
        return _Carried(grad)
    assert before.norm is not None
    slope, offset = _finalize(sums, stages, number - 1, before, gradients)
    norm = before.norm
    return _Carried(grad, BatchNormGradient(before.value, norm.mean, norm.scale, slope, offset))


def _recorded_gradients(
    chain: Chain,
    input: Tensor,
    tensors: Sequence[StageTensors],
    grad_output: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The same gradients as a differentiable function of everything they depend on."""
    # Aliases, because arguments may depend on one another, coincide or have hooks, and partial
    # derivatives are needed. (view_as changes the stride of size-1 dimensions: ATen then refuses a
    # channels-last weight of one channel in float64.)
    own = [
        tensor if tensor is None else torch.ops.aten.alias(tensor)
        for tensor in (input, *(tensor for of_stage in tensors for tensor in of_stage))
    ]
    assert own[0] is not None
    output = run_layers(chain.stages, own[0], _unflatten(own[1:]), chain.dtype)
    places = [place for place, is_wanted in enumerate(wanted) if is_wanted]
    gradients = torch.autograd.grad(
        output,
        [tensor for place in places if (tensor := own[place]) is not None],
        grad_output,
        create_graph=True,
        allow_unused=True,
    )
    grads: list[Tensor | None] = [None] * len(own)
    for place, grad in zip(places, gradients, strict=True):
        tensor = own[place]
        if place > 0 and grad is not None and tensor is not None:
            grad = laid_out(grad, is_channels_last(tensor))
        grads[place] = grad
    return grads


# --- Places and dtypes ----------------------------------------------------------------------------


def _unflatten(flat: Sequence[Tensor | None]) -> list[StageTensors]:
    return [
        StageTensors(*flat[start : start + _FIELDS])  # type: ignore[arg-type]
        for start in range(0, len(flat), _FIELDS)
    ]


_PLACES = {name: place for place, name in enumerate(StageTensors._fields)}


def _place(number: int, name: str) -> int:
    """The position of a stage's tensor among a chain's arguments, the first being the input."""
    return 1 + number * _FIELDS + _PLACES[name]


@overload
def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor: ...
@overload
def _cast(tensor: Tensor | None, dtype: torch.dtype | None) -> Tensor | None: ...
def _cast(tensor: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    return tensor if tensor is None or dtype is None else tensor.to(dtype)


def _cast_together(tensors: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    """As :func:`_cast` each, in one launch on a GPU."""
    others = [tensor for tensor in tensors if tensor is not None and tensor.dtype != dtype]
    if not others:
        return list(tensors)
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in others]
    torch._foreach_copy_(copies, others)
    casts = iter(copies)
    return [
        tensor if tensor is None or tensor.dtype == dtype else next(casts) for tensor in tensors
    ]
