"""Distances between two sets of feature vectors.

Precision and recall are the shares of one set within the other's k-nearest-neighbour balls; density
and coverage are robust variants; the Fréchet distance compares means and covariances. All take
feature matrices ``(N, F)``, compute in float64 on the features' device and are deterministic.
Distances between pairs are differences squared and summed, never expanded into ``|x|^2 + |y|^2 -
2xy``: that form cancels, and copies of a sample, as from a collapsed generator, would have a
nonzero distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan.errors import ConfigError, DataError

# Pairs at a time: 2^22 float64 distances are 32 MiB, whatever the number of samples.
CHUNK_PAIRS = 1 << 22


@dataclass(frozen=True)
class NeighbourMetrics:
    """The result of :func:`neighbour_metrics`: plain floats, higher is better."""

    precision: float
    recall: float
    density: float
    coverage: float


def as_features(features: Tensor, argument: str) -> Tensor:
    """Converts to float64; raises unless features are a finite matrix."""
    if not isinstance(features, Tensor) or features.dim() != 2 or features.numel() == 0:
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise DataError(f"{argument}: expected a feature matrix (N, F), got {got}")
    features = features.detach().to(torch.float64)
    if not bool(torch.isfinite(features).all()):
        raise DataError(f"{argument}: features hold NaN or infinity")
    return features


def _as_pair(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    real, generated = as_features(real, "real"), as_features(generated, "generated")
    if real.shape[1] != generated.shape[1]:
        raise DataError(
            f"real and generated: expected equally many features, got {real.shape[1]} "
            f"and {generated.shape[1]}"
        )
    return real, generated.to(real.device)


def _rows_at_a_time(columns: int, chunk_pairs: int) -> int:
    if chunk_pairs < 1:
        raise ConfigError(f"chunk_pairs: expected at least 1, got {chunk_pairs}")
    return max(1, chunk_pairs // columns)


def _distances(left: Tensor, right: Tensor) -> Tensor:
    """Euclidean distances (rows of left, rows of right), exact zeros for equal rows."""
    return torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")


def neighbour_radii(features: Tensor, k: int, *, chunk_pairs: int = CHUNK_PAIRS) -> Tensor:
    """Distance from each sample to its k-th nearest neighbour in the same set, excluding itself.

    Args:
        features: ``(N, F)``, ``N > k``.
        k: which neighbour, from 1.
        chunk_pairs: how many distances are held at once; never changes the result.

    Returns:
        float64 ``(N,)``. Zero where a sample has ``k`` or more copies.

    Raises:
        ConfigError: ``k`` below 1, or no more than ``k`` samples.
        DataError: not a matrix of finite numbers.

    Example:
        >>> import torch
        >>> from fastgan.evaluation.metrics import neighbour_radii
        >>> neighbour_radii(torch.tensor([[0.0], [1.0], [5.0]]), k=1).tolist()
        [1.0, 1.0, 4.0]
    """
    features = as_features(features, "features")
    count = len(features)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ConfigError(f"k: expected a whole number of at least 1, got {k!r}")
    if count <= k:
        raise ConfigError(f"k: {k} neighbours need at least {k + 1} samples, got {count}")
    rows = _rows_at_a_time(count, chunk_pairs)
    radii = []
    for start in range(0, count, rows):
        distances = _distances(features[start : start + rows], features)
        own = torch.arange(len(distances), device=features.device)
        distances[own, own + start] = math.inf
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def neighbour_metrics(
    real: Tensor, generated: Tensor, *, k: int = 5, chunk_pairs: int = CHUNK_PAIRS
) -> NeighbourMetrics:
    r"""Improved precision and recall, density and coverage.

    With ``N`` real samples ``x``, ``M`` generated samples ``y``, and ``B(a)`` the closed ball
    around ``a`` that reaches to its k-th nearest neighbour within its own set::

        precision = 1/M  sum_j  [y_j in B(x_i) for some i]      Kynkäänniemi et al. 2019, eq. 1-2
        recall    = 1/N  sum_i  [x_i in B(y_j) for some j]      (arXiv 1904.06991)
        density   = 1/(kM)  sum_j  #{i : y_j in B(x_i)}         Naeem et al. 2020, section 3
        coverage  = 1/N  sum_i  [y_j in B(x_i) for some j]      (arXiv 2002.09797)

    The balls are closed as Kynkäänniemi's eq. 1 has them, so a ball of radius zero around repeated
    samples still holds their copies. For two samples of one distribution with ``N = M``, density is
    about 1 and coverage about ``1 - 2^-k``; density may exceed 1. For a set compared with itself
    density is ``(k + 1)/k``, since every ball then also holds its own centre.

    Args:
        real: ``(N, F)``, ``N > k``.
        generated: ``(M, F)``, ``M > k``; moved to the device of ``real``.
        k: neighbours that set a ball's radius (both papers look at 3 and 5).
        chunk_pairs: how many distances are held at once; never changes the result.

    Raises:
        ConfigError: ``k`` below 1, or a set of no more than ``k`` samples.
        DataError: not matrices of finite numbers with equally many columns.

    Example:
        >>> import torch
        >>> from fastgan.evaluation import neighbour_metrics
        >>> real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> neighbour_metrics(real, real + 0.25, k=1)
        NeighbourMetrics(precision=1.0, recall=1.0, density=1.75, coverage=1.0)
    """
    real, generated = _as_pair(real, generated)
    for argument, features in (("real", real), ("generated", generated)):
        if isinstance(k, int) and len(features) <= k:
            raise ConfigError(
                f"{argument}: {k} neighbours need at least {k + 1} samples, got {len(features)}"
            )
    real_radii = neighbour_radii(real, k, chunk_pairs=chunk_pairs)
    generated_radii = neighbour_radii(generated, k, chunk_pairs=chunk_pairs)

    precise = torch.zeros(len(generated), dtype=torch.bool, device=real.device)
    recalled, covered, inside = 0, 0, 0
    rows = _rows_at_a_time(len(generated), chunk_pairs)
    for start in range(0, len(real), rows):
        distances = _distances(real[start : start + rows], generated)
        in_real_ball = distances <= real_radii[start : start + rows, None]
        precise |= in_real_ball.any(dim=0)
        covered += int(in_real_ball.any(dim=1).sum())
        inside += int(in_real_ball.sum())
        recalled += int((distances <= generated_radii).any(dim=1).sum())
    return NeighbourMetrics(
        precision=int(precise.sum()) / len(generated),
        recall=recalled / len(real),
        density=inside / (k * len(generated)),
        coverage=covered / len(real),
    )


def frechet_between(mean_difference: Tensor, left: Tensor, right: Tensor) -> float:
    """|d|^2 + tr(LᵀL) + tr(RᵀR) - 2 |L Rᵀ|_*, for covariances given as LᵀL and RᵀR."""
    cross = torch.linalg.svdvals(left @ right.T).sum()
    distance = mean_difference.square().sum() + left.square().sum() + right.square().sum()
    # Rounding may leave a few parts in 1e16 below zero where the true distance is zero.
    return max(0.0, float(distance - 2 * cross))


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    r"""Fréchet (2-Wasserstein) distance between Gaussians fitted to two sets of features.

    ::

        |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))         Heusel et al. 2017 (arXiv 1706.08500)

    from Dowson & Landau 1982, with ``m`` the means and ``C`` the unbiased covariances. The square
    root of the unsymmetric ``C1 C2``, which causes complex numbers and instability in other
    implementations, isn't computed. ``tr (C1 C2)^(1/2)`` equals ``tr (C1^(1/2) C2
    C1^(1/2))^(1/2)``, the sum of singular values of ``C1^(1/2) C2^(1/2)``, which ``F1 F2ᵀ`` shares
    for any factors ``C = FᵀF``. So the factors are the triangles of QR decompositions of the
    centred features: covariances are never formed, and rank deficiency is harmless.

    The *estimate* is biased upwards by O(1/N), and with fewer samples than features the covariances
    are singular. Compare figures only for equal numbers of samples and the same feature space.

    Args:
        real: ``(N, F)``, ``N >= 2``.
        generated: ``(M, F)``, ``M >= 2``; moved to the device of ``real``.

    Returns:
        The squared distance, as is usual for "FID": 0 or more, in the features' units squared.

    Raises:
        DataError: not matrices of finite numbers with equally many columns, or a single sample.

    Example:
        >>> import torch
        >>> from fastgan.evaluation import frechet_distance
        >>> features = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
        >>> round(frechet_distance(features, features + 2), 6)  # only the means differ, by 2
        32.0
    """
    real, generated = _as_pair(real, generated)
    means, factors = [], []
    for argument, features in (("real", real), ("generated", generated)):
        if len(features) < 2:
            raise DataError(f"{argument}: a covariance needs at least 2 samples, got 1")
        mean = features.mean(dim=0)
        triangle = torch.linalg.qr(features - mean, mode="r").R
        means.append(mean)
        factors.append(triangle / math.sqrt(len(features) - 1))
    return frechet_between(means[0] - means[1], factors[0], factors[1])


def kernel_distance(real: Tensor, generated: Tensor, *, chunk_pairs: int = CHUNK_PAIRS) -> float:
    r"""The squared maximum mean discrepancy of the cubic kernel, "KID" in Inception's features.

    With ``k(a, b) = (a . b / F + 1)^3``, the unbiased estimate of Binkowski et al. 2018
    (arXiv 1801.01401, section 4), over all pairs instead of the usual random subsets::

        1/(N(N-1)) sum_(i!=j) k(x_i, x_j) + 1/(M(M-1)) sum_(i!=j) k(y_i, y_j)
            - 2/(NM) sum_(i,j) k(x_i, y_j)

    Args:
        real: ``(N, F)``, ``N >= 2``.
        generated: ``(M, F)``, ``M >= 2``; moved to the device of ``real``.
        chunk_pairs: how many kernel values are held at once; changes the result only by rounding.

    Returns:
        Zero on average for samples of one distribution, of any number; it may be negative.

    Raises:
        DataError: not matrices of finite numbers with equally many columns, or a single sample.

    Example:
        >>> import torch
        >>> from fastgan.evaluation import kernel_distance
        >>> kernel_distance(torch.zeros(2, 1), torch.ones(2, 1))  # 1 + 8 - 2 * 1
        7.0
    """
    real, generated = _as_pair(real, generated)

    def total(left: Tensor, right: Tensor, own: bool) -> float:
        rows = _rows_at_a_time(len(right), chunk_pairs)
        sum_of_rows = 0.0
        for start in range(0, len(left), rows):
            part = left[start : start + rows]
            kernel = (part @ right.T / left.shape[1] + 1) ** 3
            if own:
                kernel.diagonal(start).zero_()
            sum_of_rows += float(kernel.sum())
        return sum_of_rows

    for argument, features in (("real", real), ("generated", generated)):
        if len(features) < 2:
            raise DataError(f"{argument}: a kernel distance needs at least 2 samples, got 1")
    n, m = len(real), len(generated)
    within = total(real, real, True) / (n * (n - 1)) + total(generated, generated, True) / (
        m * (m - 1)
    )
    return within - 2 * total(real, generated, False) / (n * m)


def frechet_distance_from_moments(
    mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor
) -> float:
    """:func:`frechet_distance` between Gaussians given by their means and covariances.

    For saved statistics. The factors are then ``Λ^(1/2) Vᵀ`` from the eigen-decomposition ``C = V Λ
    Vᵀ``; eigenvalues that rounding made slightly negative count as zero.

    Args:
        mean1: ``(F,)``, of one set of features.
        covariance1: ``(F, F)``, symmetric and positive semi-definite.
        mean2: ``(F,)``, of the other.
        covariance2: as ``covariance1``.

    Raises:
        DataError: shapes that don't fit, values that aren't finite, a covariance that is not
            symmetric, or one with an eigenvalue clearly below zero.

    Example:
        >>> import torch
        >>> from fastgan.evaluation import frechet_distance_from_moments
        >>> zero, unit = torch.zeros(3), torch.eye(3)
        >>> round(frechet_distance_from_moments(zero, unit, zero, 4 * unit), 6)  # 3 * (1 - 2)^2
        3.0
    """
    factors = []
    for number, (mean, covariance) in enumerate(
        ((mean1, covariance1), (mean2, covariance2)), start=1
    ):
        if mean.shape != mean1.shape or mean.dim() != 1 or covariance.shape != 2 * mean.shape:
            raise DataError(
                f"mean{number}, covariance{number}: expected (F,) and (F, F) with one F, "
                f"got {tuple(mean.shape)} and {tuple(covariance.shape)}"
            )
        covariance = as_features(covariance, f"covariance{number}")
        scale = float(covariance.abs().max())
        if not torch.allclose(covariance, covariance.T, rtol=0, atol=1e-6 * scale):
            raise DataError(f"covariance{number}: is not symmetric")
        values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
        if float(values.min()) < -1e-6 * scale:
            raise DataError(
                f"covariance{number}: has the eigenvalue {float(values.min()):.3g}, "
                "expected none below zero"
            )
        factors.append(values.clamp_min(0).sqrt()[:, None] * vectors.T)
    difference = mean1.detach().to(torch.float64) - mean2.detach().to(torch.float64)
    if not bool(torch.isfinite(difference).all()):
        raise DataError("mean1, mean2: hold NaN or infinity")
    return frechet_between(difference, factors[0], factors[1])
