"""The geometry of a convolution: output size, and which taps reach which pixels.

Along one axis, with kernel size k, stride s, padding p, dilation d and output padding e, and with
i a pixel of the convolution's input, o of its output, and r a tap:

    Conv2d            i = o s - p + r d,    outputs = floor((inputs + 2 p - d (k - 1) - 1) / s) + 1
    ConvTranspose2d   o = i s - p + r d,    outputs = (inputs - 1) s - 2 p + d (k - 1) + e + 1

(torch's own formulas.) Seen from its output, a transposed convolution is s convolutions of stride 1
side by side: output o has the *phase* f = (o + p) mod s, and only taps with r d = f (mod s) reach
it. With g = gcd(d, s) these are none where g does not divide f, and else

    r = r0 + j s / g,    r0 = (f / g) (d / g)^-1 mod s / g,    j = 0, 1, ...

The q-th output of the phase and its j-th tap then meet at the input

    i = q + (o0 + p - r0 d) / s - j d / g,    where o = o0 + q s,    o0 = (f - p) mod s

No product with a zero between two pixels is formed. ``scatter_axis`` in
``fastgan.kernels.index_maps`` has these formulas for the GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from fastgan.errors import ConfigError

Pair = tuple[int, int]


class Phase(NamedTuple):
    """One phase of a transposed convolution along one axis.

    Attributes:
        first_output: o0.
        outputs: the number of outputs: o0, o0 + s, ...
        taps: the taps that reach it: r0, r0 + s / g, ...; maybe none.
        first_input: the input at which output o0 and tap r0 meet; may lie outside.
        input_step: its step from tap to tap, -d / g.
    """

    first_output: int
    outputs: int
    taps: tuple[int, ...]
    first_input: int
    input_step: int


@dataclass(frozen=True)
class ConvGeometry:
    """Kernel size, stride, padding, dilation and direction of a 2-d convolution.

    All are pairs: along the height, along the width. A Conv2d's weight has the shape
    (C_out, C_in, k_h, k_w), a ConvTranspose2d's (C_in, C_out, k_h, k_w).

    Attributes:
        kernel_size: at least 1.
        stride: at least 1.
        padding: zeros around the input, at least 0.
        dilation: distance between taps, at least 1.
        output_padding: of a transposed convolution; less than the stride or the dilation.
        transposed: whether this is a ConvTranspose2d.

    Raises:
        ConfigError: a value out of range (a ValueError).

    Example:
        >>> ConvGeometry((4, 4), (2, 2), (1, 1), transposed=True).output_size((8, 8))
        (16, 16)
        >>> [phase.taps for phase in ConvGeometry((4, 4), (2, 2), (1, 1)).phases((16, 16))[0]]
        [(0, 2), (1, 3)]
    """

    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    output_padding: Pair = (0, 0)
    transposed: bool = False

    def __post_init__(self) -> None:
        least = {
            "kernel_size": 1,
            "stride": 1,
            "padding": 0,
            "dilation": 1,
            "output_padding": 0,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if len(value) != 2 or any(v < bound for v in value):
                raise ConfigError(f"{name} is {value}; expected two numbers of at least {bound}")
        if not self.transposed and self.output_padding != (0, 0):
            raise ConfigError(
                f"output_padding is {self.output_padding}; expected (0, 0): the convolution is not "
                "transposed"
            )
        for padding, stride, dilation in zip(
            self.output_padding, self.stride, self.dilation, strict=True
        ):
            if padding >= max(stride, dilation, 1) and padding > 0:
                raise ConfigError(
                    f"output_padding is {self.output_padding}; expected less than the stride "
                    f"{self.stride} or the dilation {self.dilation}"
                )

    def output_size(self, input_size: Pair) -> Pair:
        """Height and width of the output.

        Args:
            input_size: height and width of the input.

        Raises:
            ConfigError: there would be no output pixel.
        """
        size = self._output_along(input_size, 0), self._output_along(input_size, 1)
        if min(input_size) < 1 or min(size) < 1:
            raise ConfigError(
                f"an input of {input_size[0]}x{input_size[1]} gives an output of "
                f"{size[0]}x{size[1]}; expected at least one pixel (kernel size "
                f"{self.kernel_size}, stride {self.stride}, padding {self.padding}, "
                f"dilation {self.dilation})"
            )
        return size

    def _output_along(self, input_size: Pair, axis: int) -> int:
        reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        if self.transposed:
            return (
                (input_size[axis] - 1) * self.stride[axis]
                - 2 * self.padding[axis]
                + reach
                + self.output_padding[axis]
            )
        return (input_size[axis] + 2 * self.padding[axis] - reach) // self.stride[axis] + 1

    def phases(self, scattered_size: Pair) -> tuple[tuple[Phase, ...], tuple[Phase, ...]]:
        """The phases along height and width of the side to which taps scatter.

        Args:
            scattered_size: the output's size of a ConvTranspose2d, or the input's of a Conv2d, for
                its input gradient.
        """
        return self._phases_along(scattered_size, 0), self._phases_along(scattered_size, 1)

    def _phases_along(self, size: Pair, axis: int) -> tuple[Phase, ...]:
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        padding, dilation = self.padding[axis], self.dilation[axis]
        common = math.gcd(dilation, stride)
        tap_step = stride // common
        phases = []
        for phase in range(stride):
            first_output = (phase - padding) % stride
            outputs = max(0, -((first_output - size[axis]) // stride))
            first_tap = phase // common * self.inverse_dilation[axis] % tap_step
            taps = tuple(range(first_tap, kernel, tap_step)) if phase % common == 0 else ()
            first_input = (first_output + padding - first_tap * dilation) // stride
            phases.append(Phase(first_output, outputs, taps, first_input, -(dilation // common)))
        return tuple(phases)

    @property
    def inverse_dilation(self) -> Pair:
        """(d / g)^-1 mod s / g along each axis, which gives a phase's first tap."""
        return _inverse(self.dilation[0], self.stride[0]), _inverse(
            self.dilation[1], self.stride[1]
        )

    def with_free_strides(self, gathered_size: Pair) -> ConvGeometry:
        """The same scatter, decomposed into as many phases as its input allows.

        Along an axis with one input pixel the stride has no effect. A stride of the kernel's extent
        makes every output pixel a phase with one tap: 4x4 pixels from one are then 16 matrix
        products without zeros, not one with 15/16 zeros.

        Args:
            gathered_size: the input's size of a ConvTranspose2d, or the output's of a Conv2d.
        """
        stride = tuple(
            max(s, d * (k - 1) + 1) if size == 1 else s
            for s, d, k, size in zip(
                self.stride, self.dilation, self.kernel_size, gathered_size, strict=True
            )
        )
        return self if stride == self.stride else replace(self, stride=(stride[0], stride[1]))


@lru_cache(maxsize=1024)
def _inverse(dilation: int, stride: int) -> int:
    common = math.gcd(dilation, stride)
    return pow(dilation // common, -1, stride // common)


@lru_cache(maxsize=1024)
def division_by(divisor: int) -> Pair:
    """The multiplier and the shift that replace a division by an invariant integer.

        n // d = (n m) >> (31 + s),    m = ceil(2^(31 + s) / d),    s = ceil(log2(d)),

    for 0 <= n < 2^31. Granlund and Montgomery 1994, "Division by invariant integers using
    multiplication", theorem 4.2.

    Args:
        divisor: from 1 to 2^31 - 1; the result for 1 can't be used.

    Returns:
        m, as a signed integer of the same 32 bits, and s - 1, the shift of the product's upper
        half.

    Example:
        >>> multiplier, shift = division_by(48)
        >>> [n * (multiplier % 2**32) >> 32 + shift for n in (47, 48, 2**31 - 1)]
        [0, 1, 44739242]
    """
    shift = (divisor - 1).bit_length()
    multiplier = -(-(1 << 31 + shift) // divisor)
    return (multiplier + 2**31) % 2**32 - 2**31, max(shift - 1, 0)
