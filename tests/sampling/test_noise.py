"""Latent vectors: their distribution, truncation, and the walk between them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgan.errors import ConfigError
from fastgan.sampling.noise import sample_noise, spherical_interpolation


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_normal_noise_has_the_moments_of_a_standard_normal() -> None:
    z = sample_noise(1000, 100, "normal", generator=seeded()).double()
    assert z.shape == (1000, 100, 1, 1)
    # Four standard errors of each estimate.
    assert abs(float(z.mean())) < 4 / math.sqrt(z.numel())
    assert abs(float(z.var()) - 1) < 4 * math.sqrt(2 / z.numel())


def test_uniform_noise_fills_minus_one_to_one_evenly() -> None:
    z = sample_noise(1000, 100, "uniform", generator=seeded()).flatten().double()
    assert -1 <= float(z.min()) < -0.999
    assert 0.999 < float(z.max()) < 1
    counts = torch.histc(z, 10, -1, 1)
    assert float((counts / z.numel() - 0.1).abs().max()) < 4 * math.sqrt(0.09 / z.numel())


@settings(max_examples=20, deadline=None)
@given(
    truncation=st.floats(0.01, 3),
    kind=st.sampled_from(["normal", "uniform"]),
    seed=st.integers(0, 100),
)
def test_truncated_noise_stays_within_and_keeps_its_shape(
    truncation: float, kind: str, seed: int
) -> None:
    z = sample_noise(64, 16, kind, truncation=truncation, generator=seeded(seed))
    assert z.shape == (64, 16, 1, 1)
    assert float(z.abs().max()) <= truncation


def test_truncation_resamples_rather_than_clips() -> None:
    # Variance of a standard normal given |z| <= T: 1 - 2 T phi(T) / (2 Phi(T) - 1).
    T = 1.0
    phi = math.exp(-T * T / 2) / math.sqrt(2 * math.pi)
    expected = 1 - 2 * T * phi / math.erf(T / math.sqrt(2))
    z = sample_noise(1000, 100, truncation=T, generator=seeded()).double()
    assert float(z.var()) == pytest.approx(expected, abs=0.005)
    assert not bool((z.abs() == T).any())


@pytest.mark.parametrize("truncation", [0.0, -1.0, 1e-9, float("nan")])
def test_impossible_truncation_is_refused_instead_of_looping(truncation: float) -> None:
    with pytest.raises(ConfigError, match="truncation"):
        sample_noise(1, 1, truncation=truncation)


def test_unknown_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="pink"):
        sample_noise(1, 1, "pink")


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), t=st.floats(0, 1))
def test_interpolation_stays_on_the_sphere_and_moves_evenly(seed: int, t: float) -> None:
    a, b = torch.randn(2, 3, 20, generator=seeded(seed), dtype=torch.float64)
    a, b = (v / v.norm(dim=1, keepdim=True) for v in (a, b))
    between = spherical_interpolation(a, b, t)
    torch.testing.assert_close(between.norm(dim=1), torch.ones(3, dtype=torch.float64))
    whole = (a * b).sum(1).clamp(-1, 1).acos()
    part = (a * between).sum(1).clamp(-1, 1).acos()
    torch.testing.assert_close(part, t * whole, atol=1e-6, rtol=1e-6)


def test_interpolation_of_equal_and_opposite_vectors_is_finite() -> None:
    a = torch.randn(4, 10, 1, 1, generator=seeded())
    torch.testing.assert_close(spherical_interpolation(a, a, 0.3), a)
    assert bool(spherical_interpolation(a, -a, 0.3).isfinite().all())
    zero = torch.zeros_like(a)
    assert bool(spherical_interpolation(zero, a, 0.3).isfinite().all())


@pytest.mark.parametrize(("t", "which"), [(0.0, 0), (1.0, 1)])
def test_interpolation_ends_at_its_ends(t: float, which: int) -> None:
    pair = torch.randn(2, 5, 7, generator=seeded())
    torch.testing.assert_close(spherical_interpolation(pair[0], pair[1], t), pair[which])


def test_interpolation_between_different_shapes_is_refused() -> None:
    with pytest.raises(ConfigError, match="end"):
        spherical_interpolation(torch.zeros(2, 3), torch.zeros(2, 4), 0.5)
