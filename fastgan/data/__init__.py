"""Training images: reading, checking, shuffling and batching.

:func:`load_data` opens a set, :func:`open_stream` turns it into endless batches on a device.
One module per kind of data: :mod:`~fastgan.data.digits`, :mod:`~fastgan.data.folder`,
:mod:`~fastgan.data.idx`, :mod:`~fastgan.data.cifar10`, :mod:`~fastgan.data.npz`.
"""

from __future__ import annotations

from fastgan.data.given import as_source
from fastgan.data.loading import load_data
from fastgan.data.pairs import PairSource, load_pairs
from fastgan.data.sampling import InfiniteSampler, split_indices
from fastgan.data.source import ImageSource, MemorySource, source_from_array
from fastgan.data.streaming import ImageStream, open_stream

__all__ = [
    "ImageSource",
    "ImageStream",
    "InfiniteSampler",
    "MemorySource",
    "PairSource",
    "as_source",
    "load_data",
    "load_pairs",
    "open_stream",
    "source_from_array",
    "split_indices",
]
