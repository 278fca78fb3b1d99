"""Networks that are ready to train: DCGAN, WGAN critics and MLPs, conditional or not.

Each keeps its layers, plain ``torch.nn`` modules in the paper's order, in a
:class:`fastgan.nn.FusedSequential` called ``main``, which runs them fused and is in all else an
``nn.Sequential``: ``state_dict`` keys read ``main.0.weight``, ... and ``apply``, hooks,
``deepcopy`` and ``pickle`` work as for any module. The convolutional ones are built with the
DCGAN's initialisation, and keep their weights in channels-last memory; their images are
channels-last too, as any convolution's with such weights.
:mod:`fastgan.models.compat` has the classes of two well-known repositories under their own names,
for changing one import line.

Example:
    >>> import torch
    >>> from fastgan.models import DCGANGenerator
    >>> generator = DCGANGenerator(nz=8, ngf=4, nc=3, image_size=32)
    >>> generator(torch.randn(2, 8)).shape
    torch.Size([2, 3, 32, 32])
"""

from __future__ import annotations

from fastgan.models.dcgan import DCGANDiscriminator, DCGANGenerator
from fastgan.models.initialisation import weights_init
from fastgan.models.mlp import MLPDiscriminator, MLPGenerator
from fastgan.models.wgan import WGANCritic

__all__ = [
    "DCGANDiscriminator",
    "DCGANGenerator",
    "MLPDiscriminator",
    "MLPGenerator",
    "WGANCritic",
    "weights_init",
]
