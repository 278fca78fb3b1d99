"""fastgan: convolutional GANs that train fast.

Fused kernels for transposed convolution + batch norm + activation, for weight clipping in the
optimiser step and for the gradient penalty, exposed as torch ops and assembled into drop-in
DCGAN, WGAN and WGAN-GP models; every one is checked against :mod:`fastgan.reference`.

Importing fastgan doesn't import torch, so that the command line starts quickly: modules that need
torch are imported on first use, and ``torch.ops.fastgan`` is defined once torch is imported, too.
"""

from __future__ import annotations

from fastgan import _interrupts  # noqa: F401  # before all that takes a while

# isort: split
from typing import TYPE_CHECKING

from fastgan import _after_torch
from fastgan._lazy import attach
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
from fastgan.explaining.fallback import FallbackWarning
from fastgan.explaining.report import Report

if TYPE_CHECKING:
    from fastgan import (
        compat,
        data,
        evaluation,
        functional,
        kernels,
        models,
        nn,
        ops,
        optim,
        penalty,
        reference,
        training,
    )
    from fastgan._native import BuildInfo, build_info
    from fastgan.explaining.explanation import explain
    from fastgan.nn.fuse import fuse
    from fastgan.optim.weight_clipping import clip_weights_
    from fastgan.penalty import (
        CriticLoss,
        DiscriminatorLoss,
        discriminator_loss,
        gradient_penalty,
        wgan_gp_critic_loss,
    )
    from fastgan.trained import load_generator
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            **{
                name: f"fastgan.{name}"
                for name in (
                    *("compat", "data", "evaluation", "functional", "kernels", "models", "nn"),
                    *("ops", "optim", "penalty", "reference", "training"),
                )
            },
            **dict.fromkeys(("BuildInfo", "build_info"), "fastgan._native"),
            "explain": "fastgan.explaining.explanation",
            "fuse": "fastgan.nn",
            **dict.fromkeys(
                (
                    *("CriticLoss", "DiscriminatorLoss", "discriminator_loss"),
                    *("gradient_penalty", "wgan_gp_critic_loss"),
                ),
                "fastgan.penalty",
            ),
            "clip_weights_": "fastgan.optim.weight_clipping",
            "load_generator": "fastgan.trained",
        },
    )

_after_torch.define_ops()

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
    "compat",
    "data",
    "discriminator_loss",
    "evaluation",
    "explain",
    "functional",
    "fuse",
    "gradient_penalty",
    "kernels",
    "load_generator",
    "models",
    "nn",
    "ops",
    "optim",
    "penalty",
    "reference",
    "training",
    "wgan_gp_critic_loss",
]
