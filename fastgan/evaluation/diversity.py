"""Cheap measures of diversity, for watching a training run for mode collapse.

They use images averaged to 8x8 pixels on the CPU, without training: a few milliseconds for 256
samples. The full evaluation is in :mod:`fastgan.evaluation.report`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.errors import ConfigError, DataError, ImageSizeError
from fastgan.evaluation.classifier import check_images, check_labels

SIDE = 8


@dataclass(frozen=True)
class DiversityReport:
    """The result of :meth:`SampleDiversity.measure`."""

    ratio: float
    """Mean distance between two samples over that between two real images.

    About 1 for a healthy generator; 0 when all samples are the same."""

    nearest_ratio: float
    """Mean distance from a sample to the nearest other one, over the same for real images.

    Detects what ``ratio`` can't: a generator that repeats ten good pictures has a ratio near 1 but
    a nearest ratio near 0. NaN if the real images are mostly copies of each other."""

    class_histogram: list[float] | None
    """Share of samples by class of the nearest labelled real image; sums to 1.

    None for unlabelled data."""


class SampleDiversity:
    """Compares the spread of samples with the spread of the data.

    With ``d`` the Euclidean distance between images averaged to 8x8 pixels, and equal numbers ``n``
    of samples and of real images, drawn once::

        ratio         = mean of d(s, s') over pairs          / the same of real images
        nearest_ratio = mean over s of min over s' of d(s, s') / the same of real images

    The class histogram is that of the nearest real neighbour (one-nearest-neighbour
    classification, Cover & Hart 1967). On handwritten digits it is right more than 97% of the time;
    on photographs it is little better than a guess from colours, but still shows changes.

    Args:
        real_images: float ``(N, C, H, W)``, ``C`` 1 or 3, ``N >= 2``. Only the subsets at 8x8 are
            kept.
        labels: int64 ``(N,)``, or None for unlabelled data.
        num_classes: how many classes; None means the highest label plus one.
        subset: the most samples and real images to compare, at least 2.
        neighbours: the most labelled real images to search for the nearest.
        seed: selects the real images in the subsets; torch's global random state isn't changed.

    Raises:
        TypeError, ImageSizeError, DataError: images or labels of the wrong kind, or not finite, or
            all images are the same.
        ConfigError: ``subset`` or ``neighbours`` out of range.

    Example:
        >>> import torch
        >>> from fastgan.evaluation import SampleDiversity
        >>> generator = torch.Generator().manual_seed(0)
        >>> data = torch.rand(100, 1, 16, 16, generator=generator)
        >>> diversity = SampleDiversity(data)
        >>> diversity.measure(data).ratio
        1.0
        >>> diversity.measure(data[:1].expand(100, -1, -1, -1)).ratio  # all the same
        0.0
    """

    def __init__(
        self,
        real_images: Tensor,
        labels: Tensor | None = None,
        *,
        num_classes: int | None = None,
        subset: int = 256,
        neighbours: int = 2048,
        seed: int = 0,
    ) -> None:
        if subset < 2:
            raise ConfigError(f"subset: expected at least 2, got {subset}")
        if neighbours < 1:
            raise ConfigError(f"neighbours: expected at least 1, got {neighbours}")
        check_images(real_images, "real_images")
        if len(real_images) < 2:
            raise DataError("real_images: a spread needs at least 2 images, got 1")
        order = torch.randperm(len(real_images), generator=torch.Generator().manual_seed(seed))
        self.subset = min(subset, len(order))
        self.channels = int(real_images.shape[1])
        self._real = self._shrink(real_images, order[: self.subset])
        self._spreads: dict[int, tuple[float, float]] = {}
        self._real_spread(self.subset)
        self._neighbours: Tensor | None = None
        if labels is not None:
            self._num_classes = check_labels(labels, len(real_images), num_classes)
            searched = order[:neighbours]
            self._neighbours = self._shrink(real_images, searched)
            self._labels = labels.cpu()[searched]

    @staticmethod
    def _shrink(images: Tensor, chosen: Tensor) -> Tensor:
        images = images.detach()[chosen.to(images.device)].to(torch.float32)
        return F.interpolate(images, size=SIDE, mode="area").flatten(1).cpu()

    @staticmethod
    def _spread(vectors: Tensor) -> tuple[float, float]:
        """Mean pairwise and mean nearest distance; exactly zero for equal vectors."""
        vectors = vectors.to(torch.float64)
        distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
        pairwise = float(distances.sum()) / (len(vectors) * (len(vectors) - 1))
        nearest = float(distances.fill_diagonal_(torch.inf).min(dim=1).values.mean())
        return pairwise, nearest

    def _real_spread(self, count: int) -> tuple[float, float]:
        # The nearest of many is nearer than the nearest of few, so counts must be equal.
        if count not in self._spreads:
            spread = self._spread(self._real[:count])
            if spread[0] == 0:
                raise DataError("real_images: all the same, so there is no spread to compare with")
            self._spreads[count] = spread
        return self._spreads[count]

    def measure(self, samples: Tensor) -> DiversityReport:
        """Compares samples with the data.

        Args:
            samples: float ``(M, C, H, W)``, ``M >= 2``, with the data's channels, any size and
                device. The ratios use the first ``subset`` of them, the histogram uses all.

        Raises:
            TypeError, ImageSizeError, DataError: samples of the wrong kind, fewer than two, or not
                finite.
        """
        check_images(samples, "samples")
        if samples.shape[1] != self.channels:
            raise ImageSizeError(
                f"samples: expected {self.channels} channels like the data, got {samples.shape[1]}"
            )
        if len(samples) < 2:
            raise DataError("samples: a spread needs at least 2 samples, got 1")
        vectors = self._shrink(samples, torch.arange(len(samples)))
        count = min(self.subset, len(vectors))
        pairwise, nearest = self._spread(vectors[:count])
        real_pairwise, real_nearest = self._real_spread(count)
        histogram = None
        if self._neighbours is not None:
            classes = self._labels[torch.cdist(vectors, self._neighbours).argmin(dim=1)]
            counts = torch.bincount(classes, minlength=self._num_classes)
            histogram = (counts.double() / len(vectors)).tolist()
        return DiversityReport(
            ratio=pairwise / real_pairwise,
            # Data of copies doesn't define a healthy nearest distance.
            nearest_ratio=nearest / real_nearest if real_nearest > 0 else float("nan"),
            class_histogram=histogram,
        )
