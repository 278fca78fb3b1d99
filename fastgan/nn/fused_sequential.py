"""``nn.Sequential`` that runs its convolutions, batch norms and activations fused."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastgan._util import recording
from fastgan.nn.recorder import run_recorded

__all__ = ["FusedSequential"]


class FusedSequential(nn.Sequential):
    """A faster ``nn.Sequential`` with the same children, parameters and results.

    Its forward is recorded (see :func:`fastgan.fuse`): sequences of convolution, batch norm and
    activation run as one autograd node. The next convolution applies each batch norm and activation
    on load, so one tensor is kept between two layers, not two. The children's names, parameters,
    buffers, hooks and training modes are unchanged, and so are ``state_dict``, ``apply``,
    ``deepcopy`` and pickling. In eval mode a batch norm is folded into the convolution before it.

    It is built as ``nn.Sequential`` is, from modules or one ordered dict of them.

    Shape:
        The children's. Any shapes, dtypes, devices and memory formats that they accept.

    Example:
        >>> import torch
        >>> block = FusedSequential(
        ...     nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        >>> block(torch.zeros(2, 8, 5, 5)).shape
        torch.Size([2, 4, 10, 10])
        >>> list(block.state_dict())[:2]
        ['0.weight', '1.weight']
    """

    #: For code that traverses modules: its forward is its children's in sequence.
    fused_sequential = True

    def forward(self, input: Any) -> Any:
        """As ``nn.Sequential``'s.

        Args:
            input: the first child's input.

        Returns:
            The last child's output.
        """
        if recording.of_thread.recording:
            return self._recorded(input)
        return run_recorded(self, super().forward, (input,), {})

    def _recorded(self, input: Any) -> Any:
        """Runs the children; outputs between torch's own modules are offered for reuse."""
        maker: nn.Module | None = None
        for module in self:
            alone = maker is not None and _keeps_nothing(maker) and _keeps_nothing(module)
            recording.offer(input if alone else None)
            input = module(input)
            maker = module
        recording.offer(None)
        return input


def _keeps_nothing(module: nn.Module) -> bool:
    """Whether only the layer itself uses its input and output."""
    return type(module).__module__.startswith("torch.nn.modules") and not (
        module._forward_hooks or module._forward_pre_hooks
    )
