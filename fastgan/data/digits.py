"""The 1,797 real handwritten digits, 8 x 8, that come inside scikit-learn: no download."""

from __future__ import annotations

import torch

from fastgan.data.source import ImageSource, source_from_array

__all__ = ["load_digits"]


def load_digits(
    *, image_size: int, channels: int | None = None, in_memory: bool | None = None
) -> ImageSource:
    """Load the test part of NIST's optical recognition of handwritten digits set (UCI).

    Values 0..16 become ``x / 8 - 1``; ten classes, about 180 images each.

    >>> source = load_digits(image_size=16)
    >>> len(source), source.channels, source.num_classes
    (1797, 1, 10)
    """
    # Imported here: scikit-learn takes a second to import, and only this set needs it.
    from sklearn import datasets

    bunch = datasets.load_digits()
    array = torch.from_numpy(bunch.images).to(torch.float32).unsqueeze(1) / 8.0 - 1.0
    return source_from_array(
        "digits",
        array,
        image_size=image_size,
        channels=channels,
        labels=torch.from_numpy(bunch.target),
        in_memory=in_memory,
    )
