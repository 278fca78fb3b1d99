"""Conditioning on a class label: Mirza and Osindero 2014, arXiv 1411.1784.

Equation 2 of the paper is the GAN's game with every network given the label y as well:

    min_G max_D  E_x[log D(x|y)] + E_z[log(1 - D(G(z|y)))]

so the losses and the steps of :mod:`fastgan.reference.gan` serve it unchanged; what is new is
how y enters. Section 3.2: y is fed to both networks "as additional input layer". For vectors
that is the one-hot label beside the other entries; for images, one plane per class, all ones
for the label's class and zeros elsewhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def append_labels(vectors: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(z, one-hot y): shape (N, D) and labels int64 (N,) give (N, D + num_classes).

    Raises:
        RuntimeError: from ``F.one_hot``, for a label outside [0, num_classes).

    Example:
        >>> append_labels(torch.full((1, 2), 0.5), torch.tensor([1]), 3)
        tensor([[0.5000, 0.5000, 0.0000, 1.0000, 0.0000]])
    """
    one_hot = F.one_hot(labels, num_classes).to(vectors.dtype)
    return torch.cat([vectors, one_hot], dim=1)


def append_label_planes(images: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(x, planes of y): (N, C, H, W) and labels int64 (N,) give (N, C + num_classes, H, W).

    Raises:
        RuntimeError: from ``F.one_hot``, for a label outside [0, num_classes).

    Example:
        >>> x = append_label_planes(torch.zeros(1, 3, 2, 2), torch.tensor([1]), 2)
        >>> x[0, :, 0, 0]
        tensor([0., 0., 0., 0., 1.])
    """
    one_hot = F.one_hot(labels, num_classes).to(images.dtype)
    height, width = images.shape[2:]
    planes = one_hot[:, :, None, None].expand(-1, -1, height, width)
    return torch.cat([images, planes], dim=1)


def call(network: nn.Module, input: Tensor, labels: Tensor | None) -> Tensor:
    """``network(input)``, or ``network(input, labels)`` where there are labels.

    Example:
        >>> call(nn.Identity(), torch.ones(1), None)
        tensor([1.])
    """
    output: Tensor = network(input) if labels is None else network(input, labels)
    return output
