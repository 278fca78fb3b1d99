"""Metrics over batches with torchmetrics' interface: update, compute, reset."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import torch
from torch import Tensor

from fastgan.errors import DataError
from fastgan.evaluation.classifier import check_images
from fastgan.evaluation.features import FeatureSpace, feature_space_named
from fastgan.evaluation.metrics import (
    NeighbourMetrics,
    as_features,
    frechet_between,
    kernel_distance,
    neighbour_metrics,
)

State = TypeVar("State")


class _Streaming(ABC, Generic[State]):
    """Base class with a state for real images and one for generated images."""

    def __init__(
        self,
        feature_space: FeatureSpace | str = "random-conv",
        *,
        reset_real_features: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if isinstance(feature_space, str):
            feature_space = feature_space_named(feature_space, device)
        self.feature_space = feature_space
        self.reset_real_features = reset_real_features
        self._states: dict[bool, State] = {}
        self._counts = {True: 0, False: 0}
        self._width: int | None = None

    def update(self, images: Tensor, real: bool) -> None:
        """Adds a batch.

        Args:
            images: float (N, C, H, W) in [-1, 1], C 1 or 3.
            real: whether they are real images or generated ones.

        Raises:
            TypeError, ImageSizeError, DataError: images of the wrong kind, not finite, or with
                another number of features than before.
        """
        check_images(images, "images")
        features = as_features(self.feature_space.extract(images), "images")
        width = features.shape[1]
        if self._width not in (None, width):
            raise DataError(
                f"images: expected {self._width} features as of those before, got {width}"
            )
        self._width = width
        real = bool(real)
        self._states[real] = self._merge(self._states.get(real), self._counts[real], features)
        self._counts[real] += len(features)

    def reset(self) -> None:
        """Forgets the generated images, and the real ones if ``reset_real_features``."""
        for real in (False, True) if self.reset_real_features else (False,):
            self._states.pop(real, None)
            self._counts[real] = 0
        if not self._states:
            self._width = None

    def _both(self) -> tuple[State, State]:
        for real, name in ((True, "real"), (False, "generated")):
            if self._counts[real] < 2:
                raise DataError(f"{name}: expected at least 2 images, got {self._counts[real]}")
        return self._states[True], self._states[False]

    @abstractmethod
    def _merge(self, state: State | None, count: int, features: Tensor) -> State:
        """The state after ``count`` images, updated with these features."""


class FrechetDistance(_Streaming[tuple[Tensor, Tensor]]):
    r""":func:`fastgan.evaluation.frechet_distance` of batches; "FID" in Inception's features.

    Keeps a mean and an F x F triangle in float64, for any number of images. Let ``n`` samples have
    mean ``m`` and centred features ``X = QR``, and ``k`` new ones mean ``a`` and centred features
    ``Y``. The scatter of all is (Chan, Golub & LeVeque 1983)::

        RᵀR + YᵀY + nk/(n + k) (a - m)ᵀ(a - m)

    so its triangle comes from a QR decomposition of ``R``, ``Y`` and the scaled difference,
    stacked.

    Args:
        feature_space: a name as for :func:`fastgan.evaluation.evaluate_samples`
            (``"inception:FILE"`` for FID), or an object with a name and an ``extract`` method.
        reset_real_features: whether :meth:`reset` forgets the real images, too.
        device: where a named extractor runs.

    Raises:
        ConfigError, DataError: there is no such feature space.

    Example:
        >>> import torch
        >>> from fastgan.evaluation import FrechetDistance
        >>> metric = FrechetDistance()
        >>> images = torch.rand(200, 1, 16, 16) * 2 - 1
        >>> for batch in images.split(50):
        ...     metric.update(batch, real=True)
        ...     metric.update(batch.flip(3), real=False)
        >>> 0 <= metric.compute() < 1
        True
    """

    def _merge(
        self, state: tuple[Tensor, Tensor] | None, count: int, features: Tensor
    ) -> tuple[Tensor, Tensor]:
        mean = features.mean(dim=0)
        rows = [features - mean]
        if state is not None:
            before, triangle = state
            k = len(features)
            rows += [triangle, (mean - before)[None] * math.sqrt(count * k / (count + k))]
            mean = before + (mean - before) * (k / (count + k))
        return mean, torch.linalg.qr(torch.cat(rows), mode="r").R

    def compute(self) -> float:
        """The squared distance, 0 or more.

        Raises:
            DataError: fewer than two real or generated images.
        """
        (real_mean, real), (mean, generated) = self._both()
        return frechet_between(
            real_mean - mean,
            real / math.sqrt(self._counts[True] - 1),
            generated / math.sqrt(self._counts[False] - 1),
        )


class _Kept(_Streaming[list[Tensor]]):
    """Keeps all features in float64: 8F bytes per image."""

    def _merge(self, state: list[Tensor] | None, count: int, features: Tensor) -> list[Tensor]:
        return [*(state or []), features]

    def _features(self) -> tuple[Tensor, Tensor]:
        real, generated = self._both()
        return torch.cat(real), torch.cat(generated)


class KernelDistance(_Kept):
    """:func:`fastgan.evaluation.kernel_distance` of batches; "KID" in Inception's features.

    Over all pairs, where torchmetrics' ``KernelInceptionDistance`` draws subsets. All features are
    kept, in float64.

    Args:
        feature_space: as of :class:`FrechetDistance`, and the other arguments likewise.
        reset_real_features: whether :meth:`reset` forgets the real images, too.
        device: where a named extractor runs.

    Example:
        >>> import torch
        >>> from fastgan.evaluation import KernelDistance
        >>> metric = KernelDistance()
        >>> metric.update(torch.rand(50, 3, 32, 32) * 2 - 1, real=True)
        >>> metric.update(torch.zeros(50, 3, 32, 32), real=False)
        >>> metric.compute() > 0
        True
    """

    def compute(self) -> float:
        """The squared discrepancy, about 0 for samples of one distribution.

        Raises:
            DataError: fewer than two real or generated images.
        """
        return kernel_distance(*self._features())


class PrecisionRecall(_Kept):
    """:func:`fastgan.evaluation.neighbour_metrics` of batches: also density and coverage.

    All features are kept, in float64.

    Args:
        feature_space: as of :class:`FrechetDistance`, and the other arguments likewise.
        k: neighbours that set the size of a neighbourhood.
        reset_real_features: whether :meth:`reset` forgets the real images, too.
        device: where a named extractor runs.

    Example:
        >>> import torch
        >>> from fastgan.evaluation import PrecisionRecall
        >>> metric = PrecisionRecall(k=3)
        >>> images = torch.rand(50, 3, 32, 32) * 2 - 1
        >>> metric.update(images, real=True)
        >>> metric.update(images, real=False)
        >>> metric.compute().precision
        1.0
    """

    def __init__(
        self,
        feature_space: FeatureSpace | str = "random-conv",
        *,
        k: int = 5,
        reset_real_features: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(feature_space, reset_real_features=reset_real_features, device=device)
        self.k = k

    def compute(self) -> NeighbourMetrics:
        """Precision, recall, density and coverage.

        Raises:
            ConfigError: ``k`` below 1, or no more than ``k`` real or generated images.
            DataError: fewer than two of either.
        """
        return neighbour_metrics(*self._features(), k=self.k)
