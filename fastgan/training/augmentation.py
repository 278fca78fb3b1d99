"""Differentiable augmentation of real and generated images.

With little data a discriminator memorises the images. Augmenting only the real ones would teach the
generator to augment, so both are augmented, in every update, by differentiable random maps.

**DiffAugment** (``color``, ``translation``, ``cutout``): Zhao et al. 2020, arXiv 2006.10738,
section 3.2 and appendix. With u uniform on [0, 1) for each sample:

    colour        x + (u - 1/2);   then 2u (x - m) + m, m the mean of a pixel's channels;
                  then (u + 1/2) (x - m) + m, m the mean of the image
    translation   by whole pixels, up to an eighth of the side either way, zeros coming in
    cutout        zeros in a square of half the side, its centre anywhere in the image

**Adaptive discriminator augmentation** (``ada``): Karras et al. 2020, arXiv 2006.06676, section 2.2
and appendix B, the categories "bgc" (:data:`ADA_MAPS`). Each map is applied to a sample with
probability p: while p is small most samples are unchanged, and the generator learns the images, not
the maps. :mod:`fastgan.training.adaptive` controls p. Images are extended by reflection.

    pixels        flip, turns by 90 degrees, shift by whole pixels, without blending
    geometry      q = R(after) diag(e^a, e^-a) R(before) e^s (x - centre) + move + centre, of which
                  the inverse says where each output pixel's value comes from
    colour        M (x + b) with M = c ((1 - 2i) P + e^s (cos h (1 - P) + sin h K)); v = (1, 1, 1) /
                  sqrt 3 is the axis of grey, P = v v^T, K y = v x y
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from fastgan.errors import ConfigError
from fastgan.losses import at_least_float32
from fastgan.ops.grid_sample import grid_sample
from fastgan.ops.upfirdn2d import upfirdn2d

LARGEST_SHIFT = 1 / 8
CUTOUT_SIDE = 1 / 2

Draw: TypeAlias = Callable[[int], Tensor]


def augmentation_kinds(policy: str) -> tuple[str, ...]:
    """The kinds in a policy, in the paper's order.

    Raises:
        ConfigError: an unknown kind.

    Example:
        >>> augmentation_kinds("cutout,color"), augmentation_kinds("none")
        (('color', 'cutout'), ())
    """
    named = [] if policy == "none" else [kind.strip() for kind in policy.split(",")]
    for kind in named:
        if kind not in KINDS:
            raise ConfigError(
                f"augment: expected none or some of {','.join(KINDS)}, got {policy!r}"
            )
    return tuple(kind for kind in KINDS if kind in named)


def draw_augmentation(
    kinds: Sequence[str], draw: Draw, probability: Tensor | float = 1.0
) -> dict[str, Tensor]:
    """The random numbers of one batch.

    Args:
        kinds: from :func:`augmentation_kinds`.
        draw: k -> (N, k) numbers, uniform on [0, 1).
        probability: of each of ADA's maps; a number or a 0-d tensor.

    Returns:
        For each kind its numbers, shape (N, k); the last of "ada" is the probability.
    """
    numbers = {kind: draw(KINDS[kind][0]) for kind in kinds}
    if "ada" in numbers:
        drawn = numbers["ada"]
        last = torch.ones_like(drawn[:, :1]) * probability
        numbers["ada"] = torch.cat([drawn, last], 1)
    return numbers


def augment(images: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
    """Augmented images, differentiable in ``images`` to any order.

    Args:
        images: (N, C, H, W), floating.
        numbers: from :func:`draw_augmentation`, on the same device.

    Returns:
        The same shape and dtype.

    Example:
        >>> image = torch.ones(1, 1, 4, 4)
        >>> augment(image, {"cutout": torch.tensor([[0.0, 0.0]])})[0, 0]
        tensor([[0., 1., 1., 1.],
                [1., 1., 1., 1.],
                [1., 1., 1., 1.],
                [1., 1., 1., 1.]])
    """
    for kind, values in numbers.items():
        images = KINDS[kind][1](images, values)
    return images


def _colour(images: Tensor, u: Tensor) -> Tensor:
    u = u.to(images.dtype)
    brightness, saturation, contrast = (column.view(-1, 1, 1, 1) for column in u.unbind(1))
    images = images + (brightness - 0.5)
    mean = images.mean(1, keepdim=True)
    images = (images - mean) * (2 * saturation) + mean
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def _translation(images: Tensor, u: Tensor) -> Tensor:
    for dimension, numbers in ((2, u[:, 0]), (3, u[:, 1])):
        side = images.shape[dimension]
        furthest = int(side * LARGEST_SHIFT + 0.5)
        shift = _whole(numbers, 2 * furthest + 1) - furthest
        source = torch.arange(side, device=images.device) - shift[:, None]
        inside = (source >= 0) & (source < side)
        shape = [len(images), 1, 1, 1]
        shape[dimension] = side
        # Rows beyond the edge are zeros, and so are the gather's gradients there, in any order.
        images = _taken(images, dimension, source.clamp(0, side - 1))
        images = images * inside.view(shape).to(images.dtype)
    return images


def _cutout(images: Tensor, u: Tensor) -> Tensor:
    kept = torch.zeros((), dtype=torch.bool, device=images.device)
    for dimension, numbers in ((2, u[:, 0]), (3, u[:, 1])):
        side = images.shape[dimension]
        square = int(side * CUTOUT_SIDE + 0.5)
        # An even square's centre may be between any two pixels, edges included.
        centre = _whole(numbers, side + 1 - square % 2)
        first = centre - square // 2
        place = torch.arange(side, device=images.device)
        outside = (place < first[:, None]) | (place >= first[:, None] + square)
        shape = [len(images), 1, 1, 1]
        shape[dimension] = side
        kept = kept | outside.view(shape)
    return images * kept.to(images.dtype)


def _whole(u: Tensor, count: int) -> Tensor:
    """Whole numbers in 0..count-1. (In float32 u * count is below count for u < 1.)"""
    return (u * count).long()


def _taken(images: Tensor, dimension: int, source: Tensor) -> Tensor:
    """Selects rows or columns of each image.

    Args:
        images: (N, C, H, W).
        dimension: 2 for rows, 3 for columns.
        source: (N, L), their indices.

    Returns:
        The images with L rows or columns.
    """
    shape, index = list(images.shape), [len(images), 1, 1, 1]
    shape[dimension] = index[dimension] = source.shape[1]
    return images.gather(dimension, source.view(index).expand(shape))


# --- Adaptive discriminator augmentation ----------------------------------------------------------

# The least asymmetric Daubechies wavelet with six vanishing moments (sym6): its filter is
# orthogonal to its even shifts, so upsampling and downsampling give the same image. Computed to 40
# digits by spectral factorisation: Daubechies 1988, section 4.
_SYM6 = (
    0.015404109327044824,
    0.0034907120842221626,
    -0.11799011114852002,
    -0.04831174258569806,
    0.49105594192797375,
    0.787641141028651,
    0.3379294217281658,
    -0.07263752278637658,
    -0.02106029251237085,
    0.04472490177078139,
    0.0017677118642540077,
    -0.00780070832503238,
)
# The filter's centre of mass, in taps from its first one.
_CENTRE = sum(tap * value for tap, value in enumerate(_SYM6)) / math.sqrt(2)
# The filter's reach beyond the image's edges, in pixels.
_MARGIN = len(_SYM6) // 2


def _ada(images: Tensor, u: Tensor) -> Tensor:
    wide = at_least_float32(images)
    of = ada_parameters(u.to(wide.dtype))
    wide = _blitted(wide, of["flip"], of["turns"], of["shift"])
    geometry = [of[name] for name in ("scale", "before", "stretch", "after", "move")]
    wide = _where(wide, geometry, _moved(wide, *geometry))
    colour = [of[name] for name in ("brightness", "contrast", "luma_flip", "hue", "saturation")]
    return _where(wide, colour, _recoloured(wide, *colour)).to(images.dtype)


def ada_parameters(numbers: Tensor) -> dict[str, Tensor]:
    """The parameters of ADA's maps for each sample.

    Args:
        numbers: (N, k), from :func:`draw_augmentation`.

    Returns:
        For each of :data:`ADA_MAPS` its parameters, shape (N, 1) or (N, 2); zero, the identity, if
        it isn't applied.

    Example:
        >>> numbers = draw_augmentation(["ada"], lambda k: torch.rand(4, k), probability=0.0)
        >>> any(bool(each.any()) for each in ada_parameters(numbers["ada"]).values())
        False
    """
    p = numbers[:, -1:]
    # There are two rotations: 1 - (1 - p_rotation)^2 = p.
    p_rotation = 1 - (1 - p).sqrt()
    by_kind, first = {}, 0
    for name, (count, parameters) in ADA_MAPS.items():
        last = first + 1 + count
        applied = numbers[:, first : first + 1] < (p_rotation if name in _ROTATIONS else p)
        by_kind[name] = parameters(numbers[:, first + 1 : last]) * applied
        first = last
    return by_kind


def _where(images: Tensor, parameters: Sequence[Tensor], changed: Tensor) -> Tensor:
    """The changed images if a parameter isn't zero; the others bitwise unchanged."""
    some = torch.cat(list(parameters), 1).ne(0).any(1)
    return torch.where(some.view(-1, 1, 1, 1), changed, images)


def _blitted(images: Tensor, flip: Tensor, turns: Tensor, shift: Tensor) -> Tensor:
    sideways = turns % 2 == 1
    images = torch.where(sideways.view(-1, 1, 1, 1), images.transpose(2, 3), images)
    # Odd turns transpose, so columns are then where the flip's rows were.
    flips_rows = ((turns == 1) | (turns == 2)) ^ (sideways & (flip == 1))
    flips_columns = (turns >= 2) ^ (~sideways & (flip == 1))
    side = images.shape[2]
    places = torch.arange(side, device=images.device)
    whole_shift = (shift * side).round().long()
    for dimension, flips in ((2, flips_rows), (3, flips_columns)):
        source = _reflected(places - whole_shift[:, dimension - 2 : dimension - 1], side)
        images = _taken(images, dimension, torch.where(flips, side - 1 - source, source))
    return images


def _moved(
    images: Tensor, scale: Tensor, before: Tensor, stretch: Tensor, after: Tensor, move: Tensor
) -> Tensor:
    """Resamples at twice the resolution against aliasing: upsample, look up, downsample.

    Let h be the filter, c its centre. After upsampling by h, place n belongs to pixel (n + c) / 2;
    before downsampling by the reversed filter, place n belongs to pixel (n - 11 + c) / 2.
    """
    side, taps = images.shape[2], len(_SYM6)
    places = torch.arange(2 * side + taps - 2, device=images.device, dtype=images.dtype)
    places = (places - (taps - 1 - _CENTRE)) / 2 - (side - 1) / 2
    x, y = places - move[:, :1, None] * side, places[:, None] - move[:, 1:, None] * side
    x, y = _rotated(x, y, -after)
    x, y = x * (-stretch - scale).exp()[..., None], y * (stretch - scale).exp()[..., None]
    x, y = _rotated(x, y, -before)

    # An endlessly reflected image is periodic: one period is enough.
    period = 2 * (side - 1)
    around = torch.arange(-_MARGIN, period + _MARGIN, device=images.device)
    around = _reflected(around, side).expand(len(images), -1)
    filter = _sym6(images.dtype, images.device)
    fine = _taken(_taken(images, 2, around), 3, around)
    fine = upfirdn2d(fine, filter, up=(2, 2), flip_filter=True, gain=2.0)
    pixels = (torch.stack([x, y], 3) + (side - 1) / 2) % period
    # grid_sample's positions: -1 and 1 are the outer edges of the first and the last pixel.
    grid = (4 * (pixels + _MARGIN) - 2 * _CENTRE + 1) / fine.shape[3] - 1
    return upfirdn2d(grid_sample(fine, grid), filter, down=(2, 2), gain=0.5)


def _recoloured(
    images: Tensor,
    brightness: Tensor,
    contrast: Tensor,
    luma_flip: Tensor,
    hue: Tensor,
    saturation: Tensor,
) -> Tensor:
    contrast, saturation = contrast.exp(), saturation.exp()
    # Hue and saturation don't change grey, the only colour of one-channel images.
    of_grey, offset = contrast * (1 - 2 * luma_flip), brightness
    of_colour = contrast * saturation * hue.cos()
    of_turned = contrast * saturation * hue.sin() / math.sqrt(3)
    of_grey, offset, of_colour, of_turned = (
        factor[..., None, None] for factor in (of_grey, offset, of_colour, of_turned)
    )
    grey = images.mean(1, keepdim=True)
    turned = images.roll(1, 1) - images.roll(-1, 1)
    return of_grey * (grey + offset) + of_colour * (images - grey) + of_turned * turned


def _rotated(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = angle.cos()[..., None], angle.sin()[..., None]
    return cos * x - sin * y, sin * x + cos * y


def _reflected(places: Tensor, side: int) -> Tensor:
    """The position within an image for one beyond its edges, by reflection without repeating
    edges."""
    last = side - 1
    return last - ((places % (2 * last)) - last).abs()


@functools.cache
def _sym6(dtype: torch.dtype, device: torch.device) -> Tensor:
    # Cached: nothing can be copied to the device during a CUDA graph's capture.
    return torch.tensor(_SYM6, dtype=dtype, device=device)


def _coin(u: Tensor) -> Tensor:
    return (2 * u).floor()


def _angle(u: Tensor) -> Tensor:
    return math.pi * (2 * u - 1)


def _normal(deviation: float) -> Callable[[Tensor], Tensor]:
    # u may be 0, which would move an image by infinity.
    return lambda u: deviation * torch.special.ndtri(u.clamp(1e-7, 1 - 1e-7))


_ROTATIONS = ("before", "after")
ADA_MAPS: Mapping[str, tuple[int, Callable[[Tensor], Tensor]]] = types.MappingProxyType(
    {
        "flip": (1, _coin),
        "turns": (1, lambda u: (4 * u).floor()),
        "shift": (2, lambda u: LARGEST_SHIFT * (2 * u - 1)),
        "scale": (1, _normal(0.2 * math.log(2))),
        "before": (1, _angle),
        "stretch": (1, _normal(0.2 * math.log(2))),
        "after": (1, _angle),
        "move": (2, _normal(1 / 8)),
        "brightness": (1, _normal(0.2)),
        "contrast": (1, _normal(0.5 * math.log(2))),
        "luma_flip": (1, _coin),
        "hue": (1, _angle),
        "saturation": (1, _normal(math.log(2))),
    }
)
"""ADA's maps in order: the number of parameters, and the parameters as a function of numbers
uniform on [0, 1). Shifts are along rows and columns, in sides; ``move`` along x and y, in sides;
``scale``, ``stretch``, ``contrast`` and ``saturation`` are logarithms of factors; ``before`` and
``after`` rotate before and after the stretch, in radians."""


KINDS: Mapping[str, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = types.MappingProxyType(
    {
        "color": (3, _colour),
        "translation": (2, _translation),
        "cutout": (2, _cutout),
        # One more number for each map decides whether it is applied.
        "ada": (sum(1 + count for count, _ in ADA_MAPS.values()), _ada),
    }
)
"""Each kind's number of random numbers per sample, and its map."""
