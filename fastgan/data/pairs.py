"""Two sets of images as one source of pairs, for image translation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fastgan._util.random_streams import seeded_generator
from fastgan.data.folder import Progress
from fastgan.data.limits import quoted
from fastgan.data.loading import load_data
from fastgan.data.pixels import bytes_to_unit_range, convert_channels
from fastgan.data.source import ImageSource
from fastgan.errors import DataError


class PairSource(ImageSource):
    """Pairs of an image of A and one of B, with A's channels before B's.

    Returns (n, 2 * channels, image_size, image_size), which ``images.chunk(2, 1)`` splits;
    ``channels`` counts one image's. Grey images become colour ones if the other set has colour.
    Labels are left out.

    Args:
        a: the images of domain A.
        b: those of domain B.
        paired: whether image n of B belongs to image n of A: by file names without endings if both
            are folders, else by order. Otherwise pair n is image n of A, modulo their number, and
            one of B by a fixed shuffle.

    Raises:
        DataError: different image sizes, or sets that don't pair up.

    Example:
        >>> from fastgan.data import load_data
        >>> digits = load_data("digits", image_size=16)
        >>> outlines = load_data("digit-outlines", image_size=16)
        >>> pairs = PairSource(digits, outlines, paired=True)
        >>> pairs.get([0, 1])[0].shape
        torch.Size([2, 2, 16, 16])
    """

    def __init__(self, a: ImageSource, b: ImageSource, *, paired: bool) -> None:
        name = f"{a.name} and {b.name}"
        if a.image_size != b.image_size:
            raise DataError(f"{name}: images of {a.image_size} and of {b.image_size} pixels")
        length = max(len(a), len(b))
        super().__init__(
            name,
            length=length,
            channels=max(a.channels, b.channels),
            image_size=a.image_size,
        )
        self.paired = paired
        self._sources = (a, b)
        self._of_a = torch.arange(length) % len(a)
        if paired:
            self._of_b = _partners(a, b)
        else:
            shuffled = torch.randperm(length, generator=seeded_generator(0, 0))
            self._of_b = shuffled % len(b)
        self.in_memory = a.in_memory and b.in_memory
        self._images: Tensor | None = None

    @property
    def images(self) -> Tensor:
        """All pairs, float32 (length, 2 * channels, image_size, image_size) in [-1, 1].

        Raises:
            DataError: a set isn't held in memory.
        """
        if self._images is None:
            if not self.in_memory:
                return super().images
            self._images = self.read(range(len(self)))
        return self._images

    def _parts(self) -> Iterable[bytes | memoryview]:
        yield from (source.digest().encode() for source in self._sources)
        yield self._of_b.numpy().data

    def read(self, indices: Sequence[int]) -> Tensor:
        """Give pairs at ``indices``."""
        chosen = torch.tensor(list(indices), dtype=torch.int64)
        both = [
            source.read(places[chosen].tolist())
            for source, places in zip(self._sources, (self._of_a, self._of_b), strict=True)
        ]
        if any(part.dtype != torch.uint8 for part in both):
            both = [
                bytes_to_unit_range(part) if part.dtype == torch.uint8 else part for part in both
            ]
        return torch.cat([convert_channels(part, self.channels) for part in both], dim=1)


def load_pairs(
    a: str,
    b: str,
    *,
    paired: bool,
    image_size: int,
    channels: int | None = None,
    progress: Progress | None = None,
) -> PairSource:
    """Opens two sets of images, each as :func:`fastgan.data.load_data` does.

    Args:
        a: the first set, such as ``folder:DIR``.
        b: the second.
        paired: see :class:`PairSource`.
        image_size: as of ``load_data``.
        channels: as of ``load_data``.
        progress: as of ``load_data``.

    Raises:
        DataError: a set that can't be read, or sets that don't pair up.

    Example:
        >>> load_pairs("digits", "digit-outlines", paired=True, image_size=16)
        PairSource('digits and digit-outlines': 1797 images, 1 x 16 x 16, unlabelled)
    """
    first, second = (
        load_data(spec, image_size=image_size, channels=channels, progress=progress)
        for spec in (a, b)
    )
    return PairSource(first, second, paired=paired)


def _partners(a: ImageSource, b: ImageSource) -> Tensor:
    """The index in ``b`` of each partner of ``a``'s images."""
    if a.file_names is None or b.file_names is None:
        if len(a) != len(b):
            raise DataError(
                f"{a.name} and {b.name}: {len(a)} and {len(b)} images; expected pairs, as many in"
                " the one as in the other"
            )
        return torch.arange(len(a))
    keys = [_keys(source) for source in (a, b)]
    for (names, partners), source, other in ((keys, a, b), (keys[::-1], b, a)):
        alone = [name for key, name in names.items() if key not in partners]
        if alone:
            raise DataError(
                f"{source.name}: {len(alone)} of {len(source)} images have no partner of their name"
                f" in {other.name}; the first is {quoted(alone[0])}"
            )
    places = {key: place for place, key in enumerate(keys[1])}
    return torch.tensor([places[key] for key in keys[0]])


def _keys(source: ImageSource) -> dict[str, str]:
    """A folder's files by their names without endings."""
    names: dict[str, str] = {}
    for name in source.file_names or ():
        stem, dot, ending = name.rpartition(".")
        key = stem if dot and "/" not in ending else name
        if key in names:
            raise DataError(
                f"{source.name}: {quoted(names[key])} and {quoted(name)} have one name; expected"
                " names that differ in more than their endings"
            )
        names[key] = name
    return names
