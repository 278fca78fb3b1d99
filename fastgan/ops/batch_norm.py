"""Batch norm with an activation, stage by stage: the ops under ``torch.ops.fastgan``.

Per channel (dimension 1), over its n values x, with z the activation (Ioffe and Szegedy 2015,
arXiv 1502.03167, section 3)::

    mean, variance = sum((x - mean)^2) / n, invstd = 1 / sqrt(variance + eps), scale = weight invstd
    u = (x - mean) scale + bias,      y = z(u)
    g = grad_output z'(u),            xhat = (x - mean) invstd
    grad_weight = sum(g xhat),        grad_bias = sum(g)
    grad_input  = scale g + (x - mean) slope + offset
    slope = -scale invstd grad_weight / n,   offset = -scale grad_bias / n

==============================  ===================================================================
``batch_norm_statistics``       mean, invstd, scale of a tensor; updates the running statistics
``batch_norm_finalize``         the same, merged from the statistics of tiles that a convolution's
                                epilogue leaves (:class:`fastgan.kernels.fusion.PartialStatistics`);
                                also copies a bias and counts batches, which saves launches
``norm_act``                    y
``norm_act_gradient_sums``      sum(g) and sum(g xhat), (tiles, C)
``norm_act_gradient_finalize``  slope, offset, grad_weight, grad_bias; of 0 values slope and offset
                                are 0: the statistics are constants, as the running ones are
``norm_act_gradient``           grad_input; ``norm_act_gradient_`` writes it over ``grad_output``
``bn_act_gradient``             the three gradients in one call, for a batch norm by itself
``act_gradient``                kept -> grad_output z', without a norm; ``act_gradient_`` writes it
                                over ``grad_output``
==============================  ===================================================================

Images are (N, C, ...), float64, float32, float16 or bfloat16. Contiguous and channels-last ones are
read in place, others copied; results have the input's layout. Vectors are (C,), float32, or float64
for float64 images; weights, biases and running statistics may have any of the four dtypes.
``activation`` is a code of :data:`fastgan.activations.ACTIVATIONS`, ``negative_slope`` that of
"leaky_relu"; ``kept`` is as :attr:`fastgan.activations.Activation.keeps_input` says.

Sums are taken tile by tile, and tiles merged in one order, in double (Chan, Golub and LeVeque 1983,
"Algorithms for computing the sample variance", (2.1)); their number depends only on the shape, so
results don't depend on the number of threads. Kernels: ``csrc/cpu/batch_norm.cpp``,
``csrc/cuda/batch_norm_statistics.cu``, ``norm_act.cu``, ``norm_act_gradient.cu``; the formulas:
``csrc/math/batch_norm.h``, ``csrc/math/activation.h``.

Order of gradients supported: none. These ops raise if autograd would have to record them;
:mod:`fastgan.ops.bn_act` has the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.activations import BY_CODE
from fastgan.ops.define import define_op
from fastgan.ops.memory_format import is_channels_last

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


# --- Tiles ----------------------------------------------------------------------------------------


def tile_size(values: int, channels: int) -> int:
    """The number of a channel's values in a tile, as in ``csrc/math/batch_norm.h``."""
    size = min(max(16384 // max(channels, 1), 64), 4096)
    least = (values + 1023) // 1024
    return (least + 63) // 64 * 64 if size < least else size // 16 * 16


def tile_count(values: int, channels: int) -> int:
    """The number of tiles of a channel with ``values`` values."""
    size = tile_size(values, channels)
    return (values + size - 1) // size


# --- Tensors --------------------------------------------------------------------------------------


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic on a tensor of ``dtype``, and of its (C,) arguments."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def per_channel(vector: Tensor, input: Tensor) -> Tensor:
    """Views (C,) as (1, C, 1, ...), for broadcasting with an ``input`` of (N, C, ...)."""
    return vector.view(1, -1, *(1,) * (input.dim() - 2))


def rows_of(input: Tensor) -> Tensor:
    """Reshapes (N, C, ...) to (values, C), in the order of the tiles."""
    return input.movedim(1, -1).reshape(input.numel() // max(input.shape[1], 1), input.shape[1])


def without_gaps(input: Tensor) -> Tensor:
    """Returns ``input`` if it is dense, else a copy in the memory format its strides suggest."""
    sizes, strides = input.shape, input.stride()
    for order in (range(input.dim() - 1, -1, -1), (1, *range(input.dim() - 1, 1, -1), 0)):
        expected = 1
        for d in order:
            if sizes[d] > 1 and strides[d] != expected:
                break
            expected *= sizes[d]
        else:
            return input
    if not is_channels_last(input):
        return input.contiguous()
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return input.contiguous(memory_format=formats[input.dim()])


# --- Checks ---------------------------------------------------------------------------------------


def _check_dtype(op: str, argument: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise RuntimeError(
            f"fastgan::{op}: {argument} has dtype {tensor.dtype}; expected float64, float32, "
            "float16 or bfloat16"
        )


def check_image(op: str, argument: str, tensor: Tensor) -> None:
    """Checks dtype and number of dimensions of a batch norm's input."""
    _check_dtype(op, argument, tensor)
    if tensor.dim() < 2:
        raise RuntimeError(
            f"fastgan::{op}: {argument} has shape {tuple(tensor.shape)}; expected (N, C) or "
            "(N, C, ...)"
        )


def check_arrays(
    op: str, dtype: torch.dtype, shape: tuple[int, ...], **arrays: Tensor | None
) -> None:
    """Checks dtype and shape of named arrays."""
    for name, array in arrays.items():
        if array is None:
            continue
        if array.dtype != dtype:
            raise RuntimeError(f"fastgan::{op}: {name} has dtype {array.dtype}; expected {dtype}")
        if tuple(array.shape) != shape:
            raise RuntimeError(
                f"fastgan::{op}: {name} has shape {tuple(array.shape)}; expected {shape}"
            )


def check_vectors(op: str, channels: int, **vectors: Tensor | None) -> None:
    """Checks named (C,) arguments, which may have any of the four dtypes."""
    for name, vector in vectors.items():
        if vector is not None:
            _check_dtype(op, name, vector)
            check_arrays(op, vector.dtype, (channels,), **{name: vector})


def check_alike(op: str, argument: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Checks that a tensor has the shape and dtype of another."""
    if tensor.dtype != other.dtype or tensor.shape != other.shape:
        raise RuntimeError(
            f"fastgan::{op}: {argument} has dtype {tensor.dtype} and shape {tuple(tensor.shape)}; "
            f"expected {other.dtype} and {tuple(other.shape)}, as {other_name}"
        )


def check_activation(op: str, code: int) -> None:
    """Checks an activation's number."""
    if code not in BY_CODE:
        raise RuntimeError(
            f"fastgan::{op}: activation is {code}; expected a code from 0 to {len(BY_CODE) - 1}"
        )


def _check_matrix(op: str, argument: str, matrix: Tensor) -> None:
    """Checks dtype and rank of an array with a row for each tile."""
    if matrix.dtype not in (torch.float32, torch.float64):
        raise RuntimeError(
            f"fastgan::{op}: {argument} has dtype {matrix.dtype}; expected float32 or float64"
        )
    if matrix.dim() != 2:
        raise RuntimeError(
            f"fastgan::{op}: {argument} has shape {tuple(matrix.shape)}; expected (tiles, C)"
        )


def check_norm(
    op: str, input: Tensor, mean: Tensor, scale: Tensor, bias: Tensor | None, activation: int
) -> None:
    """Checks the arguments of a normalisation, as csrc/batch_norm_ops.cpp does."""
    check_image(op, "input", input)
    dtype = arithmetic_dtype(input.dtype)
    check_arrays(op, dtype, (input.shape[1],), mean=mean, scale=scale)
    check_vectors(op, input.shape[1], bias=bias)
    check_activation(op, activation)


# --- Examples -------------------------------------------------------------------------------------


def _images(count: int, shape: tuple[int, ...], vectors: int) -> Iterator[list[Tensor]]:
    """Images and vectors, in every dtype and both layouts."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand((vectors, shape[1]), generator=generator)
    for dtype in DTYPES:
        values = torch.randn((count, *shape), generator=generator).to(dtype)
        of_dtype = numbers.to(arithmetic_dtype(dtype)).unbind()
        for memory_format in (torch.contiguous_format, torch.channels_last):
            yield [*(v.contiguous(memory_format=memory_format) for v in values), *of_dtype]


def _with_activations(*arguments: Any) -> Iterator[tuple[Any, ...]]:
    return ((*arguments, code, 0.2) for code in BY_CODE)


# --- Statistics -----------------------------------------------------------------------------------


def _moments_examples() -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float64, torch.float32):
        count = torch.tensor([64.0, 64.0, 5.0])
        mean = torch.randn((3, 70), generator=generator) + 100
        m2 = torch.rand((3, 70), generator=generator) * count[:, None]
        vectors = torch.rand((3, 70), generator=generator).to(dtype)
        rest: list[Any] = [*vectors, 0.25, 1e-3, vectors[0] + 1, torch.zeros(70, dtype=dtype)]
        counters = [torch.tensor(3), torch.tensor(2**40)]
        yield (count.to(dtype), mean.to(dtype), m2.to(dtype), *rest, counters)
        yield (count.to(dtype), mean.to(dtype), m2.to(dtype), *rest[:-2], None, None, [])


@define_op(
    "batch_norm_finalize(Tensor count, Tensor mean, Tensor m2, Tensor? weight, "
    "Tensor(a!)? running_mean, Tensor(b!)? running_var, float momentum, float eps, "
    "Tensor? bias, Tensor(c!)? bias_copy, Tensor(d!)[] counters) -> "
    "(Tensor mean, Tensor invstd, Tensor scale)",
    examples=_moments_examples,
)
def batch_norm_finalize(
    count: Tensor,
    mean: Tensor,
    m2: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    bias: Tensor | None,
    bias_copy: Tensor | None,
    counters: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """count (tiles,), mean and m2 (tiles, C). Without tiles the mean and the variance are 0.

    ``bias_copy`` gets a copy of ``bias``. ``counters``, at most 16 int64 tensors of one element,
    are incremented.
    """
    op = "batch_norm_finalize"
    _check_matrix(op, "mean", mean)
    check_arrays(op, mean.dtype, (mean.shape[0],), count=count)
    check_arrays(op, mean.dtype, tuple(mean.shape), m2=m2)
    check_vectors(
        op, mean.shape[1], weight=weight, running_mean=running_mean, running_var=running_var
    )
    check_vectors(op, mean.shape[1], bias=bias, bias_copy=bias_copy)
    if bias_copy is not None:
        if bias is None:
            raise RuntimeError(f"fastgan::{op}: bias_copy goes with a bias")
        bias_copy.copy_(bias)
    for counter in counters:
        counter += 1
    counts, means, squares = count.double()[:, None], mean.double(), m2.double()
    total = counts.sum()
    divisor = total.clamp(min=1)
    # All tiles at once: the sum over tiles of Chan's terms, around the mean of all.
    overall = (means * (counts / divisor)).sum(0)
    m2_overall = (squares + counts * (means - overall) ** 2).sum(0)
    invstd = (m2_overall / divisor + eps).rsqrt()
    scale = invstd if weight is None else invstd * weight
    for running, new in ((running_mean, overall), (running_var, m2_overall / (total - 1))):
        if running is not None:
            after = (1 - momentum) * running.double() + momentum * new
            running.copy_(torch.where(total > 0, after, running.double()))
    return overall.to(mean.dtype), invstd.to(mean.dtype), scale.to(mean.dtype, copy=True)


def _statistics_examples() -> Iterator[tuple[Any, ...]]:
    for input, *vectors in _images(1, (9, 6, 17, 19), 3):
        yield (input, *vectors, 0.25, 1e-3)


@define_op(
    "batch_norm_statistics(Tensor input, Tensor? weight, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, float momentum, float eps) -> "
    "(Tensor mean, Tensor invstd, Tensor scale)",
    examples=_statistics_examples,
)
def batch_norm_statistics(
    input: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The statistics of one tile with all values, or of none."""
    op = "batch_norm_statistics"
    check_image(op, "input", input)
    check_vectors(
        op, input.shape[1], weight=weight, running_mean=running_mean, running_var=running_var
    )
    rows = rows_of(input).to(arithmetic_dtype(input.dtype))
    tiles = rows[None] if rows.shape[0] > 0 else rows.new_empty((0, 1, rows.shape[1]))
    mean = tiles.mean(1)
    m2 = ((tiles - mean[:, None]) ** 2).sum(1)
    count = torch.ones_like(tiles[:, :, 0]).sum(1)
    vectors = (weight, running_mean, running_var)
    return batch_norm_finalize(count, mean, m2, *vectors, momentum, eps, None, None, [])


# --- Forward --------------------------------------------------------------------------------------


def normalise(input: Tensor, mean: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """(input - mean) * scale + bias, in the arithmetic's dtype."""
    centred = input.to(mean.dtype) - per_channel(mean, input)
    scaled = centred * per_channel(scale, input)
    return scaled if bias is None else scaled + per_channel(bias.to(mean.dtype), input)


def _norm_act_examples() -> Iterator[tuple[Any, ...]]:
    for arguments in _images(1, (3, 6, 5, 7), 3):
        yield from _with_activations(*arguments)


@define_op(
    "norm_act(Tensor input, Tensor mean, Tensor scale, Tensor? bias, int activation, "
    "float negative_slope) -> Tensor",
    examples=_norm_act_examples,
)
def norm_act(
    input: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    activation: int,
    negative_slope: float,
) -> Tensor:
    """z((input - mean) * scale + bias)."""
    check_norm("norm_act", input, mean, scale, bias, activation)
    input = without_gaps(input)
    output = BY_CODE[activation].forward(normalise(input, mean, scale, bias), negative_slope)
    # Always a copy, with the input's layout.
    return torch.empty_like(input).copy_(output)


# --- Backward -------------------------------------------------------------------------------------


def _through_activation(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    activation: int,
    negative_slope: float,
) -> Tensor:
    """grad_output * z'(u)."""
    u = normalise(input, mean, scale, bias)
    return BY_CODE[activation].gradient_by_input(grad_output.to(mean.dtype), u, negative_slope)


def _sums_examples() -> Iterator[tuple[Any, ...]]:
    for arguments in _images(2, (9, 6, 17, 19), 4):
        yield from _with_activations(*arguments)


@define_op(
    "norm_act_gradient_sums(Tensor grad_output, Tensor input, Tensor mean, Tensor invstd, "
    "Tensor scale, Tensor? bias, int activation, float negative_slope) -> "
    "(Tensor grad, Tensor grad_xhat)",
    examples=_sums_examples,
)
def norm_act_gradient_sums(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    activation: int,
    negative_slope: float,
) -> tuple[Tensor, Tensor]:
    """The fields of :class:`fastgan.kernels.fusion.GradientSums`."""
    op = "norm_act_gradient_sums"
    check_norm(op, input, mean, scale, bias, activation)
    check_alike(op, "grad_output", grad_output, "input", input)
    check_arrays(op, arithmetic_dtype(input.dtype), (input.shape[1],), invstd=invstd)
    g = _through_activation(grad_output, input, mean, scale, bias, activation, negative_slope)
    xhat = (input.to(mean.dtype) - per_channel(mean, input)) * per_channel(invstd, input)
    rows = rows_of(g)
    size, tiles = tile_size(*rows.shape), tile_count(*rows.shape)
    grad, grad_xhat = (
        F.pad(values, (0, 0, 0, tiles * size - rows.shape[0]))
        .view(tiles, size, rows.shape[1])
        .sum(1)
        for values in (rows, rows_of(g * xhat))
    )
    return grad, grad_xhat


def _sums_to_finalize() -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float64, torch.float32):
        for count in (0, 10):
            sums = torch.randn((2, 3, 70), generator=generator).to(dtype)
            yield (*sums, *torch.rand((2, 70), generator=generator).to(dtype), count)


@define_op(
    "norm_act_gradient_finalize(Tensor grad, Tensor grad_xhat, Tensor scale, Tensor invstd, "
    "int count) -> (Tensor slope, Tensor offset, Tensor grad_weight, Tensor grad_bias)",
    examples=_sums_to_finalize,
)
def norm_act_gradient_finalize(
    grad: Tensor, grad_xhat: Tensor, scale: Tensor, invstd: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """With n = ``count`` values per channel."""
    op = "norm_act_gradient_finalize"
    _check_matrix(op, "grad", grad)
    check_arrays(op, grad.dtype, tuple(grad.shape), grad_xhat=grad_xhat)
    check_arrays(op, grad.dtype, (grad.shape[1],), scale=scale, invstd=invstd)
    if count < 0:
        raise RuntimeError(f"fastgan::{op}: count is {count}; expected at least 0")
    grad_bias, grad_weight = grad.double().sum(0), grad_xhat.double().sum(0)
    if count == 0:  # constant statistics: 0, even where a sum is not finite
        slope = offset = torch.zeros_like(grad_bias)
    else:
        slope = -scale.double() * invstd.double() * grad_weight / count
        offset = -scale.double() * grad_bias / count
    dtype = grad.dtype
    return (
        slope.to(dtype, copy=True),
        offset.to(dtype, copy=True),
        grad_weight.to(dtype, copy=True),
        grad_bias.to(dtype, copy=True),
    )


def _gradient_examples() -> Iterator[tuple[Any, ...]]:
    for grad, input, mean, scale, bias, slope, offset in _images(2, (3, 6, 5, 7), 5):
        yield from _with_activations(grad, input, mean, scale, bias, slope, offset)


def _gradient(
    op: str,
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    slope: Tensor,
    offset: Tensor,
    activation: int,
    negative_slope: float,
) -> Tensor:
    check_norm(op, input, mean, scale, bias, activation)
    check_alike(op, "grad_output", grad_output, "input", input)
    dtype = arithmetic_dtype(input.dtype)
    check_arrays(op, dtype, (input.shape[1],), slope=slope, offset=offset)
    g = _through_activation(grad_output, input, mean, scale, bias, activation, negative_slope)
    centred = input.to(mean.dtype) - per_channel(mean, input)
    slopes = per_channel(slope, input)
    # Constant statistics have slope 0: skip the input, since 0 times infinity is NaN.
    through_statistics = torch.where(slopes == 0, 0.0, centred * slopes)
    return g * per_channel(scale, input) + (through_statistics + per_channel(offset, input))


@define_op(
    "norm_act_gradient(Tensor grad_output, Tensor input, Tensor mean, Tensor scale, "
    "Tensor? bias, Tensor slope, Tensor offset, int activation, float negative_slope) -> Tensor",
    examples=_gradient_examples,
)
def norm_act_gradient(grad_output: Tensor, input: Tensor, *rest: Any) -> Tensor:
    """A new tensor, laid out as ``input``."""
    result = _gradient("norm_act_gradient", grad_output, input, *rest)
    return torch.empty_like(without_gaps(input)).copy_(result)


@define_op(
    "norm_act_gradient_(Tensor(a!) grad_output, Tensor input, Tensor mean, Tensor scale, "
    "Tensor? bias, Tensor slope, Tensor offset, int activation, float negative_slope) -> ()",
    examples=_gradient_examples,
)
def norm_act_gradient_(grad_output: Tensor, input: Tensor, *rest: Any) -> None:
    """Written over ``grad_output``."""
    grad_output.copy_(_gradient("norm_act_gradient_", grad_output, input, *rest))


def bn_act_gradient_examples() -> Iterator[tuple[Any, ...]]:
    """Arguments of ``bn_act_gradient``; all but the first are also ``bn_act``'s."""
    for arguments in _images(2, (3, 6, 5, 7), 4):
        for batch_statistics in (False, True):
            yield from _with_activations(*arguments, batch_statistics)


@define_op(
    "bn_act_gradient(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, "
    "Tensor mean, Tensor invstd, bool batch_statistics, int activation, "
    "float negative_slope) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
    examples=bn_act_gradient_examples,
)
def bn_act_gradient(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    batch_statistics: bool,
    activation: int,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of :mod:`fastgan.ops.bn_act`'s op, with ``grad_output`` before them."""
    op = "bn_act_gradient"
    check_norm(op, input, mean, invstd, bias, activation)
    check_vectors(op, input.shape[1], weight=weight)
    check_alike(op, "grad_output", grad_output, "input", input)
    scale = invstd if weight is None else invstd * weight.to(invstd.dtype)
    settings = (activation, negative_slope)
    sums = norm_act_gradient_sums(grad_output, input, mean, invstd, scale, bias, *settings)
    count = input.numel() // max(input.shape[1], 1) if batch_statistics else 0
    slope, offset, *gradients = norm_act_gradient_finalize(*sums, scale, invstd, count)
    grad_input = norm_act_gradient(grad_output, input, mean, scale, bias, slope, offset, *settings)
    return grad_input, gradients[0], gradients[1]


# --- The activation alone -------------------------------------------------------------------------


def _act_gradient_examples() -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        # An odd length: whole vectors and a remainder.
        grad, values = torch.randn((2, 1031), generator=generator, dtype=torch.float64)
        for row in BY_CODE.values():
            kept = values if row.keeps_input(0.2) else row.forward(values, 0.2)
            yield (grad.to(dtype), kept.to(dtype), row.code, 0.2)


def _act_gradient(
    op: str, grad_output: Tensor, kept: Tensor, activation: int, negative_slope: float
) -> Tensor:
    _check_dtype(op, "kept", kept)
    check_alike(op, "grad_output", grad_output, "kept", kept)
    check_activation(op, activation)
    dtype = arithmetic_dtype(kept.dtype)
    return BY_CODE[activation].gradient(grad_output.to(dtype), kept.to(dtype), negative_slope)


@define_op(
    "act_gradient(Tensor grad_output, Tensor kept, int activation, float negative_slope) -> Tensor",
    examples=_act_gradient_examples,
)
def act_gradient(
    grad_output: Tensor, kept: Tensor, activation: int, negative_slope: float
) -> Tensor:
    """A new tensor, of any shape, laid out as ``kept``."""
    result = _act_gradient("act_gradient", grad_output, kept, activation, negative_slope)
    like = kept.contiguous() if kept.dim() < 2 else without_gaps(kept)
    return torch.empty_like(like).copy_(result)


@define_op(
    "act_gradient_(Tensor(a!) grad_output, Tensor kept, int activation, "
    "float negative_slope) -> ()",
    examples=_act_gradient_examples,
)
def act_gradient_(
    grad_output: Tensor, kept: Tensor, activation: int, negative_slope: float
) -> None:
    """Written over ``grad_output``."""
    result = _act_gradient("act_gradient_", grad_output, kept, activation, negative_slope)
    grad_output.copy_(result)
