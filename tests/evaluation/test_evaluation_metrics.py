"""Metrics against loops over pairs, closed forms and cases counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastgan.errors import ConfigError, DataError
from fastgan.evaluation import (
    frechet_distance,
    frechet_distance_from_moments,
    kernel_distance,
    neighbour_metrics,
    neighbour_radii,
)


def gaussian(count: int, features: int, seed: int, scale: float = 1.0, shift: float = 0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, features, generator=generator) * scale + shift


# --- neighbours, by loops over pairs ---------------------------------------------------------


def pair_distance(a: np.ndarray, b: np.ndarray) -> float:
    return math.sqrt(sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)))


def loop_radii(points: np.ndarray, k: int) -> list[float]:
    radii = []
    for i in range(len(points)):
        others = [pair_distance(points[i], points[j]) for j in range(len(points)) if j != i]
        radii.append(sorted(others)[k - 1])
    return radii


def loop_metrics(real: np.ndarray, generated: np.ndarray, k: int) -> tuple[float, ...]:
    real_radii, generated_radii = loop_radii(real, k), loop_radii(generated, k)
    precise = recalled = inside = covered = 0
    for y in generated:
        holding = sum(pair_distance(x, y) <= r for x, r in zip(real, real_radii, strict=True))
        precise += holding > 0
        inside += holding
    for x, radius in zip(real, real_radii, strict=True):
        distances = [pair_distance(x, y) for y in generated]
        covered += min(distances) <= radius
        recalled += any(d <= r for d, r in zip(distances, generated_radii, strict=True))
    return (
        precise / len(generated),
        recalled / len(real),
        inside / (k * len(generated)),
        covered / len(real),
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("real_count", "generated_count", "features", "k"),
    [(20, 20, 3, 1), (31, 17, 5, 3), (12, 40, 1, 5), (25, 26, 16, 2)],
)
def test_neighbour_metrics_match_loops_over_pairs(real_count, generated_count, features, k, seed):
    real = gaussian(real_count, features, seed)
    generated = gaussian(generated_count, features, seed + 100, scale=0.8, shift=0.3)
    metrics = neighbour_metrics(real, generated, k=k)
    want = loop_metrics(real.numpy(), generated.numpy(), k)
    assert (metrics.precision, metrics.recall, metrics.density, metrics.coverage) == pytest.approx(
        want, abs=1e-12
    )
    assert neighbour_radii(real, k).tolist() == pytest.approx(loop_radii(real.numpy(), k))


@pytest.mark.parametrize("seed", range(3))
def test_ties_and_copies_match_loops_over_pairs(seed):
    # Small whole numbers: many equal distances, many copies, radii of exactly zero.
    generator = torch.Generator().manual_seed(seed)
    real = torch.randint(0, 3, (30, 2), generator=generator).float()
    generated = torch.randint(0, 4, (25, 2), generator=generator).float()
    metrics = neighbour_metrics(real, generated, k=2)
    want = loop_metrics(real.numpy(), generated.numpy(), 2)
    assert (metrics.precision, metrics.recall, metrics.density, metrics.coverage) == pytest.approx(
        want, abs=1e-12
    )


def test_case_counted_by_hand():
    #  real        0   1       3              10
    #  radius      1   1       2              7     (nearest other, k = 1)
    #  generated     .5            6    7
    #  radius        5.5           1    1
    real = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
    generated = torch.tensor([[0.5], [6.0], [7.0]])
    assert neighbour_radii(real, 1).tolist() == [1, 1, 2, 7]
    metrics = neighbour_metrics(real, generated, k=1)
    assert metrics.precision == 1.0  # 0.5 in the balls of 0 and 1; 6 and 7 in that of 10
    assert metrics.recall == 3 / 4  # 0, 1 and 3 within 5.5 of 0.5; 10 in no ball
    assert metrics.density == 4 / 3  # 0.5 in two balls, 6 in one, 7 in one
    assert metrics.coverage == 3 / 4  # the ball of 3 reaches to 1 and 5: empty


def test_outlier_inflates_precision_but_not_coverage():
    # Naeem et al. 2020, figure 2: one real outlier has a ball that swallows far-off samples.
    real = torch.cat([gaussian(50, 2, 0), torch.tensor([[100.0, 0.0]])])
    generated = gaussian(51, 2, 1, shift=0.0) + torch.tensor([60.0, 0.0])
    metrics = neighbour_metrics(real, generated, k=3)
    assert metrics.precision == 1.0
    assert metrics.coverage == 1 / 51
    assert metrics.density == pytest.approx(1 / 3)


def test_ball_borders_count_as_inside():
    real = torch.tensor([[0.0], [1.0]])
    metrics = neighbour_metrics(real, torch.tensor([[2.0], [-1.0]]), k=1)
    assert (metrics.precision, metrics.coverage, metrics.density) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_set_against_itself_is_perfect(k):
    features = gaussian(60, 8, seed=k)
    metrics = neighbour_metrics(features, features.clone(), k=k)
    assert (metrics.precision, metrics.recall, metrics.coverage) == (1.0, 1.0, 1.0)
    assert metrics.density == pytest.approx((k + 1) / k)


def test_far_apart_sets_share_nothing():
    metrics = neighbour_metrics(gaussian(40, 4, 0), gaussian(50, 4, 1, shift=1000.0), k=5)
    assert (metrics.precision, metrics.recall, metrics.density, metrics.coverage) == (0, 0, 0, 0)


def test_two_samples_of_one_distribution_come_near_the_expected_values():
    metrics = neighbour_metrics(gaussian(2000, 4, 0), gaussian(2000, 4, 1), k=5)
    assert metrics.density == pytest.approx(1.0, abs=0.05)
    assert metrics.coverage == pytest.approx(1 - 2**-5, abs=0.02)


def test_collapsed_samples_cover_almost_nothing():
    real = gaussian(100, 4, 0)
    metrics = neighbour_metrics(real, real[:1].expand(100, -1), k=3)
    assert metrics.precision == 1.0  # each copy looks real
    assert metrics.recall == 1 / 100  # balls of radius zero hold that one image
    assert metrics.coverage < 0.1


def test_copies_far_from_the_origin_are_at_distance_zero():
    # The expanded form of the distance would give rounding noise instead of zero here.
    features = (gaussian(5, 64, 0) + 1e4).repeat(4, 1)
    assert neighbour_radii(features, 3).tolist() == [0.0] * 20


@pytest.mark.parametrize("chunk_pairs", [1, 7, 100, 1000])
def test_chunk_size_never_changes_the_result(chunk_pairs):
    real, generated = gaussian(45, 6, 0), gaussian(38, 6, 1, shift=0.5)
    assert neighbour_metrics(real, generated, k=3, chunk_pairs=chunk_pairs) == neighbour_metrics(
        real, generated, k=3
    )
    assert torch.equal(neighbour_radii(real, 3, chunk_pairs=chunk_pairs), neighbour_radii(real, 3))


def test_order_of_samples_never_changes_the_result():
    real, generated = gaussian(45, 6, 0), gaussian(38, 6, 1, shift=0.5)
    generator = torch.Generator().manual_seed(2)
    shuffled = (
        real[torch.randperm(45, generator=generator)],
        generated[torch.randperm(38, generator=generator)],
    )
    assert neighbour_metrics(*shuffled, k=3) == neighbour_metrics(real, generated, k=3)
    assert frechet_distance(*shuffled) == pytest.approx(frechet_distance(real, generated))


@pytest.mark.parametrize(("real_count", "generated_count"), [(5, 20), (20, 5)])
def test_as_many_neighbours_as_samples_are_refused(real_count, generated_count):
    smaller = "real" if real_count < generated_count else "generated"
    with pytest.raises(ConfigError, match=f"{smaller}: 5 neighbours need at least 6 .* got 5"):
        neighbour_metrics(gaussian(real_count, 3, 0), gaussian(generated_count, 3, 1), k=5)
    with pytest.raises(ConfigError, match="k: 5 neighbours need at least 6"):
        neighbour_radii(gaussian(5, 3, 0), 5)


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_impossible_neighbour_numbers_are_refused(k):
    with pytest.raises(ConfigError, match="k: expected a whole number"):
        neighbour_radii(gaussian(5, 3, 0), k)


@pytest.mark.parametrize("measure", [neighbour_metrics, frechet_distance])
@pytest.mark.parametrize(
    ("real", "generated", "message"),
    [
        (torch.zeros(9), torch.zeros(9, 1), "real: expected a feature matrix"),
        (torch.zeros(9, 2), torch.zeros(0, 2), "generated: expected a feature matrix"),
        (torch.zeros(9, 2), torch.zeros(9, 3), "equally many features, got 2 and 3"),
        (torch.zeros(9, 2), torch.full((9, 2), torch.nan), "generated: features hold NaN"),
    ],
)
def test_unfit_features_are_refused(measure, real, generated, message):
    with pytest.raises(DataError, match=message):
        measure(real, generated)


# --- Fréchet distance ------------------------------------------------------------------------


def reference_frechet(mean1, covariance1, mean2, covariance2) -> float:
    """The textbook formula, by the eigenvalues of the unsymmetric product."""
    eigenvalues = np.linalg.eigvals(covariance1 @ covariance2)
    root_trace = np.sqrt(np.clip(eigenvalues.real, 0, None)).sum()
    return float(
        ((mean1 - mean2) ** 2).sum()
        + np.trace(covariance1)
        + np.trace(covariance2)
        - 2 * root_trace
    )


def moments(features: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    values = features.double().numpy()
    return values.mean(axis=0), np.atleast_2d(np.cov(values, rowvar=False))


def with_exact_moments(count: int, mean: np.ndarray, root: np.ndarray, seed: int) -> torch.Tensor:
    """Samples whose mean is exactly ``mean`` and whose covariance exactly ``root rootᵀ``."""
    values = np.random.default_rng(seed).standard_normal((count, len(mean)))
    values -= values.mean(axis=0)
    left, _, right = np.linalg.svd(values, full_matrices=False)
    white = left @ right * math.sqrt(count - 1)
    return torch.from_numpy(white @ root.T + mean)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("real_count", "generated_count", "features"), [(50, 60, 5), (200, 30, 16), (40, 41, 1)]
)
def test_frechet_distance_matches_the_textbook_formula(real_count, generated_count, features, seed):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator)
    real = gaussian(real_count, features, seed) @ mixing
    generated = gaussian(generated_count, features, seed + 9, scale=1.5, shift=0.4)
    want = reference_frechet(*moments(real), *moments(generated))
    assert frechet_distance(real, generated) == pytest.approx(want, rel=1e-6)
    from_moments = frechet_distance_from_moments(
        *map(torch.from_numpy, (*moments(real), *moments(generated)))
    )
    assert from_moments == pytest.approx(want, rel=1e-6)


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form():
    # Same axes: |m1 - m2|^2 + sum (s1 - s2)^2.
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    deviations1, deviations2 = rng.uniform(0.1, 3, 6), rng.uniform(0.1, 3, 6)
    mean1, mean2 = rng.standard_normal(6), rng.standard_normal(6)
    real = with_exact_moments(40, mean1, axes * deviations1, seed=1)
    generated = with_exact_moments(70, mean2, axes * deviations2, seed=2)
    want = ((mean1 - mean2) ** 2).sum() + ((deviations1 - deviations2) ** 2).sum()
    assert frechet_distance(real, generated) == pytest.approx(want, rel=1e-10)


def test_frechet_distance_of_large_samples_comes_near_that_of_their_distributions():
    real = gaussian(20000, 3, 0, scale=1.0)
    generated = gaussian(20000, 3, 1, scale=2.0, shift=1.0)
    assert frechet_distance(real, generated) == pytest.approx(3 * 1.0 + 3 * 1.0, rel=0.05)


@pytest.mark.parametrize(("count", "features"), [(100, 8), (10, 64), (2, 5)])
def test_frechet_distance_of_a_set_to_itself_is_zero(count, features):
    values = gaussian(count, features, 0, scale=100.0)
    assert 0 <= frechet_distance(values, values.clone()) <= 1e-9


def test_frechet_distance_with_fewer_samples_than_features_is_exact():
    # Spans that don't overlap: the cross term vanishes and only the traces are left.
    real, generated = torch.zeros(6, 40), torch.zeros(5, 40)
    real[:, :20] = gaussian(6, 20, 0)
    generated[:, 20:] = gaussian(5, 20, 1)
    (mean1, covariance1), (mean2, covariance2) = moments(real), moments(generated)
    want = ((mean1 - mean2) ** 2).sum() + np.trace(covariance1) + np.trace(covariance2)
    assert frechet_distance(real, generated) == pytest.approx(want, rel=1e-10)


def test_frechet_distance_of_constant_features_is_that_of_the_means():
    assert frechet_distance(torch.zeros(5, 3), torch.ones(4, 3)) == pytest.approx(3.0)


def test_frechet_distance_is_symmetric():
    real, generated = gaussian(30, 12, 0), gaussian(9, 12, 1, shift=2.0)
    assert frechet_distance(real, generated) == pytest.approx(frechet_distance(generated, real))


def test_frechet_distance_survives_a_large_common_offset():
    real, generated = gaussian(50, 6, 0).double(), gaussian(50, 6, 1).double()
    want = frechet_distance(real, generated)
    assert frechet_distance(real + 1e6, generated + 1e6) == pytest.approx(want, rel=1e-6)


def test_a_single_sample_has_no_covariance():
    with pytest.raises(DataError, match="generated: a covariance needs at least 2 samples"):
        frechet_distance(torch.zeros(5, 3), torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "covariance2: is not symmetric"),
        (torch.tensor([[1.0, 0.0], [0.0, -1.0]]), "covariance2: has the eigenvalue -1"),
        (torch.eye(3), r"covariance2: expected \(F,\) and \(F, F\)"),
        (torch.full((2, 2), torch.nan), "covariance2: features hold NaN"),
    ],
)
def test_unfit_moments_are_refused(covariance, message):
    with pytest.raises(DataError, match=message):
        frechet_distance_from_moments(torch.zeros(2), torch.eye(2), torch.zeros(2), covariance)


def loop_kernel_distance(real: torch.Tensor, generated: torch.Tensor) -> float:
    x, y = real.double().numpy(), generated.double().numpy()

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def within(z):
        pairs = [kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
        return sum(pairs) / len(pairs)

    return within(x) + within(y) - 2 * np.mean([[kernel(a, b) for b in y] for a in x])


@pytest.mark.parametrize(("real_count", "generated_count", "features"), [(2, 3, 1), (9, 5, 4)])
@pytest.mark.parametrize("chunk_pairs", [1, 7, 10**6])
def test_kernel_distance_matches_loops_over_pairs(
    real_count, generated_count, features, chunk_pairs
):
    real = gaussian(real_count, features, seed=1)
    generated = gaussian(generated_count, features, seed=2, shift=1.0)
    found = kernel_distance(real, generated, chunk_pairs=chunk_pairs)
    assert found == pytest.approx(loop_kernel_distance(real, generated), rel=1e-12)


def test_kernel_distance_has_no_bias_even_of_a_few_samples():
    # Over all ways to split a finite set's ordered pairs, the mean is exactly zero.
    values = gaussian(4, 3, seed=3)
    splits = [([0, 1], [2, 3]), ([0, 2], [1, 3]), ([0, 3], [1, 2])]
    found = [kernel_distance(values[a], values[b]) for a, b in splits]
    assert min(found) < 0 < max(found)
    assert sum(found) == pytest.approx(0.0, abs=1e-12)


def test_a_single_sample_has_no_kernel_distance():
    with pytest.raises(DataError, match="generated: a kernel distance needs at least 2 samples"):
        kernel_distance(torch.zeros(2, 3), torch.zeros(1, 3))
