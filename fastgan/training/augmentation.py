"""Differentiable augmentation: what both players see of real and of generated images alike.

Zhao et al. 2020, arXiv 2006.10738, section 3.2 and appendix: with little data a discriminator
learns the images by heart. Augmenting only the real ones would teach the generator to augment; so
both are, in every update, by random maps that the gradient passes through.

With u uniform on [0, 1) for each sample:

    colour        x + (u - 1/2);   then 2u (x - m) + m, m the mean of a pixel's channels;
                  then (u + 1/2) (x - m) + m, m the mean of the image
    translation   by whole pixels, up to an eighth of the side either way, zeros coming in
    cutout        zeros in a square of half the side, its centre anywhere in the image
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from fastgan.errors import ConfigError

__all__ = ["KINDS", "augment", "augmentation_kinds", "draw_augmentation"]

LARGEST_SHIFT = 1 / 8
CUTOUT_SIDE = 1 / 2

Draw: TypeAlias = Callable[[int], Tensor]


def augmentation_kinds(policy: str) -> tuple[str, ...]:
    """The kinds that a policy names, in the paper's order.

    Raises:
        ConfigError: an unknown kind.

    Example:
        >>> augmentation_kinds("cutout,color"), augmentation_kinds("none")
        (('color', 'cutout'), ())
    """
    named = [] if policy == "none" else [each.strip() for each in policy.split(",")]
    for each in named:
        if each not in KINDS:
            raise ConfigError(
                f"augment: expected none or some of {','.join(KINDS)}, got {policy!r}"
            )
    return tuple(each for each in KINDS if each in named)


def draw_augmentation(kinds: Sequence[str], draw: Draw) -> dict[str, Tensor]:
    """The random numbers of one batch.

    Args:
        kinds: of :func:`augmentation_kinds`.
        draw: gives (N, k) numbers uniform on [0, 1) for a whole k.

    Returns:
        For each kind its numbers, shape (N, k).
    """
    return {kind: draw(KINDS[kind][0]) for kind in kinds}


def augment(images: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
    """Augmented images, differentiable in ``images`` to any order.

    Args:
        images: (N, C, H, W), floating.
        numbers: of :func:`draw_augmentation`, on the same device.

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
    brightness, saturation, contrast = (each.view(-1, 1, 1, 1) for each in u.unbind(1))
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
        index = source.clamp(0, side - 1).view(shape).expand_as(images)
        # Rows from beyond the edge are zeros; what the gather's gradient adds up there is zeros
        # too, in whatever order.
        images = images.gather(dimension, index) * inside.view(shape).to(images.dtype)
    return images


def _cutout(images: Tensor, u: Tensor) -> Tensor:
    kept = torch.zeros((), dtype=torch.bool, device=images.device)
    for dimension, numbers in ((2, u[:, 0]), (3, u[:, 1])):
        side = images.shape[dimension]
        square = int(side * CUTOUT_SIDE + 0.5)
        # With an even square every place of its centre between two pixels, the edges' included.
        centre = _whole(numbers, side + 1 - square % 2)
        first = centre - square // 2
        place = torch.arange(side, device=images.device)
        outside = (place < first[:, None]) | (place >= first[:, None] + square)
        shape = [len(images), 1, 1, 1]
        shape[dimension] = side
        kept = kept | outside.view(shape)
    return images * kept.to(images.dtype)


def _whole(u: Tensor, count: int) -> Tensor:
    """Whole numbers in 0..count-1. (float32 rounds no product of u < 1 and count up to count.)"""
    return (u * count).long()


KINDS: Mapping[str, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = types.MappingProxyType(
    {"color": (3, _colour), "translation": (2, _translation), "cutout": (2, _cutout)}
)
"""How many random numbers each kind takes for a sample, and what it does."""
