"""fastgan: convolutional GANs that train fast.

Fused kernels for transposed convolution + batch norm + activation, for weight clipping in the
optimiser step and for the gradient penalty, exposed as torch ops and assembled into drop-in
DCGAN, WGAN and WGAN-GP models; every one is checked against :mod:`fastgan.reference`.
"""

from __future__ import annotations

from fastgan._version import __version__
from fastgan.errors import FastganError

__all__ = ["FastganError", "__version__"]
