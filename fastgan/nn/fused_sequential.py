"""``nn.Sequential`` that runs its convolutions, batch norms and activations fused."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastgan._util import recording
from fastgan.nn.recorder import run_recorded

__all__ = ["FusedSequential"]


class FusedSequential(nn.Sequential):
    """An ``nn.Sequential`` with the same children, parameters and results, that runs faster.

    Its forward is recorded (:func:`fastgan.fuse` says what that means): stretches of convolution,
    batch norm and activation run as one autograd node, with each batch norm and activation left to
    the next convolution's load, so that between two layers one tensor is kept for the backward pass
    and not two. Everything about the children stays as it is: their names, parameters, buffers,
    hooks, training switches, and so ``state_dict``, ``apply``, ``deepcopy`` and pickling. In eval
    mode a batch norm is folded into the convolution before it.

    Args:
        modules: as of ``nn.Sequential``, or one ordered dict of them.

    Shape:
        As of the children. Any shapes, dtypes, devices and memory formats that they take.

    Example:
        >>> import torch
        >>> block = FusedSequential(
        ...     nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        >>> block(torch.zeros(2, 8, 5, 5)).shape
        torch.Size([2, 4, 10, 10])
        >>> list(block.state_dict())[:2]
        ['0.weight', '1.weight']
    """

    #: For code that walks modules: its forward is its children's, one after the other.
    fused_sequential = True

    def forward(self, input: Any) -> Any:
        """As ``nn.Sequential``'s.

        Args:
            input: what the first child takes.

        Returns:
            What the last child returns.
        """
        if recording.is_recording():
            return self._recorded(input)
        return run_recorded(self, super().forward, (input,), {})

    def _recorded(self, input: Any) -> Any:
        """The children one by one; what passes from one of torch's to the next is theirs alone."""
        maker: nn.Module | None = None
        for module in self:
            alone = maker is not None and _keeps_nothing(maker) and _keeps_nothing(module)
            recording.offer(input if alone else None)
            input = module(input)
            maker = module
        recording.offer(None)
        return input


def _keeps_nothing(module: nn.Module) -> bool:
    """Whether no one but a layer itself sees what it takes and returns."""
    return type(module).__module__.startswith("torch.nn.modules") and not (
        module._forward_hooks or module._forward_pre_hooks
    )
