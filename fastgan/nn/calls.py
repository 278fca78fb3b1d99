"""The calls of torch functions that wait.

=============  =====================================================================
kind           calls
=============  =====================================================================
"convolution"  ``conv2d``, ``conv_transpose2d``, those of one dimension, ``linear``
"norm"         ``batch_norm``
"sample norm"  ``instance_norm``, ``group_norm``, ``layer_norm`` of whole images without a weight
"layer norm"   ``layer_norm``, which torch runs, with in-place ops after it
"scale"        ``*`` of a norm and a per-sample (N, C, 1, 1)
"shift"        ``+`` of a norm, or of its scale, and a per-sample (N, C, 1, 1)
"bias"         ``+`` of a convolution without bias, and (1, C, 1, 1) or (C, 1, 1); under autocast
               it may be of float32
"sum"          ``+`` of a convolution or norm and another map, as of a residual block
"pad"          symmetric ``pad`` by zeros, reflection or replication
"activation"   those of :mod:`fastgan.activations`, after any of these
=============  =====================================================================

Dropout without effect passes its input on. Each handler takes the pending ops, the function, its
name and its arguments. It returns the tensor that represents the result, or the reason (perhaps
empty) why torch's own function runs now.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.activations import BY_FUNCTION, activation_call
from fastgan.explaining.fallback import warn_once
from fastgan.nn.pending import Pending
from fastgan.nn.stretch import (
    EVERYTHING,
    TORCHS,
    convolves_faster,
    is_in_place_faster,
    leaves_to_torch,
    norm_savings,
)
from fastgan.nn.waiting import Op, Waiting, hooks_on_saved, of_two, state_of
from fastgan.ops.eligibility import (
    PLAIN,
    autocast_dtype,
    dtype_under_autocast,
    why_not_chained,
    why_not_this_stage,
)
from fastgan.ops.memory_format import gives_channels_last, is_channels_last
from fastgan.ops.stages import Stage, padding_named, pair

__all__ = ["CHOSEN", "RECORDED"]

_REFUSED = "by torch's own function, for its message"
_HOOKED = "saved tensors have hooks"
#: Prefix of reasons if torch's function was selected.
CHOSEN = (
    *(TORCHS, "measured: ", "statistics of the", "in place", "folded into"),
    *("winograd", "patches", "matrix_product", "aten"),
)


def _convolution(
    pending: Pending, func: Any, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | str:
    """Records a convolution or linear layer, or says why torch's function runs now."""
    try:
        input, weight, bias, *settings = _ARGUMENTS[kind](*args, **kwargs)
    except TypeError:
        return _REFUSED
    if not (isinstance(input, Tensor) and isinstance(weight, Tensor)):
        return _REFUSED
    dimensions = 2 if kind == "linear" else 3 if kind in _OF_ONE_DIMENSION else 4
    if kind == "linear" and input.dim() != dimensions:
        return f"its input has {input.dim()} dimensions, not 2"
    if hooks_on_saved() is not None:
        return _HOOKED
    try:
        matched = _matched(
            kind,
            input.shape,
            weight.shape,
            None if bias is None else bias.shape,
            *(tuple(each) if isinstance(each, list) else each for each in settings),
        )
    except TypeError:  # a tensor as a number, say
        return _REFUSED
    dtype = autocast_dtype(input)
    reason = why_not_chained(input, dimensions, dtype, (weight, bias), ())
    if reason is not None or isinstance(matched, str):
        reason = reason or str(matched)
        warn_once(f"fused modules run layers one by one: {reason}", stacklevel=6)
        return reason
    stage, shape = matched
    pending.produce((weight, bias))
    map, taps = input, weight
    if dimensions == 3:
        map, taps = _row(input), _row(weight)
    way = unconverted = EVERYTHING
    if pending.takes is False:
        return TORCHS
    if pending.takes is None:
        way, unconverted = convolves_faster(stage, map, taps, dtype)
        pending.log.usual += way.usual
        way = unconverted if dimensions == 3 else way  # converted maps have four dimensions
        if not way.chained and not way.converts and not is_in_place_faster(shape.numel(), input):
            return TORCHS
    source = pending.find(input)
    named = dict(zip(_SETTINGS, settings, strict=False))
    if stage.kind == "conv2d":
        del named["output_padding"]
    op = Op(
        "convolution",
        kind,
        input if source is None else source,
        lambda input, bias=bias: func(input, weight, bias, **named),
        state_of(input.device),
        (taps, bias),
        stage,
        way=way,
        unconverted=unconverted,
    )
    channels_last = way.converts or (kind != "linear" and gives_channels_last(input, weight))
    dtype = input.dtype if dtype is None else dtype
    return pending.add(op, shape, dtype, input.device, channels_last)


def _row(rows: Tensor) -> Tensor:
    """(N, C, L) -> (N, C, 1, L): images of one row."""
    if type(rows) is Waiting:
        shape = torch.Size((*rows.shape[:2], 1, rows.shape[2]))
        return Waiting.like(shape, rows.dtype, rows.device)
    return rows.unsqueeze(2)


def _norm(
    pending: Pending, func: Any, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | str:
    """Records a batch norm, or says why torch's function runs now."""
    try:
        input, mean, variance, weight, bias, training, momentum, eps = _ARGUMENTS[kind](
            *args, **kwargs
        )
    except TypeError:
        return _REFUSED
    if not isinstance(input, Tensor):
        return _REFUSED
    if hooks_on_saved() is not None:
        return _HOOKED
    source = pending.find(input)
    if source is not None and (source.kind not in ("convolution", "bias") or source.widens):
        pending.compute(source)
        source = None
    channels = input.shape[1] if input.dim() > 1 else 0
    of_norm = (weight, bias, mean, variance)
    alone = (2, 4) if leaves_to_torch(input.device) else (4,)
    if source is None and input.dim() not in alone:
        return "no convolution or linear layer before it waits"
    if (
        type(training) is not bool
        or (training and (input.numel() == channels or not eps > 0))
        or any(each is not None and each.requires_grad for each in (mean, variance))
        or (mean is None) != (variance is None)
        or (mean is None and not training)
        or any(each is not None and each.shape != (channels,) for each in of_norm)
    ):
        return _REFUSED
    reason = why_not_chained(input, input.dim(), None, (), of_norm)
    if reason is not None:
        return reason
    # A norm before a per-sample scale and shift has no weight and bias.
    over, owns = "batch" if training else "running", (False, True)[: 2 if weight is None else 1]
    if source is None and not any(norm_savings(over, input, own=own) for own in owns):
        return TORCHS
    pending.produce(of_norm)
    if mean is not None and pending.will_write(mean):
        pending.flush()  # in the order of the calls
        source = pending.find(input)
    op = Op(
        "norm",
        kind,
        input if source is None else source,
        lambda input: F.batch_norm(input, mean, variance, weight, bias, training, momentum, eps),
        state_of(input.device),
        of_norm,
        settings=(training, momentum, eps),
    )
    return _added(pending, op, input)


def _sample_norm(
    pending: Pending, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | str:
    """Records an instance norm with the input's statistics, or a group norm."""
    try:
        input, mean, variance, weight, bias, own, groups, eps = _ARGUMENTS[name](*args, **kwargs)
    except TypeError:
        return _REFUSED
    if not isinstance(input, Tensor) or input.dim() != 4 or input.shape[2:].numel() < 2:
        return "it is not of images" if name == "group_norm" else _REFUSED
    if hooks_on_saved() is not None:
        return _HOOKED
    if mean is not None or variance is not None or not own:
        return "it keeps running statistics"
    if dtype_under_autocast(name, input) != input.dtype:
        return "autocast casts it"
    if any(each is not None and each.shape != (input.shape[1],) for each in (weight, bias)):
        return _REFUSED
    if groups is not None and (groups < 1 or input.shape[1] % groups != 0):
        return _REFUSED
    reason = why_not_chained(input, 4, None, (), (weight, bias))
    if reason is not None:
        return reason
    over = "sample" if groups is None else "group"
    owns = (False, True)[: 2 if weight is None else 1]
    if not any(norm_savings(over, input, groups or 1, own=each) for each in owns):
        return TORCHS
    pending.produce((input, weight, bias))
    given = {"weight": weight, "bias": bias, "eps": eps}
    op = Op(
        "sample norm",
        name,
        input,
        lambda input: (
            F.instance_norm(input, **given)
            if groups is None
            else F.group_norm(input, groups, **given)
        ),
        state_of(input.device),
        (weight, bias),
        settings=(eps, groups),
    )
    return _added(pending, op, input)


def _layer_norm(
    pending: Pending, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | str:
    """Records a layer norm, for the ops after it."""
    try:
        input, shape, weight, bias, eps = _ARGUMENTS[name](*args, **kwargs)
        shape = torch.Size(shape)
    except TypeError:
        return _REFUSED
    if not isinstance(input, Tensor) or shape != input.shape[-len(shape) :] or not shape:
        return _REFUSED
    is_map = input.dim() == 4 and not is_channels_last(input)
    if is_map and len(shape) == 3 and weight is None and bias is None:
        given = {"num_groups": 1, "eps": eps}
        return _sample_norm(pending, F.group_norm, "group_norm", (input,), given)
    if hooks_on_saved() is not None:
        return _HOOKED
    if any(each is not None and each.shape != shape for each in (weight, bias)):
        return _REFUSED
    if dtype_under_autocast(name, input) != input.dtype:
        return "autocast casts it"
    reason = why_not_chained(input, input.dim(), None, (weight, bias), ())
    if reason is not None:
        return reason
    if not is_in_place_faster(input.numel(), input):
        return TORCHS
    pending.produce((weight, bias))
    source = pending.find(input)
    if source is not None:
        source.way = source.unconverted  # the norm takes contiguous maps
    op = Op(
        "layer norm",
        name,
        input if source is None else source,
        lambda input: F.layer_norm(input, shape, weight, bias, eps),
        state_of(input.device),
        (weight, bias),
    )
    return pending.add(op, input.shape, input.dtype, input.device)


def _pad(
    pending: Pending, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | str:
    """Records a padding, for the convolution after it."""
    try:
        input, added, mode, value = _ARGUMENTS[name](*args, **kwargs)
        left, right, top, bottom = added
    except (TypeError, ValueError):
        return "a pass of its own"
    if not isinstance(input, Tensor) or (left, top) != (right, bottom) or min(left, top) < 0:
        return "not as much on either side"
    if hooks_on_saved() is not None:
        return _HOOKED
    reason = why_not_chained(input, 4, None, (), ())
    if reason is not None:
        return reason
    rows, columns = input.shape[2:]
    if (mode == "reflect" and (left >= columns or top >= rows)) or max(left, top) == 0:
        return _REFUSED
    if mode not in ("reflect", "replicate") and (mode != "constant" or value):
        return "a pass of its own"
    source = pending.find(input)
    if source is None and not (
        is_in_place_faster(input.numel(), input)
        if mode == "constant"
        else autocast_dtype(input) is not None
    ):
        return "a pass of its own"
    op = Op(
        "pad",
        name,
        input if source is None else source,
        lambda input: func(input, (left, right, top, bottom), mode),
        state_of(input.device),
        settings=(mode, (top, left)),
    )
    shape = torch.Size((*input.shape[:2], rows + 2 * top, columns + 2 * left))
    dtype = dtype_under_autocast(mode, input)
    return pending.add(op, shape, dtype, input.device, is_channels_last(input))


def _of_two(
    pending: Pending, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | str:
    """Records a norm's per-sample scale and shift, a bias, and the sum of two maps."""
    if len(args) != 2 or kwargs or not all(isinstance(each, Tensor) for each in args):
        return ""
    if args[0] is args[1] or hooks_on_saved() is not None:
        return ""
    for place, (input, other) in enumerate((args, args[::-1])):
        source = pending.find(input)
        kind = None if source is None else _kind_of_two(name, source, input, other)
        if source is None or kind is None or source.kind not in _BEFORE[kind]:
            continue
        pending.produce((other,))
        if kind == "bias" and source.tensors[1] is not None:
            return ""
        op = Op(
            kind,
            name,
            source,
            of_two(func, place, other),
            state_of(input.device),
            (other,),
            settings=(func, place),
        )
        dtype = torch.promote_types(input.dtype, other.dtype)
        return pending.add(op, input.shape, dtype, input.device, is_channels_last(input))
    return ""


def _added(pending: Pending, op: Op, input: Tensor) -> Tensor:
    """Adds a pending op whose result has its input's shape, dtype and layout."""
    channels_last = is_channels_last(input)
    return pending.add(op, input.shape, input.dtype, input.device, channels_last)


def _kind_of_two(name: str, source: Op, input: Tensor, other: Tensor) -> str | None:
    if type(other) not in PLAIN or other.device != input.device or input.dim() != 4:
        return None
    of_channels = (input.shape[1], 1, 1)
    is_cast = other.dtype == torch.float32 and input.dtype == source.state.autocast
    if source.kind == "convolution" and other.shape in (of_channels, (1, *of_channels)):
        # A sum of maps with one channel, row or column may have another layout than its terms.
        is_bias = name == "add" and min(input.shape[1:]) > 1
        return "bias" if is_bias and (is_cast or other.dtype == input.dtype) else None
    if other.dtype != input.dtype:
        return None
    if other.shape == (*input.shape[:2], 1, 1) != input.shape:
        return "scale" if name == "mul" else "shift"
    return "sum" if name == "add" and other.shape == input.shape else None


#: The kinds that each binary kind may follow.
_BEFORE = {
    "scale": ("norm", "sample norm"),
    "shift": ("norm", "sample norm", "scale"),
    "bias": ("convolution",),
    "sum": ("convolution", "bias", "norm", "sample norm", "layer norm"),
}


def _dropout(
    pending: Pending, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | str:
    """Passes the input on if nothing is dropped, like torch."""
    try:
        input, p, training = _ARGUMENTS["dropout"](*args, **kwargs)
    except TypeError:
        return _REFUSED
    if not training and 0 <= p <= 1 and pending.find(input) is not None:
        handed_on: Tensor = input
        return handed_on
    return "it draws random numbers" if training else "nothing before it waits"


def _activation(
    pending: Pending, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | str:
    """Records an activation of a pending result, or says why torch's function runs now."""
    source = pending.find(args[0] if args else kwargs.get("input"))
    if source is None or source.kind == "activation":
        return "nothing before it waits"
    if hooks_on_saved() is not None:
        return _HOOKED
    called = activation_call(func, args, kwargs)
    if called is None:
        return _REFUSED
    activation, input, negative_slope, inplace = called
    inplace = inplace or func in _IN_PLACE
    tensor: Tensor = input
    op = Op(
        "activation",
        name,
        source,
        lambda input: activation.forward(input, negative_slope),
        state_of(input.device),
        settings=(activation.name, negative_slope),
    )
    if inplace:
        return pending.add_in_place(op, tensor)
    return _added(pending, op, input)


# --- Arguments ------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _matched(
    kind: str,
    input: torch.Size,
    weight: torch.Size,
    bias: torch.Size | None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    output_padding: Any = 0,
    groups: int = 1,
) -> tuple[Stage, torch.Size] | str:
    """A convolution's geometry and output shape.

    Or the reason why there is none, if torch has to report an error in shapes or settings.
    """
    if len(weight) != len(input):
        return f"a weight has {len(weight)} dimensions"
    if kind in _OF_ONE_DIMENSION:
        kind = _OF_ONE_DIMENSION[kind]
        stride, dilation = (1, pair(stride)[0]), (1, pair(dilation)[0])
        output_padding = 0, pair(output_padding)[0]
        padding = padding if isinstance(padding, str) else (0, pair(padding)[0])
        of_row = _matched(
            kind,
            *(torch.Size((*shape[:2], 1, shape[2])) for shape in (input, weight)),
            bias,
            *(stride, padding, dilation, output_padding, groups),
        )
        if isinstance(of_row, str):
            return of_row
        stage, shape = of_row
        return stage, torch.Size((*shape[:2], shape[3]))
    if isinstance(padding, str):
        named = padding_named(padding, weight[2:], pair(dilation), pair(stride))
        if named is None:
            return "its padding is not the same on either side"
        padding = named
    stage = Stage(kind, pair(stride), pair(padding), pair(dilation), pair(output_padding), groups)
    reason = why_not_this_stage(stage)
    if reason is not None:
        return reason
    takes, makes = stage.channels(weight)
    if takes != input[1] or groups < 1 or makes % groups or bias not in (None, (makes,)):
        return "channels don't match"
    places: tuple[int, ...] = ()
    if kind != "linear":
        places = stage.output_size((input[2], input[3]), torch.empty(weight, device="meta"))
        if min(places) < 1:
            return "its output is empty"
    return stage, torch.Size((input[0], makes, *places))


def _conv(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
) -> tuple[Any, ...]:
    return input, weight, bias, stride, padding, dilation, 0, groups


def _conv_transpose(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: Any = 1,
    dilation: Any = 1,
) -> tuple[Any, ...]:
    return input, weight, bias, stride, padding, dilation, output_padding, groups


def _batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: Any = False,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> tuple[Any, ...]:
    return input, running_mean, running_var, weight, bias, training, momentum, eps


def _instance_norm_arguments(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: Any = True,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> tuple[Any, ...]:
    return input, running_mean, running_var, weight, bias, use_input_stats, None, eps


#: 1-d convolutions -> 2-d ones on images of one row.
_OF_ONE_DIMENSION = {"conv1d": "conv2d", "conv_transpose1d": "conv_transpose2d"}
#: Names of a convolution's arguments after its bias, in the order of ``_ARGUMENTS``.
_SETTINGS = ("stride", "padding", "dilation", "output_padding", "groups")
#: The arguments of each function.
_ARGUMENTS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "conv2d": _conv,
    "conv1d": _conv,
    "conv_transpose2d": _conv_transpose,
    "conv_transpose1d": _conv_transpose,
    "linear": lambda input, weight, bias=None: (input, weight, bias),
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm_arguments,
    "group_norm": lambda input, num_groups, weight=None, bias=None, eps=1e-5: (
        (input, None, None, weight, bias, True, num_groups, eps)
    ),
    "layer_norm": lambda input, normalized_shape, weight=None, bias=None, eps=1e-5: (
        (input, normalized_shape, weight, bias, eps)
    ),
    "pad": lambda input, pad, mode="constant", value=None: (input, pad, mode, value),
    "dropout": lambda input, p=0.5, training=True, inplace=False: (input, p, training),
}

#: Each recorded function's handler and its name in ``_ARGUMENTS``.
RECORDED: dict[Any, tuple[Any, str]] = {
    F.conv2d: (_convolution, "conv2d"),
    torch.conv2d: (_convolution, "conv2d"),
    F.conv_transpose2d: (_convolution, "conv_transpose2d"),
    torch.conv_transpose2d: (_convolution, "conv_transpose2d"),
    F.conv1d: (_convolution, "conv1d"),
    torch.conv1d: (_convolution, "conv1d"),
    F.conv_transpose1d: (_convolution, "conv_transpose1d"),
    torch.conv_transpose1d: (_convolution, "conv_transpose1d"),
    F.linear: (_convolution, "linear"),
    F.batch_norm: (_norm, "batch_norm"),
    F.instance_norm: (_sample_norm, "instance_norm"),
    F.group_norm: (_sample_norm, "group_norm"),
    F.layer_norm: (_layer_norm, "layer_norm"),
    F.pad: (_pad, "pad"),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), (_of_two, "mul")),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), (_of_two, "add")),
    **dict.fromkeys((F.dropout, F.dropout2d, F.alpha_dropout), (_dropout, "dropout")),
    **{function: (_activation, rows[0].name) for function, rows in BY_FUNCTION.items()},
}

_IN_PLACE = frozenset(func for func in RECORDED if func.__name__.endswith("_"))
