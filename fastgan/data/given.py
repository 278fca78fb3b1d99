"""Sources from Python objects: tensors, arrays, torch's datasets and loaders, streams."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from fastgan.data.pixels import fit_images
from fastgan.data.source import ImageSource, check_labels, choose_channels, source_from_array
from fastgan.errors import DataError, DataWarning

# Number of a set's items examined for its range, and of a stream's images kept to compare samples
# with.
_LOOKED_AT = 16
_KEPT = 512

_IMAGE_KEYS = ("image", "images", "img", "pixel_values", "x")
_LABEL_KEYS = ("label", "labels", "fine_label", "y")


def as_source(
    data: Any, *, image_size: int | None = None, channels: int | None = None
) -> ImageSource:
    """Makes a source from any of these objects with images.

    Args:
        data: one of

            - an :class:`ImageSource`, returned unchanged;
            - a tensor or array (N, H, W), (N, C, H, W) or (N, H, W, C), or a pair of one and its
              labels (N,);
            - a dataset with a length, of images or (image, label), or of mappings with ``image``
              and ``label``: torchvision's, Hugging Face's, a list; images are PIL's, arrays or
              tensors. It is read item by item, so random transforms apply each time;
            - a ``DataLoader``: its dataset, in fastgan's batches; for an ``IterableDataset``, its
              own batches;
            - an iterable of batches, of images or (images, labels): a stream.
        image_size: side of the images; None takes the data's, rounded up to a power of two from 16
            to 256. Images of other sizes are cropped to squares and resized.
        channels: 1 (grey) or 3 (RGB) converts; None keeps the data's own.

    Values are uint8, or floats in [-1, 1] or [0, 1]. The range is [0, 1] if no examined value is
    below 0, which a :class:`fastgan.DataWarning` reports.

    Raises:
        DataError: no images, values of another range or type, another number of channels, or
            labels that don't fit.
        TypeError: none of the above.

    Example:
        >>> import torch
        >>> as_source(torch.zeros(10, 3, 32, 32, dtype=torch.uint8))
        MemorySource('tensor': 10 images, 3 x 32 x 32, unlabelled)
        >>> pairs = [(torch.full((1, 28, 28), 0.5), label) for label in (0, 1, 1)]
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     as_source(pairs)
        DatasetSource('list': 3 images, 1 x 32 x 32, 2 classes)
    """
    if isinstance(data, ImageSource):
        return data
    images, labels = data if _is_pair_of_arrays(data) else (data, None)
    if isinstance(images, (Tensor, np.ndarray)):
        name = "tensor" if isinstance(images, Tensor) else "array"
        pixels = _Range(name).applied(_laid_out(name, images))
        return source_from_array(
            name,
            pixels,
            image_size=_size_for(pixels, image_size),
            channels=channels,
            labels=None if labels is None else _whole_numbers(name, labels),
        )
    if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset):
        data = data.dataset
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return DatasetSource(data, image_size=image_size, channels=channels)
    if isinstance(data, Iterable):
        return StreamSource(data, image_size=image_size, channels=channels)
    raise TypeError(
        "source: expected an ImageSource, a tensor, an array, a dataset, a DataLoader or an"
        f" iterable of batches, got {type(data).__name__}"
    )


class DatasetSource(ImageSource):
    """A map-style dataset, read item by item."""

    def __init__(self, dataset: Any, *, image_size: int | None, channels: int | None) -> None:
        name = type(dataset).__name__
        count = len(dataset)
        if count == 0:
            raise DataError(f"{name}: holds no images; expected at least one")
        looked_at = range(0, count, max(1, count // _LOOKED_AT))
        pictures = [_laid_out(name, _item(dataset[k])[0], unbatched=True) for k in looked_at]
        self._range = _Range(name)
        self._range.look(pictures)
        labels = _labels(name, dataset)
        names = _class_names(dataset)
        if labels is None:
            names = None
        elif not (isinstance(names, Sequence) and len(names) > int(labels.max())):
            names = [str(number) for number in range(int(labels.max()) + 1)]
        super().__init__(
            name,
            length=count,
            channels=choose_channels(name, pictures[0].shape[1], channels),
            image_size=_size_for(pictures[0], image_size),
            labels=labels,
            class_names=None if names is None else list(map(str, names)),
        )
        self._dataset = dataset

    def read(self, indices: Sequence[int]) -> Tensor:
        """Give float32 images at ``indices``."""
        return torch.cat([self._fitted(index) for index in indices])

    def _fitted(self, index: int) -> Tensor:
        what = f"{self.name}, item {index}"
        picture = self._range.applied(
            _laid_out(what, _item(self._dataset[index])[0], unbatched=True), what
        )
        return fit_images(picture, image_size=self.image_size, channels=self.channels)


class StreamSource(ImageSource):
    """Batches from an iterable, which is restarted at its end if possible.

    The first images are kept for :meth:`read` and ``len``.
    """

    def __init__(
        self, stream: Iterable[Any], *, image_size: int | None, channels: int | None
    ) -> None:
        name = type(stream).__name__
        if isinstance(stream, DataLoader):
            name = type(stream.dataset).__name__
        self._stream, self._batches = stream, iter(stream)
        self._range = _Range(name)
        first: list[tuple[Tensor, Tensor | None]] = []
        count = 0
        for batch in self._batches:
            first.append(self._converted(name, batch))
            count += len(first[-1][0])
            if count >= _KEPT:
                break
        if count == 0:
            raise DataError(f"{name}: the stream holds no images; expected at least one")
        size = _size_for(first[0][0], image_size)
        channels = choose_channels(name, first[0][0].shape[1], channels)
        self._kept = torch.cat(
            [fit_images(images, image_size=size, channels=channels) for images, _ in first]
        )
        labels = None
        if first[0][1] is not None:
            labels = torch.cat([labels for _, labels in first if labels is not None])
        names = None if labels is None else [str(k) for k in range(int(labels.max()) + 1)]
        super().__init__(
            name,
            length=count,
            channels=channels,
            image_size=size,
            labels=labels,
            class_names=names,
        )

    def read(self, indices: Sequence[int]) -> Tensor:
        """Returns kept images at ``indices``, float32."""
        return self._kept[list(indices)]

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Endless batches of ``batch_size`` images, in the stream's order.

        Raises:
            DataError: the stream has ended and can't be restarted, or a batch is invalid.
        """
        images, labels = self._kept, self.labels
        while True:
            while len(images) < batch_size:
                more, numbers = self._next()
                images = torch.cat([images, more])
                labels = None if labels is None or numbers is None else torch.cat([labels, numbers])
            yield images[:batch_size], None if labels is None else labels[:batch_size]
            images = images[batch_size:]
            labels = None if labels is None else labels[batch_size:]

    def _next(self) -> tuple[Tensor, Tensor | None]:
        for batch in itertools.chain(self._batches, self._again()):
            images, labels = self._converted(self.name, batch)
            if (labels is None) != (self.labels is None):
                raise DataError(f"{self.name}: batches with labels, and batches without")
            if labels is not None and int(labels.max()) >= len(self.class_names or ()):
                raise DataError(
                    f"{self.name}: label {int(labels.max())}, and the first {len(self)} images had"
                    f" none above {len(self.class_names or ()) - 1}"
                )
            return fit_images(images, image_size=self.image_size, channels=self.channels), labels
        raise DataError(f"{self.name}: the stream has ended, and can't be restarted")

    def _again(self) -> Iterator[Any]:
        self._batches = iter(self._stream)
        yield from self._batches

    def _converted(self, name: str, batch: Any) -> tuple[Tensor, Tensor | None]:
        images, labels = _item(batch)
        pixels = self._range.applied(_laid_out(name, images))
        if labels is None:
            return pixels, None
        return pixels, check_labels(name, _whole_numbers(name, labels), len(pixels))


class _Range:
    """The range of floats: decided by the first values, checked for all."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._low: float | None = None

    def look(self, images: Sequence[Tensor]) -> None:
        """Decides the range."""
        floats = [image for image in images if image.dtype != torch.uint8]
        if not floats or self._low is not None:
            return
        low = min(float(image.min()) for image in floats)
        high = max(float(image.max()) for image in floats)
        self._low = 0.0 if low >= 0 and high <= 1 else -1.0
        if self._low == 0.0:
            warnings.warn(
                f"{self._name}: floats from {low:.3g} to {high:.3g} are taken as [0, 1], and scaled"
                " to [-1, 1]",
                DataWarning,
                stacklevel=4,
            )

    def applied(self, images: Tensor, what: str | None = None) -> Tensor:
        """Returns uint8 unchanged, floats as float32 in [-1, 1]."""
        if images.dtype == torch.uint8:
            return images
        self.look([images])
        assert self._low is not None
        low, high = float(images.min()), float(images.max())
        if not (self._low - 1e-3 <= low and high <= 1 + 1e-3):
            raise DataError(
                f"{what or self._name}: values from {low:.4g} to {high:.4g}; expected uint8, or"
                f" floats in {'[-1, 1] or [0, 1]' if self._low else '[0, 1], as before'}"
            )
        return images * 2 - 1 if self._low == 0.0 else images


def _laid_out(what: str, images: Any, *, unbatched: bool = False) -> Tensor:
    """Images as (N, C, H, W), uint8 or float32; ``unbatched``: a single image."""
    if isinstance(images, Image.Image):
        images = np.asarray(images.convert("L" if images.mode in ("1", "L", "I;16") else "RGB"))
    if not isinstance(images, (Tensor, np.ndarray)):
        raise DataError(
            f"{what}: expected images as tensors, arrays or PIL's, got {type(images).__name__}"
        )
    if isinstance(images, np.ndarray):
        images = np.require(images, requirements=["C", "W"])
    values = torch.as_tensor(images).detach().cpu()
    if unbatched:
        values = values[None]
    if values.ndim == 3:
        values = values[:, None]
    if values.ndim != 4 or not {values.shape[1], values.shape[3]} & {1, 3}:
        raise DataError(
            f"{what}: shape {tuple(images.shape)}; expected grey or RGB images, channels first or"
            " last"
        )
    if values.numel() == 0:
        raise DataError(f"{what}: holds no images (shape {tuple(images.shape)})")
    if values.shape[1] not in (1, 3):
        values = values.permute(0, 3, 1, 2).contiguous()
    if values.is_floating_point():
        values = values.float()
        if not bool(values.isfinite().all()):
            raise DataError(f"{what}: holds NaN or infinity; expected finite values")
        return values
    if values.is_complex() or int(values.min()) < 0 or int(values.max()) > 255:
        raise DataError(f"{what}: {values.dtype}; expected uint8, or floats")
    return values * 255 if values.dtype == torch.bool else values.to(torch.uint8)


def _is_pair_of_arrays(data: Any) -> bool:
    return (
        isinstance(data, (tuple, list))
        and len(data) == 2
        and isinstance(data[0], (Tensor, np.ndarray))
        and isinstance(data[1], (Tensor, np.ndarray))
        and data[1].ndim == 1
        and data[0].ndim in (3, 4)
        and len(data[0]) == len(data[1])
    )


def _item(item: Any) -> tuple[Any, Any]:
    """An item's or a batch's images and labels; None for missing ones."""
    if isinstance(item, Mapping):
        parts = (next((item[k] for k in keys if k in item), None) for keys in _KEYS)
        images, labels = parts
        return images, labels
    if isinstance(item, (tuple, list)) and item and not isinstance(item[0], (int, float)):
        return item[0], item[1] if len(item) > 1 else None
    return item, None


_KEYS = (_IMAGE_KEYS, _LABEL_KEYS)


def _labels(name: str, dataset: Any) -> Tensor | None:
    """All labels of a dataset: its list of them, or each item's."""
    count = len(dataset)
    for attribute in ("targets", "labels"):
        labels = getattr(dataset, attribute, None)
        if isinstance(labels, (list, Tensor, np.ndarray)) and len(labels) == count:
            return check_labels(name, _whole_numbers(name, labels), count)
    if _item(dataset[0])[1] is None:
        return None
    labels = [_item(dataset[k])[1] for k in range(count)]
    return check_labels(name, _whole_numbers(name, labels), count)


def _class_names(dataset: Any) -> Any:
    """torchvision's ``classes``, or the names of Hugging Face's ``ClassLabel``."""
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        for key in _LABEL_KEYS:
            if key in features:
                return getattr(features[key], "names", None)
    return getattr(dataset, "classes", None)


def _whole_numbers(name: str, labels: Any) -> Tensor:
    values = torch.as_tensor(np.asarray(labels) if isinstance(labels, list) else labels)
    if values.is_floating_point() or values.is_complex():
        raise DataError(f"{name}: labels of {values.dtype}; expected whole numbers")
    return values.detach().cpu().to(torch.int64)


def _size_for(images: Tensor, asked: int | None) -> int:
    """The requested side, or the smaller side rounded up to a power of two from 16 to 256."""
    side = min(images.shape[-2:])
    return asked or min(256, max(16, 1 << (side - 1).bit_length()))
