"""The networks' checks: of sizes when they are built, of shapes when they are called.

They only check shapes, so nothing waits for a GPU.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastgan.errors import ConfigError, ImageSizeError

__all__ = ["check_choice", "check_image_size", "check_images", "check_positive", "latent_map"]


def check_positive(**counts: int) -> None:
    """Refuses counts that aren't integers of at least 1, by name.

    Raises:
        ConfigError: naming the first such count (a ValueError).

    Example:
        >>> check_positive(nz=100, ngf=64)
    """
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}; expected an integer of at least 1")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses an argument that isn't among ``choices``.

    Raises:
        ConfigError: naming the argument and the choices (a ValueError).

    Example:
        >>> check_choice("norm", "layer", ("none", "layer"))
    """
    if value not in choices:
        expected = ", ".join(repr(choice) for choice in choices)
        raise ConfigError(f"{name} is {value!r}; expected one of {expected}")


def check_image_size(name: str, value: int, largest: int | None = None) -> None:
    """Refuses an image size that isn't a power of two from 16 to ``largest``.

    Every layer doubles or halves the size, from or to 4x4.

    Raises:
        ImageSizeError: naming the argument (a ValueError).

    Example:
        >>> check_image_size("image_size", 64, 256)
    """
    fits = isinstance(value, int) and value >= 16 and value & (value - 1) == 0
    if not fits or (largest is not None and value > largest):
        bounds = "of at least 16" if largest is None else f"from 16 to {largest}"
        raise ImageSizeError(f"{name} is {value!r}; expected a power of two {bounds}")


def check_images(images: Tensor, nc: int, image_size: int, network: nn.Module) -> None:
    """Refuses a batch that isn't (N, nc, image_size, image_size).

    Raises:
        ImageSizeError: naming the given and the expected shape (a ValueError).

    Example:
        >>> import torch
        >>> check_images(torch.zeros(2, 3, 64, 64), 3, 64, nn.Identity())
    """
    if images.dim() != 4 or images.shape[1:] != (nc, image_size, image_size):
        raise ImageSizeError(
            f"{type(network).__name__} got images of shape {tuple(images.shape)}; "
            f"expected (N, {nc}, {image_size}, {image_size})"
        )


def latent_map(z: Tensor, nz: int, network: nn.Module) -> Tensor:
    """z of shape (N, nz) or (N, nz, 1, 1) as (N, nz, 1, 1).

    Raises:
        ImageSizeError: for any other shape (a ValueError).

    Example:
        >>> import torch
        >>> latent_map(torch.zeros(2, 5), 5, nn.Identity()).shape
        torch.Size([2, 5, 1, 1])
    """
    if z.dim() == 2 and z.size(1) == nz:
        return z[:, :, None, None]
    if z.dim() == 4 and z.shape[1:] == (nz, 1, 1):
        return z
    raise ImageSizeError(
        f"{type(network).__name__} got z of shape {tuple(z.shape)}; "
        f"expected (N, {nz}) or (N, {nz}, 1, 1)"
    )
