"""The interface of a set of images, and sets made from arrays.

:class:`ImageSource` is the interface; :class:`MemorySource` keeps converted images,
:class:`ArraySource` keeps a larger array and converts on demand. Image folders, which read files on
demand, are in :mod:`fastgan.data.folder`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.data.limits import IN_MEMORY_BYTES, MAX_CLASSES
from fastgan.data.pixels import bytes_to_unit_range, fit_images
from fastgan.errors import DataError, printable

_CHUNK_IMAGES = 1024


class ImageArrays(NamedTuple):
    """A set as its module reads it, for :func:`source_from_array`.

    Attributes:
        images: (N, 1 or 3, H, W); uint8, or float32 in [-1, 1].
        labels: integers (N,), or None.
        class_names: names of the classes; None for their numbers.
    """

    images: Tensor
    labels: Tensor | None = None
    class_names: Sequence[str] | None = None


class ImageSource(ABC):
    """A finite set of square images, labelled or not.

    Args:
        name: the set's name, usually the argument of ``load_data``.
        length: number of images, at least 1.
        channels: 1 (grey) or 3 (RGB).
        image_size: side in pixels.
        labels: int64 (length,) with values in 0..len(class_names)-1, or None.
        class_names: a name for each class, or None for an unlabelled set.

    Raises:
        DataError: no images, a channel count other than 1 or 3, or labels without names.
    """

    spec: str | None = None
    """The argument with which :func:`load_data` opens the set again."""

    file_names: Sequence[str] | None = None
    """For folders, each image's relative path, with ``/``."""

    in_memory: bool = False
    """True if :attr:`images` has the whole set, small enough for a device's memory."""

    def __init__(
        self,
        name: str,
        *,
        length: int,
        channels: int,
        image_size: int,
        labels: Tensor | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        if length < 1:
            raise DataError(f"{name}: holds no images; expected at least one")
        choose_channels(name, channels, None)
        if (labels is None) != (class_names is None):
            raise DataError(f"{name}: labels and class names come together or not at all")
        if labels is not None and len(labels) != length:
            raise DataError(f"{name}: {len(labels)} labels for {length} images")
        # Text from folders and files, shown to users.
        self.name = printable(name)
        self.channels = channels
        self.image_size = image_size
        self.labels = labels
        self.class_names: list[str] | None = (
            None if class_names is None else list(map(printable, class_names))
        )
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        classes = "unlabelled" if self.num_classes is None else f"{self.num_classes} classes"
        return (
            f"{type(self).__name__}({self.name!r}: {len(self)} images, {self.channels} x "
            f"{self.image_size} x {self.image_size}, {classes})"
        )

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None for an unlabelled set."""
        return None if self.class_names is None else len(self.class_names)

    @property
    def images(self) -> Tensor:
        """The whole set, float32 (length, channels, image_size, image_size) in [-1, 1].

        Raises:
            DataError: the set isn't held in memory (:attr:`in_memory` is False).
        """
        raise DataError(f"{self.name}: too large to be held whole; read it in parts with get()")

    def digest(self) -> str:
        """A digest of the set's content, which differs if any value does.

        For folders, a digest of the files' names and sizes.
        """
        digest = hashlib.blake2b(digest_size=16)
        shape = (len(self), self.channels, self.image_size, self.class_names)
        digest.update(repr(shape).encode())
        if self.labels is not None:
            digest.update(self.labels.contiguous().numpy().data)
        for part in self._parts():
            digest.update(part)
        return digest.hexdigest()

    def _parts(self) -> Iterable[bytes | memoryview]:
        """The digest's input: bytes, or arrays of numbers."""
        return ()

    @abstractmethod
    def read(self, indices: Sequence[int]) -> Tensor:
        """Returns images at valid ``indices``, in the dtype that is cheapest to move between
        processes.

        Either uint8, 0..255, or float32 in [-1, 1]; (n, channels, image_size, image_size).
        """

    def get(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Returns the images at ``indices``, in that order, and their labels.

        Args:
            indices: n whole numbers in 0..len(self)-1; repeats are fine.

        Returns:
            images float32 (n, channels, image_size, image_size) in [-1, 1], and labels
            int64 (n,) or None.

        Raises:
            IndexError: an index outside the set.
            DataError: an image can no longer be read; the message names the file.

        >>> from fastgan.data import load_data
        >>> images, labels = load_data("digits", image_size=8).get([0, 1, 2])
        >>> images.shape, labels
        (torch.Size([3, 1, 8, 8]), tensor([0, 1, 2]))
        """
        chosen = [int(index) for index in indices]
        for index in chosen:
            if not 0 <= index < self._length:
                raise IndexError(f"{self.name}: index {index}; expected 0..{self._length - 1}")
        images = self.read(chosen)
        if images.dtype == torch.uint8:
            images = bytes_to_unit_range(images)
        return images, self.labels_at(chosen)

    def labels_at(self, indices: Sequence[int]) -> Tensor | None:
        """Returns the labels at ``indices``, int64 (n,), or None for an unlabelled set."""
        if self.labels is None:
            return None
        return self.labels.index_select(0, torch.tensor(list(indices), dtype=torch.int64))


class MemorySource(ImageSource):
    """Converted images in memory: float32 (N, channels, image_size, image_size) in [-1, 1]."""

    in_memory = True

    def __init__(
        self,
        name: str,
        images: Tensor,
        *,
        labels: Tensor | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            name,
            length=images.shape[0],
            channels=images.shape[1],
            image_size=images.shape[2],
            labels=labels,
            class_names=class_names,
        )
        self._images = images

    @property
    def images(self) -> Tensor:
        """The whole set, float32 (length, channels, image_size, image_size) in [-1, 1]."""
        return self._images

    def _parts(self) -> Iterable[bytes | memoryview]:
        return (self._images.contiguous().numpy().data,)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Give float32 images at ``indices``."""
        return self._images.index_select(0, torch.tensor(list(indices), dtype=torch.int64))


class ArraySource(ImageSource):
    """An unconverted array, cropped, resized and scaled on demand.

    Args:
        array: (N, 1 or 3, H, W); uint8, or float32 in [-1, 1].
    """

    def __init__(
        self,
        name: str,
        array: Tensor,
        *,
        image_size: int,
        channels: int,
        labels: Tensor | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            name,
            length=array.shape[0],
            channels=channels,
            image_size=image_size,
            labels=labels,
            class_names=class_names,
        )
        self._array = array

    def _parts(self) -> Iterable[bytes | memoryview]:
        return (self._array.contiguous().numpy().data,)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Give float32 images at ``indices``."""
        chosen = self._array.index_select(0, torch.tensor(list(indices), dtype=torch.int64))
        return fit_images(chosen, image_size=self.image_size, channels=self.channels)


def choose_channels(name: str, own: int, wanted: int | None) -> int:
    """Returns the channel count: the data's own or the requested one.

    Raises:
        DataError: either isn't 1 or 3.
    """
    if own not in (1, 3):
        raise DataError(f"{name}: wrong channel count: {own} channels found; expected 1 or 3")
    if wanted is None:
        return own
    if wanted not in (1, 3):
        raise DataError(f"channels: wrong channel count {wanted}; expected 1 (grey) or 3 (RGB)")
    return wanted


def check_labels(what: str, labels: Tensor, length: int) -> Tensor:
    """Checks labels against their images, and returns them as int64 (length,).

    Raises:
        DataError: another count than images, or values outside 0..MAX_CLASSES-1.
    """
    if labels.ndim != 1 or labels.shape[0] != length:
        raise DataError(
            f"{what}: labels of shape {tuple(labels.shape)} for {length} images; "
            f"expected ({length},)"
        )
    labels = labels.to(torch.int64)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= MAX_CLASSES:
        raise DataError(f"{what}: labels from {low} to {high}; expected 0 to {MAX_CLASSES - 1}")
    return labels


def fits_in_memory(length: int, channels: int, image_size: int, in_memory: bool | None) -> bool:
    """Whether a set is kept converted in memory; ``in_memory`` overrides the size rule."""
    if in_memory is not None:
        return in_memory
    return length * channels * image_size * image_size * 4 <= IN_MEMORY_BYTES


def source_from_array(
    name: str,
    array: Tensor,
    *,
    image_size: int,
    channels: int | None = None,
    labels: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    in_memory: bool | None = None,
) -> ImageSource:
    """Makes a source from an array, converted at once if it is small, else on demand.

    Args:
        name: how messages refer to it.
        array: (N, 1 or 3, H, W); uint8, or float32 already in [-1, 1].
        image_size: side of the images it gives.
        channels: 1, 3, or None for the array's own.
        labels: integers (N,), at least 0, or None.
        class_names: names of the classes; the numbers themselves when None.
        in_memory: True or False forces the choice; None goes by :data:`IN_MEMORY_BYTES`.

    Raises:
        DataError: no images, wrong channel count, labels that don't fit.

    >>> source = source_from_array("noise", torch.zeros(4, 1, 6, 6), image_size=16)
    >>> len(source), source.images.shape
    (4, torch.Size([4, 1, 16, 16]))
    """
    if 0 in array.shape:
        shape = tuple(array.shape)
        raise DataError(f"{name}: holds no images (shape {shape}); expected at least one")
    channels = choose_channels(name, array.shape[1], channels)
    if labels is not None:
        labels = check_labels(name, labels, array.shape[0])
        if class_names is None:
            class_names = [str(number) for number in range(int(labels.max()) + 1)]
        elif int(labels.max()) >= len(class_names):
            raise DataError(
                f"{name}: label {int(labels.max())} found; expected 0 to {len(class_names) - 1}"
            )
    source = ArraySource(
        name,
        array,
        image_size=image_size,
        channels=channels,
        labels=labels,
        class_names=class_names,
    )
    if not fits_in_memory(len(source), channels, image_size, in_memory):
        return source
    images = torch.empty(len(source), channels, image_size, image_size)
    # In parts, to avoid a float copy of the whole array.
    for start in range(0, len(source), _CHUNK_IMAGES):
        part = array[start : start + _CHUNK_IMAGES]
        images[start : start + _CHUNK_IMAGES] = fit_images(
            part, image_size=image_size, channels=channels
        )
    return MemorySource(name, images, labels=labels, class_names=class_names)
