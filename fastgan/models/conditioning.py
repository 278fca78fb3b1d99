"""Class labels in a network: Mirza and Osindero 2014, Miyato and Koyama 2018.

At the input (arXiv 1411.1784, section 3.2) a label becomes ``num_classes`` one-hot channels of a
map; a noise vector is a 1x1 map. At the output (arXiv 1802.05637) it selects the vector by which a
discriminator's features are multiplied.
"""

from __future__ import annotations

import math

import torch
import torch.fx
from torch import Tensor, nn

from fastgan.errors import LabelError

__all__ = ["LabelProjection", "one_hot_labels", "with_planes"]


def one_hot_labels(
    labels: Tensor | None, num_classes: int | None, input: Tensor, network: nn.Module
) -> Tensor | None:
    """Labels as one-hot rows.

    Args:
        labels: int64 (N,), each in [0, num_classes), if the network is conditional; else None.
        num_classes: the network's argument.
        input: the labels' batch, (N, ...), for the number of rows and the dtype.
        network: for the messages.

    Returns:
        (N, num_classes), or None if the network is unconditional.

    Raises:
        LabelError: labels are missing, unexpected, or of the wrong shape or dtype; on the CPU also
            out of range (a ValueError). On a GPU, where reading labels would synchronise, and under
            ``torch.compile``, a label out of range makes its sample NaN.

    Example:
        >>> one_hot_labels(torch.tensor([1]), 3, torch.zeros(1, 8), nn.Identity())
        tensor([[0., 1., 0.]])
    """
    name = type(network).__name__
    if num_classes is None:
        if labels is not None:
            raise LabelError(f"{name} got labels; expected none, it was built without num_classes")
        return None
    if labels is None:
        raise LabelError(f"{name} got no labels; expected int64 of shape ({input.size(0)},)")
    if labels.dtype != torch.int64 or tuple(labels.shape) != (input.size(0),):
        raise LabelError(
            f"{name} got labels of dtype {labels.dtype} and shape {tuple(labels.shape)}; "
            f"expected torch.int64 and ({input.size(0)},)"
        )
    _refuse_labels_outside(labels, num_classes, name)
    outside = (labels < 0) | (labels >= num_classes)
    classes = torch.arange(num_classes, device=labels.device)
    one_hot = (labels[:, None] == classes).to(input.dtype)
    return one_hot.masked_fill(outside[:, None], float("nan"))


def with_planes(maps: Tensor, classes: Tensor | None) -> Tensor:
    """``maps`` (N, C, H, W), followed by a plane for each class, if there are any.

    Example:
        >>> x = with_planes(torch.zeros(1, 1, 2, 2), torch.tensor([[0.0, 1.0]]))
        >>> x[0, :, 0, 0]
        tensor([0., 0., 1.])
    """
    if classes is None:
        return maps
    planes = classes[:, :, None, None].expand(-1, -1, *maps.shape[2:])
    return torch.cat([maps, planes], dim=1)


class LabelProjection(nn.Module):
    """Scores f . e_y of features f and the label's embedding e_y.

    Miyato and Koyama 2018, arXiv 1802.05637, without the term shared by all classes, as in R3GAN.
    e_y is initialised from N(0, 1 / num_classes).

    Args:
        num_classes: the number of classes.

    Shape:
        features (N, LabelProjection.FEATURES), one-hot labels (N, num_classes) -> (N,)

    Example:
        >>> LabelProjection(10)(torch.zeros(2, 64), torch.eye(10)[[3, 7]]).shape
        torch.Size([2])
    """

    #: Length of features and embeddings.
    FEATURES = 64

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(num_classes, self.FEATURES, bias=False)
        nn.init.normal_(self.embedding.weight, 0.0, 1 / math.sqrt(num_classes))

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        """The scores."""
        scores: Tensor = (features * self.embedding(classes)).sum(1)
        return scores


# The only check that reads values. torch.fx can't trace it and records the call instead, so a
# traced network checks its labels, too.
@torch.fx.wrap
def _refuse_labels_outside(labels: Tensor, num_classes: int, name: str) -> None:
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        wrong = int(labels[outside][0])
        raise LabelError(f"{name} got label {wrong}; expected labels from 0 to {num_classes - 1}")
