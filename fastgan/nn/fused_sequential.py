"""``nn.Sequential`` that runs its convolutions, batch norms and activations fused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastgan import recording
from fastgan.nn.plan import Single, plan_of, sequential_was_replaced
from fastgan.nn.stretch import run_stretch

__all__ = ["FusedSequential"]


class FusedSequential(nn.Sequential):
    """An ``nn.Sequential`` with the same children, parameters and results, that runs faster.

    Stretches of (ConvTranspose2d | Conv2d | Linear) -> [BatchNorm] -> [ReLU | LeakyReLU | Tanh |
    Sigmoid] run as one autograd node: each batch norm and activation is left to the next layer's
    load, so that between two layers one tensor is kept for the backward pass and not two.
    Everything else about the children stays as it is: their names, parameters, buffers, hooks,
    training switches, and so ``state_dict``, ``apply``, ``deepcopy`` and pickling.

    What runs is found out at every call from the children themselves. A child with a hook, a
    layer of another kind, a subclass, a replaced method (``forward``, ``_conv_forward``, on the
    child or on its class), runs by itself and as ever; so does everything where the
    input is no plain tensor (``torch.fx``, ``torch.func``), and :func:`fastgan.explain` says so.
    In eval mode a batch norm is folded into the convolution before it.

    Args:
        *modules: as of ``nn.Sequential``, or one ordered dict of them.

    Shape:
        As of the children. Any shapes, dtypes, devices and memory formats that they take.

    Example:
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
        if (
            not isinstance(input, Tensor)
            or torch.compiler.is_compiling()
            or torch._C._get_tracing_state() is not None
            or sequential_was_replaced()
        ):
            return super().forward(input)  # type: ignore[no-untyped-call]
        if recording.is_recording():
            return self._recorded(input)
        for part in plan_of(self.all_children()):
            input = part.module(input) if isinstance(part, Single) else run_stretch(part, input)
        return input

    def _recorded(self, input: Tensor) -> Any:
        """The children one by one; what passes from one of torch's to the next is theirs alone."""
        maker: nn.Module | None = None
        for module in self:
            alone = maker is not None and _keeps_nothing(maker) and _keeps_nothing(module)
            recording.offer(input if alone else None)
            input = module(input)
            maker = module
        recording.offer(None)
        return input

    def all_children(self) -> list[tuple[str, nn.Module]]:
        """Names and children in the order they run; one that occurs twice comes twice."""
        return [(name, child) for name, child in self._modules.items() if child is not None]


def _keeps_nothing(module: nn.Module) -> bool:
    """Whether no one but a layer itself sees what it takes and returns."""
    return type(module).__module__.startswith("torch.nn.modules") and not (
        module._forward_hooks or module._forward_pre_hooks
    )
