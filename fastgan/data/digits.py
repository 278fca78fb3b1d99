"""1,797 real handwritten digits, 8 x 8, included in this package.

``digits.npz`` holds the test part of "Optical Recognition of Handwritten Digits" by E. Alpaydin and
C. Kaynak, UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0: each
pixel is the number, 0 to 16, of dark pixels in 4 x 4 of the scan. Values and order are those of
scikit-learn's ``load_digits``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from fastgan.data.source import ImageArrays, ImageSource, MemorySource, source_from_array


def load_digits() -> ImageArrays:
    """Reads the digits.

    Values 0..16 become ``x / 8 - 1``; ten classes, about 180 images each.

    >>> images, labels, _ = load_digits()
    >>> images.shape, int(labels.max())
    (torch.Size([1797, 1, 8, 8]), 9)
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        images, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
    return ImageArrays(images.to(torch.float32).unsqueeze(1) / 8.0 - 1.0, labels.to(torch.int64))


def load_digit_outlines(*, image_size: int, channels: int | None = None) -> ImageSource:
    """Makes the outlines of the digits, in the order of :func:`load_digits`.

    An outline is bright where a digit's edge is: the difference of the largest and the smallest
    value among the pixel and its eight neighbours, times ``image_size / 16``, at most 2, less 1.

    >>> outlines = load_digit_outlines(image_size=32).images
    >>> outlines.amin(), outlines.amax()
    (tensor(-1.), tensor(1.))
    """
    arrays = load_digits()
    digits = source_from_array(
        "digits",
        arrays.images,
        image_size=image_size,
        channels=channels,
        labels=arrays.labels,
        in_memory=True,
    )
    padded = F.pad(digits.images, (1, 1, 1, 1), mode="replicate")
    largest, smallest = F.max_pool2d(padded, 3, 1), -F.max_pool2d(-padded, 3, 1)
    return MemorySource(
        "digit-outlines",
        ((largest - smallest) * (image_size / 16)).clamp(max=2) - 1,
        labels=digits.labels,
        class_names=digits.class_names,
    )
