"""``upfirdn2d``: insert zeros, pad, filter and decimate images.

::

    v[y * up_y + pad_y0, x * up_x + pad_x0] = input[y, x],    zero elsewhere
    w[y, x] = gain * sum_{i, j} v[y + i, x + j] * f[fh - 1 - i, fw - 1 - j]
    output[y, x] = w[y * down_y, x * down_x]

for each map of (N, C, H, W): a true convolution, unless the filter is flipped. Negative padding
crops. The output has ``(H * up_y + pad_y0 + pad_y1 - fh) // down_y + 1`` rows. A 1-d filter is
applied along both axes. Source: Karras et al. 2019, arXiv 1912.04958.

Order of gradients supported: any. The map is linear, and its transpose has the same form, with up
and down swapped and the filter flipped. If the filter requires grad, torch's functions run instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.errors import ConfigError
from fastgan.ops.define import define_op
from fastgan.ops.memory_format import is_channels_last
from fastgan.ops.registration import calls_its_function, is_transformed


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Sequence[int] = (1, 1),
    down: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """Pads, upsamples, filters and downsamples images.

    Args:
        x: (N, C, H, W); float64, float32, float16 or bfloat16.
        f: (taps,) or (rows, columns), float32 or float64; None for a single tap of 1.
        up: (x, y), upsampling factors: zeros are inserted.
        down: (x, y), downsampling factors.
        padding: (x0, x1, y0, y1), in pixels after upsampling; negative numbers crop.
        flip_filter: correlate instead of convolve.
        gain: factor of the result.

    Returns:
        (N, C, rows, columns), in the dtype and memory format of x.

    Raises:
        ConfigError: an argument doesn't fit, or the result would be empty (a ValueError).

    Example:
        >>> upfirdn2d(torch.ones(1, 1, 2, 2), torch.ones(2), up=(2, 2), padding=(1, 0, 1, 0)).shape
        torch.Size([1, 1, 4, 4])
    """
    if x.dim() != 4:
        raise ConfigError(f"x has shape {tuple(x.shape)}; expected (N, C, H, W)")
    if f is not None and (f.dim() not in (1, 2) or f.numel() == 0):
        raise ConfigError(f"f has shape {tuple(f.shape)}; expected (taps,) or (rows, columns)")
    (up_x, up_y), (down_x, down_y), (x0, x1, y0, y1) = up, down, padding
    if min(up_x, up_y, down_x, down_y) < 1:
        raise ConfigError(f"up is {tuple(up)}, down is {tuple(down)}; expected numbers from 1 on")
    taps = taps_of(f)
    for size, factor, before, after, length in (
        (x.shape[3], up_x, x0, x1, taps[0]),
        (x.shape[2], up_y, y0, y1, taps[1]),
    ):
        if size * factor + before + after < length:
            raise ConfigError(
                f"a filter of {length} taps is longer than {size} * {factor} + {before} + {after} "
                "values"
            )
    if f is not None and f.dtype not in (torch.float32, torch.float64):
        f = f.float()
    settings = (list(up), list(down), list(padding), bool(flip_filter), float(gain))
    if is_transformed("upfirdn2d"):
        return _upfirdn2d(x, f, *settings)
    if torch.is_grad_enabled():
        if f is not None and f.requires_grad:
            return _upfirdn2d(x, f, *settings)
        if x.requires_grad and calls_its_function(x):
            return _Upfirdn2d.apply(x, f, *settings)  # type: ignore[no-any-return, no-untyped-call]
    return _op(x, f, *settings)  # type: ignore[no-any-return]


def taps_of(f: Tensor | None) -> tuple[int, int]:
    """The filter's taps along x and along y."""
    return (1, 1) if f is None else (f.shape[-1], f.shape[0])


def padding_behind(size: int, wanted: int, up: int, down: int, before: int, taps: int) -> int:
    """The padding after ``size`` values that gives ``wanted`` results."""
    return (wanted - 1) * down + taps - size * up - before


class _Upfirdn2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Tensor | None, *settings: Any) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(f)
        ctx.shape, ctx.settings = x.shape, settings
        with torch._C._AutoDispatchBelowAutograd():
            y: Tensor = _op(x, f, *settings)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        (f,) = ctx.saved_tensors
        return (transposed(grad, f, ctx.shape, *ctx.settings), *(None,) * 6)


def transposed(
    grad: Tensor,
    f: Tensor | None,
    shape: Sequence[int],
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip_filter: bool,
    gain: float,
) -> Tensor:
    """The gradient of an x of this shape, given the op's other arguments."""
    paddings: list[int] = []
    for axis, taps in enumerate(taps_of(f)):
        before = taps - 1 - padding[2 * axis]
        size, wanted = grad.shape[3 - axis], shape[3 - axis]
        behind = padding_behind(size, wanted, down[axis], up[axis], before, taps)
        paddings += [before, behind]
    return _op(grad, f, down, up, paddings, not flip_filter, gain)  # type: ignore[no-any-return]


# --- The op in plain PyTorch ----------------------------------------------------------------------


def _examples() -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 17, 9, 30, generator=generator).to(dtype)
        f = torch.rand(4, 3, generator=generator)
        yield x, f, [2, 2], [1, 1], [2, 1, 1, 2], False, 4.0
        x = x.contiguous(memory_format=torch.channels_last)
        yield x, f[:, 0], [1, 1], [2, 2], [-1, 2, 3, 0], True, 1.0
        yield x[:, :3], None, [3, 1], [2, 1], [0, 0, 0, 0], False, 1.5


def laid_as(x: Tensor, result: Tensor) -> Tensor:
    """``result`` in the memory format of x."""
    format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return result.contiguous(memory_format=format)


@define_op(
    "upfirdn2d(Tensor x, Tensor? f, int[] up, int[] down, int[] padding, bool flip_filter, "
    "float gain) -> Tensor",
    examples=_examples,
    function=_Upfirdn2d,
)
def _upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip_filter: bool,
    gain: float,
) -> Tensor:
    batch, channels, height, width = x.shape
    (up_x, up_y), (down_x, down_y) = up, down
    wide = x if x.dtype in (torch.float64, torch.float32) else x.float()
    output = F.pad(
        wide.reshape(batch, channels, height, 1, width, 1), [0, up_x - 1, 0, 0, 0, up_y - 1]
    ).reshape(batch, channels, height * up_y, width * up_x)
    # Cropping may exceed the size on one side if there is padding on the other.
    output = F.pad(output, [max(zeros, 0) for zeros in padding])
    left, right, top, bottom = (max(-cropped, 0) for cropped in padding)
    output = output[:, :, top : output.shape[2] - bottom, left : output.shape[3] - right]
    if f is not None:
        taps = f.to(wide.dtype) if flip_filter else f.to(wide.dtype).flip(list(range(f.dim())))
        for kernel in [taps] if f.dim() == 2 else [taps[None], taps[:, None]]:
            output = F.conv2d(output, kernel.expand(channels, 1, *kernel.shape), groups=channels)
    output = output[:, :, ::down_y, ::down_x] * gain
    return laid_as(x, output.to(x.dtype))


_op = torch.ops.fastgan.upfirdn2d.default
