"""Metrics over batches: equal to the functions on all images, and to closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgan.errors import ConfigError, DataError, ImageSizeError
from fastgan.evaluation import (
    FrechetDistance,
    KernelDistance,
    PrecisionRecall,
    RandomConvolutionFeatures,
    frechet_distance,
    kernel_distance,
    neighbour_metrics,
)


class Pixels:
    """Images are their own features."""

    name = "pixels"

    def extract(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def noise(n: int, seed: int, size: int = 3, spread: float = 0.4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, size, size, generator=generator).mul(spread)


def filled(metric, real: Tensor, generated: Tensor, sizes: int):
    for batch in real.split(sizes):
        metric.update(batch, real=True)
    for batch in generated.split(sizes):
        metric.update(batch, real=False)
    return metric


@pytest.mark.parametrize("sizes", [1, 7, 64])
def test_batches_of_any_size_give_what_all_images_at_once_give(sizes: int) -> None:
    real, generated = noise(50, 1), noise(41, 2, spread=0.7) + 0.2
    features = real.flatten(1), generated.flatten(1)
    frechet = filled(FrechetDistance(Pixels()), real, generated, sizes)
    assert frechet.compute() == pytest.approx(frechet_distance(*features), rel=1e-12)
    kernel = filled(KernelDistance(Pixels()), real, generated, sizes)
    assert kernel.compute() == kernel_distance(*features)
    neighbours = filled(PrecisionRecall(Pixels(), k=3), real, generated, sizes)
    assert neighbours.compute() == neighbour_metrics(*features, k=3)


def test_gaussians_are_as_far_apart_as_their_closed_form_says() -> None:
    real = noise(60, 3)
    metric = filled(FrechetDistance(Pixels()), real, 3 * real + 0.5, 8)
    # Covariances C and 9C have commuting roots: the means' distance, and tr(C) (3 - 1)^2.
    pixels = real.flatten(1).double()
    wanted = (2 * pixels.mean(dim=0) + 0.5).square().sum() + 4 * pixels.var(dim=0).sum()
    assert metric.compute() == pytest.approx(float(wanted), rel=1e-6)  # 3x + 0.5 is in float32


def test_far_from_zero_nothing_cancels() -> None:
    """A sum of squares minus the mean's square would lose twelve digits here."""

    class Far(Pixels):
        def extract(self, images: Tensor) -> Tensor:
            return super().extract(images).double() + 1e6

    real, generated = noise(40, 4), noise(40, 5, spread=0.6)
    near = filled(FrechetDistance(Pixels()), real, generated, 9).compute()
    far = filled(FrechetDistance(Far()), real, generated, 9).compute()
    assert far == pytest.approx(near, rel=1e-6)


def test_fewer_images_than_features_are_fine() -> None:
    real, generated = noise(6, 6, size=4), noise(5, 7, size=4)
    metric = filled(FrechetDistance(Pixels()), real, generated, 2)
    wanted = frechet_distance(real.flatten(1), generated.flatten(1))
    assert metric.compute() == pytest.approx(wanted, rel=1e-12)


def test_reset_forgets_the_real_images_only_where_it_should() -> None:
    real, generated = noise(30, 8), noise(30, 9)
    kept = filled(KernelDistance(Pixels(), reset_real_features=False), real, generated, 10)
    kept.reset()
    kept.update(generated[:20], real=False)
    wanted = kernel_distance(real.flatten(1), generated[:20].flatten(1))
    assert kept.compute() == wanted
    gone = filled(FrechetDistance(Pixels()), real, generated, 10)
    gone.reset()
    gone.update(generated, real=False)
    with pytest.raises(DataError, match="real: expected at least 2 images, got 0"):
        gone.compute()


def test_spaces_go_by_name_and_images_are_checked() -> None:
    metric = FrechetDistance("random-conv")
    images, others = torch.rand(2, 140, 1, 16, 16).mul(2).sub(1)
    filled(metric, images, others, 50)
    extract = RandomConvolutionFeatures().extract
    wanted = frechet_distance(extract(images), extract(others))
    assert metric.compute() == pytest.approx(wanted, rel=1e-9)
    for broken, error in (
        (torch.zeros(2, 16, 16), ImageSizeError),
        (torch.full((2, 1, 16, 16), torch.nan), DataError),
        (torch.zeros(2, 1, 16, 16, dtype=torch.uint8), TypeError),
    ):
        with pytest.raises(error):
            metric.update(broken, real=True)
    odd = KernelDistance(Pixels())
    odd.update(torch.zeros(2, 1, 4, 4), real=True)
    with pytest.raises(DataError, match="images: expected 16 features as of those before, got 25"):
        odd.update(torch.zeros(2, 1, 5, 5), real=False)
    odd.reset()
    odd.update(torch.zeros(2, 1, 5, 5), real=False)
    for name in ("classifier", "inception-v3"):
        with pytest.raises(ConfigError, match="feature_space"):
            KernelDistance(name)
