"""fastgan: convolutional GANs that train fast.

Fused kernels for transposed convolution + batch norm + activation, for weight clipping in the
optimiser step and for the gradient penalty, exposed as torch ops and assembled into drop-in
DCGAN, WGAN and WGAN-GP models; every one is checked against :mod:`fastgan.reference`.
"""

from __future__ import annotations

from fastgan import functional, models, nn, optim, reference
from fastgan._native import BuildInfo, build_info
from fastgan._version import __version__
from fastgan.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DataWarning,
    DtypeError,
    FastganError,
    ImageSizeError,
    LabelError,
    NativeLibraryError,
    OutputError,
    UnsupportedCriticError,
)
from fastgan.explain import explain
from fastgan.fallback import FallbackWarning
from fastgan.nn import fuse
from fastgan.penalty import (
    CriticLoss,
    DiscriminatorLoss,
    discriminator_loss,
    gradient_penalty,
    wgan_gp_critic_loss,
)
from fastgan.report import Report
from fastgan.weight_clipping import clip_weights_

__all__ = [
    "BuildInfo",
    "CheckpointError",
    "ConfigError",
    "CriticLoss",
    "DataError",
    "DataWarning",
    "DiscriminatorLoss",
    "DtypeError",
    "FallbackWarning",
    "FastganError",
    "ImageSizeError",
    "LabelError",
    "NativeLibraryError",
    "OutputError",
    "Report",
    "UnsupportedCriticError",
    "__version__",
    "build_info",
    "clip_weights_",
    "discriminator_loss",
    "explain",
    "functional",
    "fuse",
    "gradient_penalty",
    "models",
    "nn",
    "optim",
    "reference",
    "wgan_gp_critic_loss",
]
