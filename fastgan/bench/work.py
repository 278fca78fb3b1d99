"""The least work of a call: operations and bytes, counted from its shapes.

A convolution of N images from C_in to C_out channels with a k_h x k_w kernel does

    2 * N * H * W * C_in * C_out * k_h * k_w                                       operations

with H x W the size of its output, or of its *input* if it is transposed: one multiply-add per
weight and position. Its two gradients do as many each. This is the formula's count: convolutions
with fewer products do less.

Bytes are the memory traffic with perfect fusion: a convolution reads its input and weight and
writes its output; batch norm, activation and numbers per channel are free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Step:
    """One kernel's worth of work.

    Attributes:
        flops: operations for a matrix unit; 0 if only memory counts.
        bytes: read and written.
    """

    flops: float
    bytes: float


@dataclass(frozen=True)
class Work:
    """A sequence of steps, each bound by arithmetic or by memory.

    Attributes:
        steps: in the order they run.
    """

    steps: tuple[Step, ...]

    @property
    def flops(self) -> float:
        """The sum over all steps."""
        return sum(step.flops for step in self.steps)

    @property
    def bytes(self) -> float:
        """The sum over all steps."""
        return sum(step.bytes for step in self.steps)

    def __add__(self, other: Work) -> Work:
        return Work(self.steps + other.steps)

    def times(self, count: int) -> Work:
        """The same work, repeated.

        Example:
            >>> Work((Step(1.0, 2.0),)).times(3).bytes
            6.0
        """
        return Work(self.steps * count)


def elementwise(elements: int, *, reads: int, writes: int, dtype: str) -> Work:
    """A pass over memory.

    Example:
        >>> elementwise(10, reads=2, writes=1, dtype="float32").bytes
        120.0
    """
    return Work((Step(0.0, float(elements * (reads + writes) * ITEM_BYTES[dtype])),))


def convolution_steps(
    batch: int,
    input_shape: tuple[int, int, int],
    output_shape: tuple[int, int, int],
    kernel_size: tuple[int, int],
    *,
    transposed: bool,
    dtype: str,
    passes: Iterable[str] = ("forward", "input_gradient", "weight_gradient"),
    groups: int = 1,
) -> Work:
    """The passes of one convolution.

    Args:
        batch: N.
        input_shape: (C_in, H_in, W_in).
        output_shape: (C_out, H_out, W_out).
        kernel_size: (k_h, k_w).
        transposed: whether it is a transposed convolution.
        dtype: of input, weight and output.
        passes: "forward", "input_gradient", "weight_gradient"; may repeat.
        groups: of channels.

    Example:
        >>> work = convolution_steps(1, (2, 4, 4), (3, 2, 2), (4, 4), transposed=False,
        ...                          dtype="float32", passes=["forward"])
        >>> work.flops, work.bytes
        (768.0, 560.0)
    """
    size = ITEM_BYTES[dtype]
    positions = input_shape[1:] if transposed else output_shape[1:]
    weights = input_shape[0] * output_shape[0] * prod(kernel_size) // groups
    flops = 2.0 * batch * prod(positions) * weights
    # Each pass reads two of input, weight and output (or gradients), and writes the third.
    moved = float(size * (batch * (prod(input_shape) + prod(output_shape)) + weights))
    return Work(tuple(Step(flops, moved) for _ in passes))


def products_work(
    network: Callable[[Tensor], object], images: Tensor, dtype: str, *, gradients: str
) -> Work:
    """A network's convolutions and matrix products, with their gradients.

    Args:
        network: on the meta device, or a function that runs one.
        images: its input, on the meta device.
        dtype: of inputs, weights and outputs.
        gradients: "of parameters" for a forward and a backward pass to the parameters, "of images"
            for a gradient penalty's additional passes: another forward, and the gradients of values
            that depend on the images.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> with torch.device("meta"):
        ...     network, images = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), torch.empty(5, 2)
        >>> products_work(network, images, "float32", gradients="of images").flops
        240.0
    """
    with _Products(dtype, learning=gradients == "of parameters") as products:
        network(images)
    return Work(tuple(products.steps))


class _Products(TorchDispatchMode):
    """Records the passes of ops that multiply two tensors."""

    def __init__(self, dtype: str, *, learning: bool) -> None:
        # It imports torch's decompositions, which takes a third of a second.
        from torch.utils.flop_counter import flop_registry

        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = flop_registry
        self.steps: list[Step] = []
        self.size = ITEM_BYTES[dtype]
        self.learning = learning

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        flops = self.flops.get(func.overloadpacket)
        if flops is not None:
            # A bias has one dimension.
            factors = [a for a in args[:3] if isinstance(a, Tensor) and a.dim() > 1]
            moved = float(self.size * sum(t.numel() for t in (*factors, result)))
            passes = 1 + sum(factor.requires_grad == self.learning for factor in factors)
            one = Step(float(flops(*args, **(kwargs or {}), out_val=result)), moved)
            self.steps += [one] * passes
        return result
