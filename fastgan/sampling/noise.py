"""The generator's input noise: drawing, truncation, interpolation."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.errors import ConfigError

NOISE_KINDS = ("normal", "uniform")

# Resampling takes 1 / P(|z| <= T) rounds on average. Below this threshold fewer than 1 in 1,250
# normal values pass, and all samples would look the same anyway.
_SMALLEST_TRUNCATION = 1e-3


def sample_noise(
    n: int,
    nz: int,
    kind: str = "normal",
    *,
    truncation: float | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draws latent vectors.

    Args:
        n: how many.
        nz: length of each.
        kind: ``"normal"`` for a standard normal, ``"uniform"`` for uniform on [-1, 1).
        truncation: the truncation trick (Brock et al. 2018, arXiv 1809.11096, section 3.1):
            values whose magnitude exceeds it are drawn again. Smaller means more typical and
            less varied samples. ``None`` doesn't truncate.
        generator: source of randomness, on ``device``; torch's default one if ``None``.
        device: the result's device.

    Returns:
        float32 tensor of shape (n, nz, 1, 1).

    Raises:
        ConfigError: for an unknown ``kind`` or a ``truncation`` below 0.001.

    Example:
        >>> z = sample_noise(4, 100, truncation=0.5, generator=torch.Generator().manual_seed(0))
        >>> tuple(z.shape), bool((z.abs() <= 0.5).all())
        ((4, 100, 1, 1), True)
    """
    if kind not in NOISE_KINDS:
        raise ConfigError(f"noise: expected one of {', '.join(NOISE_KINDS)}, got {kind!r}")
    if truncation is not None and not truncation >= _SMALLEST_TRUNCATION:
        raise ConfigError(
            f"truncation: expected a number of at least {_SMALLEST_TRUNCATION}, got {truncation}"
        )

    def draw(count: int) -> Tensor:
        if kind == "normal":
            return torch.randn(count, generator=generator, device=device)
        return torch.empty(count, device=device).uniform_(-1, 1, generator=generator)

    z = draw(n * nz)
    if truncation is not None:
        outside = (z.abs() > truncation).nonzero().squeeze(1)
        while outside.numel():
            again = draw(outside.numel())
            z[outside] = again
            outside = outside[again.abs() > truncation]
    return z.view(n, nz, 1, 1)


def spherical_interpolation(start: Tensor, end: Tensor, t: float) -> Tensor:
    """Interpolates along the great circle between latent vectors (Shoemake 1985; White 2016).

    With omega the angle between the two vectors of a pair,
    ``(sin((1 - t) omega) start + sin(t omega) end) / sin(omega)``. A straight line would pass
    through lengths that are improbable in a high-dimensional normal distribution. For (almost)
    parallel or opposite vectors the straight line is used.

    Args:
        start: shape (n, ...), the vectors at ``t = 0``.
        end: the same shape, the vectors at ``t = 1``.
        t: position between them.

    Returns:
        A tensor of the same shape and dtype.

    Example:
        >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> spherical_interpolation(a, b, 0.5)
        tensor([[0.7071, 0.7071]])
    """
    if start.shape != end.shape:
        raise ConfigError(
            f"end: expected the shape of start, {tuple(start.shape)}, got {tuple(end.shape)}"
        )
    a, b = start.flatten(1).double(), end.flatten(1).double()
    lengths = a.norm(dim=1, keepdim=True) * b.norm(dim=1, keepdim=True)
    cosine = (a * b).sum(1, keepdim=True) / lengths.clamp_min(torch.finfo(torch.float64).tiny)
    omega = cosine.clamp(-1, 1).acos()
    sine = omega.sin()
    # Below this angle sin(x) = x to float64 precision and the quotient is 0/0.
    straight = sine < 1e-7
    safe = torch.where(straight, torch.ones_like(sine), sine)
    weight_a = torch.where(straight, torch.full_like(sine, 1 - t), ((1 - t) * omega).sin() / safe)
    weight_b = torch.where(straight, torch.full_like(sine, t), (t * omega).sin() / safe)
    return (weight_a * a + weight_b * b).view_as(start).to(start.dtype)
