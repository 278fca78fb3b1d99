"""What the batch-norm ops have in common: their tiles, and their formulas in plain PyTorch.

The formulas are those of ``csrc/math/batch_norm.h``; see :mod:`fastgan.fusion` for their meaning.
Every function of tensors here is made of differentiable torch functions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.activations import BY_CODE
from fastgan.errors import FastganError

__all__ = [
    "arithmetic_dtype",
    "assert_close",
    "check_activation",
    "check_arrays",
    "check_image",
    "normalise",
    "per_channel",
    "tile_count",
    "tile_size",
    "without_gaps",
]

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


# --- Tiles ----------------------------------------------------------------------------------------


def tile_size(values: int, channels: int) -> int:
    """How many of a channel's `values` a tile holds; as in ``csrc/math/batch_norm.h``."""
    size = min(max(16384 // max(channels, 1), 64), 4096)
    least = (values + 1023) // 1024
    return (least + 63) // 64 * 64 if size < least else size // 16 * 16


def tile_count(values: int, channels: int) -> int:
    """How many tiles hold a channel's `values`; 0 of none."""
    size = tile_size(values, channels)
    return (values + size - 1) // size


# --- Tensors --------------------------------------------------------------------------------------


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a tensor of that dtype is computed in, and its (C,) arguments are of."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def per_channel(vector: Tensor, input: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...), to meet an `input` of (N, C, ...)."""
    return vector.view(1, -1, *(1,) * (input.dim() - 2))


def rows_of(input: Tensor) -> Tensor:
    """(N, C, ...) as (values, C), values in the order in which tiles cut them."""
    return input.movedim(1, -1).reshape(input.numel() // max(input.shape[1], 1), input.shape[1])


def without_gaps(input: Tensor) -> Tensor:
    """`input`, or a copy in the memory format its strides suggest, as the compiled ops make."""
    sizes, strides = input.shape, input.stride()
    for order in (range(input.dim() - 1, -1, -1), (1, *range(input.dim() - 1, 1, -1), 0)):
        expected = 1
        for d in order:
            if sizes[d] > 1 and strides[d] != expected:
                break
            expected *= sizes[d]
        else:
            return input
    if input.dim() in (4, 5) and sizes[1] > 1 and strides[1] == 1:
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return input.contiguous(memory_format=formats[input.dim()])
    return input.contiguous()


# --- Checks ---------------------------------------------------------------------------------------


def check_image(op: str, argument: str, tensor: Tensor) -> None:
    """Of what a batch norm takes: dtype and number of dimensions."""
    if tensor.dtype not in DTYPES:
        raise RuntimeError(
            f"fastgan::{op}: {argument} has dtype {tensor.dtype}; expected float64, float32, "
            "float16 or bfloat16"
        )
    if tensor.dim() < 2:
        raise RuntimeError(
            f"fastgan::{op}: {argument} has shape {tuple(tensor.shape)}; expected (N, C) or "
            "(N, C, ...)"
        )


def check_arrays(
    op: str, dtype: torch.dtype, shape: tuple[int, ...], **arrays: Tensor | None
) -> None:
    """Of (C,) arguments and arrays of tiles, by their names."""
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
    """Of (C,) arguments that may be of any of the four dtypes."""
    for name, vector in vectors.items():
        if vector is not None:
            if vector.dtype not in DTYPES:
                raise RuntimeError(
                    f"fastgan::{op}: {name} has dtype {vector.dtype}; expected float64, float32, "
                    "float16 or bfloat16"
                )
            check_arrays(op, vector.dtype, (channels,), **{name: vector})


def check_alike(op: str, argument: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Of a tensor that goes with another of the same shape and dtype."""
    if tensor.dtype != other.dtype or tensor.shape != other.shape:
        raise RuntimeError(
            f"fastgan::{op}: {argument} has dtype {tensor.dtype} and shape {tuple(tensor.shape)}; "
            f"expected {other.dtype} and {tuple(other.shape)}, as {other_name}"
        )


def check_activation(op: str, code: int) -> None:
    """Of an activation's number."""
    if code not in BY_CODE:
        raise RuntimeError(
            f"fastgan::{op}: activation is {code}; expected a code from 0 to {len(BY_CODE) - 1}"
        )


def assert_close(op: str, what: str, actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """For the ops' own checks: raises FastganError where `actual` is off by more than rounding."""
    tolerance = 32 * torch.finfo(dtype).eps
    if not torch.allclose(actual.cpu().double(), expected, rtol=tolerance, atol=tolerance):
        raise FastganError(f"fastgan::{op} gives a wrong {what} on {actual.device}, for {dtype}")


# --- Formulas -------------------------------------------------------------------------------------


def normalise(input: Tensor, mean: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """(input - mean) * scale + bias, in the arithmetic's dtype."""
    centred = input.to(mean.dtype) - per_channel(mean, input)
    scaled = centred * per_channel(scale, input)
    return scaled if bias is None else scaled + per_channel(bias.to(mean.dtype), input)
