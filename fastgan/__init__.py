"""fastgan: convolutional GANs that train fast.

Fused kernels for transposed convolution + batch norm + activation, for weight clipping in the
optimiser step and for the gradient penalty, exposed as torch ops and assembled into drop-in
DCGAN, WGAN and WGAN-GP models; every one is checked against :mod:`fastgan.reference`.
"""

from __future__ import annotations

from fastgan._version import __version__
from fastgan.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FastganError,
    ImageSizeError,
    LabelError,
    OutputError,
    UnsupportedCriticError,
)
from fastgan.penalty import CriticLoss, gradient_penalty, wgan_gp_critic_loss

__all__ = [
    "CheckpointError",
    "ConfigError",
    "CriticLoss",
    "DataError",
    "FastganError",
    "ImageSizeError",
    "LabelError",
    "OutputError",
    "UnsupportedCriticError",
    "__version__",
    "gradient_penalty",
    "wgan_gp_critic_loss",
]
