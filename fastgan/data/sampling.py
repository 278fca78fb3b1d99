"""Stateless shuffling into batches, and splitting for evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan._util.random_streams import seeded_generator
from fastgan.data.source import ImageSource
from fastgan.errors import ConfigError


class InfiniteSampler:
    """Endless batches of indices, each a pure function of the seed and the step.

    Every epoch is a new permutation of ``0..length-1``. Epochs are concatenated and cut into
    batches, so that all batches are full and may span two epochs. There is no state: a resumed run
    needs only its step number.

    Args:
        length: number of images, at least 1.
        batch_size: indices in each batch, at least 1; may exceed ``length``.
        seed: any whole number.

    Raises:
        ConfigError: ``length`` or ``batch_size`` below 1.

    >>> sampler = InfiniteSampler(length=5, batch_size=10, seed=0)
    >>> sorted(sampler.indices(3).tolist())
    [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    """

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        if length < 1:
            raise ConfigError(f"length: {length}; expected at least 1")
        if batch_size < 1:
            raise ConfigError(f"batch_size: {batch_size}; expected at least 1")
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        # A cache: the last permutation and its epoch.
        self._last: tuple[int, Tensor] | None = None

    def permutation(self, epoch: int) -> Tensor:
        """Give the order of epoch ``epoch``, int64 (length,)."""
        if self._last is None or self._last[0] != epoch:
            order = torch.randperm(self.length, generator=seeded_generator(self.seed, epoch))
            self._last = (epoch, order)
        return self._last[1]

    def indices(self, step: int) -> Tensor:
        """Give batch number ``step`` (from 0): int64 (batch_size,).

        Raises:
            ConfigError: a negative step.
        """
        if step < 0:
            raise ConfigError(f"step: {step}; expected at least 0")
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.length)
            count = min(self.length - offset, stop - start)
            parts.append(self.permutation(epoch)[offset : offset + count])
            start += count
        return torch.cat(parts)


def split_indices(
    length: int, held_out: float = 0.2, seed: int = 0, *, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Splits ``0..length-1`` into two random, reproducible, disjoint parts.

    Args:
        length: number of images, at least 2.
        held_out: share of the second part, between 0 and 1; rounded to whole images, at least
            one on either side.
        seed: another seed gives another split.
        labels: int (length,); if given, each class is split in that share separately. A class of a
            single image goes to the first part.

    Returns:
        (rest, held_out): two sorted int64 tensors that together hold every index once.

    Raises:
        ConfigError: a length below 2, a share outside (0, 1), labels of another length, or
            labels of which every class has a single image.

    >>> rest, held_out = split_indices(10, 0.3)
    >>> len(rest), len(held_out)
    (7, 3)
    """
    if length < 2:
        raise ConfigError(f"length: {length}; expected at least 2 images to split")
    if not 0.0 < held_out < 1.0:
        raise ConfigError(f"held_out: {held_out}; expected a share between 0 and 1")
    if labels is not None and labels.shape != (length,):
        raise ConfigError(f"labels: shape {tuple(labels.shape)}; expected ({length},)")
    generator = seeded_generator(seed, 0)
    order = torch.randperm(length, generator=generator)
    if labels is None:
        groups = [order]
    else:
        shuffled = labels.cpu()[order]
        groups = [order[shuffled == number] for number in sorted(set(shuffled.tolist()))]
    chosen = torch.zeros(length, dtype=torch.bool)
    for group in groups:
        if len(group) >= 2:
            count = min(max(round(len(group) * held_out), 1), len(group) - 1)
            chosen[group[:count]] = True
    if not bool(chosen.any()):
        raise ConfigError("labels: every class has a single image; expected two of one at least")
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def images_to_compare(source: ImageSource, seed: int = 0) -> tuple[Tensor, Tensor | None]:
    """At most 10,000 images and their labels, which every evaluation with this seed compares with.

    Metrics from 10,000 images are as stable as from more, and fit in memory.
    """
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
    return source.get(order[:10_000].tolist())
