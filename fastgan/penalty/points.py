"""The points at which the penalty is taken: between, at or around the images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fastgan.errors import ConfigError, DtypeError

Points = Literal["interpolates", "real", "fake", "dragan"]


def _check_tensor(name: str, value: object, expected: str) -> None:
    if not isinstance(value, Tensor):
        raise DtypeError(f"{name} is {_described(value)}; expected {expected}")


def _described(value: object) -> str:
    kind = f"of type {type(value).__name__}"
    return f"{value!r}, {kind}" if isinstance(value, (int, float, str)) else kind


def check_batch(real: Tensor) -> None:
    """Raises DtypeError or ValueError unless ``real`` is a batch of images or vectors."""
    _check_tensor("real", real, "a floating tensor with a batch dimension and at least one more")
    if real.dim() < 2 or real.size(0) == 0 or not real.is_floating_point():
        raise ValueError(
            f"real has shape {tuple(real.shape)} and dtype {real.dtype}; expected a floating "
            "tensor with a non-empty batch dimension and at least one more"
        )


def check_pair(real: Tensor, fake: Tensor) -> None:
    """Raises DtypeError or ValueError unless ``fake`` is a tensor of ``real``'s shape."""
    _check_tensor("fake", fake, f"a tensor of real's shape, {tuple(real.shape)}")
    if real.shape != fake.shape:
        raise ValueError(
            f"real has shape {tuple(real.shape)} and fake {tuple(fake.shape)}; expected the same"
        )


def points_at(
    at: str,
    real: Tensor,
    fake: Tensor | None,
    eps: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """The points of the penalty: a new tensor of ``real``'s shape, without a graph.

    The arguments and errors are those of :func:`fastgan.gradient_penalty`; ``generator`` draws eps,
    and then DRAGAN's noise.
    """
    if at not in ("interpolates", "real", "fake", "dragan"):
        raise ConfigError(f"at is {at!r}; expected 'interpolates', 'real', 'fake' or 'dragan'")
    real = real.detach()
    if at == "real":
        return real.clone()
    if at == "dragan":
        eps = mixing_weights(real, eps, generator)
        # x eps + (1 - eps)(x + noise) is x + (1 - eps) noise.
        noise = torch.rand(real.shape, dtype=real.dtype, device=real.device, generator=generator)
        return real + (1 - eps) * (0.5 * real.std()) * noise
    if fake is None:
        raise ValueError(f"fake is None; at={at!r} needs a batch of shape {tuple(real.shape)}")
    check_pair(real, fake)
    fake = fake.detach()
    if at == "fake":
        return fake.clone()
    eps = mixing_weights(real, eps, generator)
    return interpolates(real, fake.to(real.dtype), eps)


def within_transform() -> bool:
    """Whether the call is within ``grad``, ``vmap`` or another transform of ``torch.func``."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def interpolates(real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    """eps * real + (1 - eps) * fake."""
    if within_transform():  # transforms refuse in-place ops
        return (real - fake) * eps + fake
    return torch.sub(real, fake).mul_(eps).add_(fake)


def images_of(name: str, given: dict[str, Tensor]) -> Tensor:
    """The given batch of this name, or the interpolates of "real" and "fake" by "eps"."""
    if name in given:
        return given[name]
    return interpolates(given["real"], given["fake"], given["eps"])


def mixing_weights(real: Tensor, eps: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """One eps per sample, (N, 1, ..., 1): the given one, or uniform in [0, 1)."""
    shape = (real.size(0),) + (1,) * (real.dim() - 1)
    if eps is None:
        return torch.rand(shape, dtype=real.dtype, device=real.device, generator=generator)
    _check_tensor("eps", eps, f"a tensor of shape {shape}, one number per sample, or None")
    if tuple(eps.shape) != shape:
        # Anything else that broadcasts would share eps between samples, or split a sample.
        raise ValueError(f"eps has shape {tuple(eps.shape)}; expected {shape}, one per sample")
    return eps.detach().to(device=real.device, dtype=real.dtype)
