"""``filtered_lrelu``: a leaky ReLU between upsampling and downsampling, which aliases less.

::

    u = upfirdn2d(x + b, fu, up=up, padding=padding, gain=up^2)
    v = clamp(gain * leaky_relu(u, slope), -clamp, clamp)
    y = upfirdn2d(v, fd, down=down)

of StyleGAN3 (Karras et al. 2021, arXiv 2106.12423). Rows of u and v exist only in the cache. The
gradient keeps one bit per value of u, whether it is above 0, and with a clamp another, whether it
was clamped.

Order of gradients supported: any, in x and b. Given the bits the map is linear, and its transpose
has the same form, with the filters swapped and flipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.errors import ConfigError
from fastgan.ops.define import define_op
from fastgan.ops.registration import calls_its_function, is_transformed
from fastgan.ops.upfirdn2d import _upfirdn2d, laid_as, padding_behind, taps_of


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None,
    fd: Tensor | None,
    b: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    gain: float = 2**0.5,
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
) -> Tensor:
    """Bias, upsampling, leaky ReLU, clamp and downsampling.

    Args:
        x: (N, C, H, W); float64, float32, float16 or bfloat16.
        fu: the filter of upsampling, as f of :func:`fastgan.ops.upfirdn2d.upfirdn2d`.
        fd: the filter of downsampling, likewise.
        b: (C,); None for 0.
        up: upsampling factor along both axes.
        down: downsampling factor along both axes.
        padding: (x0, x1, y0, y1), in pixels after upsampling; negative numbers crop.
        gain: factor of the leaky ReLU.
        slope: of the leaky ReLU at negative values.
        clamp: the largest magnitude after the leaky ReLU; None for no bound.
        flip_filter: correlate instead of convolve.

    Returns:
        (N, C, rows, columns), in the dtype and memory format of x.

    Raises:
        ConfigError: an argument doesn't fit, or the result would be empty (a ValueError).

    Example:
        >>> x, f = torch.randn(1, 2, 8, 8), torch.ones(12) / 12
        >>> filtered_lrelu(x, f, f, up=2, down=2, padding=(11, 10, 11, 10)).shape
        torch.Size([1, 2, 8, 8])
    """
    if x.dim() != 4:
        raise ConfigError(f"x has shape {tuple(x.shape)}; expected (N, C, H, W)")
    fu, fd = _checked("fu", fu), _checked("fd", fd)
    if b is not None:
        if b.shape != x.shape[1:2]:
            raise ConfigError(f"b has shape {tuple(b.shape)}; expected ({x.shape[1]},)")
        b = b if b.dtype == x.dtype else b.to(x.dtype)
    clamp = None if clamp is None or clamp < 0 else float(clamp)
    settings = (up, down, list(padding), float(gain), float(slope), clamp, bool(flip_filter))
    if is_transformed("filtered_lrelu"):
        return _filtered_lrelu(x, fu, fd, b, *settings)
    if torch.is_grad_enabled():
        if any(f is not None and f.requires_grad for f in (fu, fd)):
            return _filtered_lrelu(x, fu, fd, b, *settings)
        recorded = x.requires_grad or (b is not None and b.requires_grad)
        if recorded and calls_its_function(x):
            return _FilteredLrelu.apply(x, fu, fd, b, *settings)  # type: ignore[no-any-return, no-untyped-call]
    return _op(x, fu, fd, b, *settings)  # type: ignore[no-any-return]


def _checked(name: str, f: Tensor | None) -> Tensor | None:
    if f is None:
        return None
    if f.dim() not in (1, 2) or f.numel() == 0:
        raise ConfigError(f"{name} has shape {tuple(f.shape)}; expected (taps,) or (rows, columns)")
    return f if f.dtype == torch.float64 else f.float()


# --- Autograd -------------------------------------------------------------------------------------


class _FilteredLrelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        fu, fd, _, up, down, padding, gain, slope, clamp, flip_filter = rest
        ctx.set_materialize_grads(False)
        with torch._C._AutoDispatchBelowAutograd():
            y, signs = _signs_op(x, *rest)
        ctx.save_for_backward(signs, fu, fd)
        x0, x1, y0, _ = padding
        width = x.shape[3] * up + x0 + x1 - taps_of(fu)[0] + 1
        ctx.settings = (
            *(up, down, [x0, y0, 0, 0], [signs.shape[2], width, y.shape[2], y.shape[3]]),
            *(gain * up**2, slope, clamp is not None, flip_filter),
        )
        ctx.input_sizes = x.shape[2:]
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 11
        grad_x = _transposed(ctx, grad)
        grad_b = grad_x.sum((0, 2, 3)) if ctx.needs_input_grad[3] else None
        return (grad_x if ctx.needs_input_grad[0] else None, None, None, grad_b, *(None,) * 7)


class _Masked(torch.autograd.Function):
    """The same, with given signs."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, signs: Tensor, fu: Tensor | None, fd: Tensor | None, *settings: Any
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(signs, fu, fd)
        ctx.settings, ctx.input_sizes = settings, x.shape[2:]
        with torch._C._AutoDispatchBelowAutograd():
            y: Tensor = _masked_op(x, signs, fu, fd, *settings)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 12
        return (_transposed(ctx, grad), *(None,) * 11)


def _transposed(ctx: Any, grad: Tensor) -> Tensor:
    """The transpose of ``filtered_lrelu_masked`` with ``ctx.settings``."""
    signs, fu, fd = ctx.saved_tensors
    up, down, padding, sizes, gain, slope, clamped, flip_filter = ctx.settings
    taps = (*taps_of(fd), *taps_of(fu))
    before = (*padding[2:], *padding[:2])
    return _masked_op(  # type: ignore[no-any-return]
        *(grad, signs.detach(), fd, fu, down, up),
        [tap - 1 - pad for tap, pad in zip(taps, before, strict=True)],
        [*sizes[:2], *ctx.input_sizes],
        *(gain, slope, clamped, not flip_filter),
    )


# --- The ops in plain PyTorch ---------------------------------------------------------------------


def _examples() -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 17, 8, 11, generator=generator)
    b, f = torch.randn(17, generator=generator), torch.rand(5, generator=generator)
    yield x, f, f[:4], b, 2, 2, [3, 2, 1, 4], 1.5, 0.2, None, False
    x = x.contiguous(memory_format=torch.channels_last)
    yield x, f, f[:4].outer(f), b, 2, 1, [4, 4, 4, 4], 1.5, 0.2, 0.7, True
    yield x[:, :2], None, f, None, 1, 2, [2, 2, 2, 2], 1.0, 0.0, None, False


_ARGUMENTS = (
    "(Tensor x, Tensor? fu, Tensor? fd, Tensor? b, int up, int down, int[] padding, float gain, "
    "float slope, float? clamp, bool flip_filter) -> "
)


def _upsampled(
    x: Tensor,
    fu: Tensor | None,
    b: Tensor | None,
    up: int,
    padding: Sequence[int],
    flip_filter: bool,
) -> Tensor:
    x = x if b is None else x + b[:, None, None]
    return _upfirdn2d(x, fu, (up, up), (1, 1), padding, flip_filter, up**2)


@define_op(
    "filtered_lrelu" + _ARGUMENTS + "Tensor",
    examples=_examples,
    function=_FilteredLrelu,
)
def _filtered_lrelu(
    x: Tensor,
    fu: Tensor | None,
    fd: Tensor | None,
    b: Tensor | None,
    up: int,
    down: int,
    padding: Sequence[int],
    gain: float,
    slope: float,
    clamp: float | None,
    flip_filter: bool,
) -> Tensor:
    u = _upsampled(x, fu, b, up, padding, flip_filter)
    return _downsampled(x, _activated(u, gain, slope), fd, down, clamp, flip_filter)


def _activated(u: Tensor, gain: float, slope: float) -> Tensor:
    return F.leaky_relu(u, slope) * gain


def _downsampled(
    x: Tensor, v: Tensor, fd: Tensor | None, down: int, clamp: float | None, flip_filter: bool
) -> Tensor:
    v = v if clamp is None else v.clamp(-clamp, clamp)
    return laid_as(x, _upfirdn2d(v, fd, (1, 1), (down, down), (0, 0, 0, 0), flip_filter, 1.0))


@define_op("filtered_lrelu_signs" + _ARGUMENTS + "(Tensor, Tensor)", examples=_examples)
def _filtered_lrelu_signs(
    x: Tensor,
    fu: Tensor | None,
    fd: Tensor | None,
    b: Tensor | None,
    up: int,
    down: int,
    padding: Sequence[int],
    gain: float,
    slope: float,
    clamp: float | None,
    flip_filter: bool,
) -> tuple[Tensor, Tensor]:
    u = _upsampled(x, fu, b, up, padding, flip_filter)
    v = _activated(u, gain, slope)
    bits = [_packed(u > 0)]
    if clamp is not None:
        bits.append(_packed(~(v.abs() <= clamp)))
    y = _downsampled(x, v, fd, down, clamp, flip_filter)
    return y, laid_as(x, torch.cat(bits, 3))


def _packed(values: Tensor) -> Tensor:
    """Packs eight pixels of a row into a byte."""
    padded = F.pad(values.to(torch.uint8), (0, -values.shape[3] % 8))
    eights = padded.view(*padded.shape[:3], -1, 8)
    lanes = torch.arange(8, dtype=torch.uint8, device=values.device)
    return (eights << lanes).sum(4).to(torch.uint8)


def _masked_examples() -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(1)
    for x, fu, fd, _, up, down, padding, gain, slope, clamp, flip_filter in _examples():
        (x0, x1, y0, y1), (taps_x, taps_y) = padding, taps_of(fu)
        width = x.shape[3] * up + x0 + x1 - taps_x + 1
        height = x.shape[2] * up + y0 + y1 - taps_y + 1
        planes = 1 if clamp is None else 2
        shape = (x.shape[0], x.shape[1], height, planes * ((width + 7) // 8))
        signs = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        yield (
            *(x, signs, fu, fd, up, down, [x0, y0, 1, 2], [height, width, 6, 7]),
            *(gain, slope, clamp is not None, flip_filter),
        )


@define_op(
    "filtered_lrelu_masked(Tensor x, Tensor signs, Tensor? fu, Tensor? fd, int up, int down, "
    "int[] padding, int[] sizes, float gain, float slope, bool clamped, bool flip_filter) -> "
    "Tensor",
    examples=_masked_examples,
    function=_Masked,
)
def _filtered_lrelu_masked(
    x: Tensor,
    signs: Tensor,
    fu: Tensor | None,
    fd: Tensor | None,
    up: int,
    down: int,
    padding: Sequence[int],
    sizes: Sequence[int],
    gain: float,
    slope: float,
    clamped: bool,
    flip_filter: bool,
) -> Tensor:
    u = _sized(x, fu, up, 1, padding[:2], sizes[:2], flip_filter)
    lanes = torch.arange(8, dtype=torch.uint8, device=signs.device)
    bits = (signs.to(torch.uint8)[..., None] >> lanes).bitwise_and(1).flatten(3).bool()
    row = (sizes[1] + 7) // 8 * 8
    v = torch.where(bits[..., : sizes[1]], u * gain, u * gain * slope)
    if clamped:
        v = v.masked_fill(bits[..., row : row + sizes[1]], 0.0)
    return laid_as(x, _sized(v, fd, 1, down, padding[2:], sizes[2:], flip_filter))


def _sized(
    x: Tensor,
    f: Tensor | None,
    up: int,
    down: int,
    before: Sequence[int],
    sizes: Sequence[int],
    flip_filter: bool,
) -> Tensor:
    """Filters with the given padding before (x, y), to a result of (rows, columns)."""
    padding: list[int] = []
    for axis, (size, taps) in enumerate(zip(reversed(sizes), taps_of(f), strict=True)):
        behind = padding_behind(x.shape[3 - axis], size, up, down, before[axis], taps)
        padding += [before[axis], behind]
    return _upfirdn2d(x, f, (up, up), (down, down), padding, flip_filter, 1.0)


_op = torch.ops.fastgan.filtered_lrelu.default
_signs_op = torch.ops.fastgan.filtered_lrelu_signs.default
_masked_op = torch.ops.fastgan.filtered_lrelu_masked.default
