"""Launches compiled kernels with little Python overhead.

Triton's launcher binds all arguments and looks the kernel up by them: tens of microseconds for
fifty arguments. When a convolution runs again only pointers change, and only their alignment
affects the choice of the compiled kernel.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastgan.kernels.tiles import Tile

#: Kernels' integers but channels and strides. Triton would compile a kernel anew where one is 1 or
#: a multiple of 16, which helps none of these.
UNSPECIALISED = [
    *("batch", "height", "width", "elements", "splits", "steps_per_split"),
    *("input_height", "input_width", "output_height", "output_width"),
    *("paired_height", "paired_width", "gathered_height", "gathered_width"),
    *("kernel_height", "kernel_width", "stride_height", "stride_width"),
    *("padding_height", "padding_width", "dilation_height", "dilation_width"),
    *("common_height", "common_width", "inverse_height", "inverse_width"),
    *("channel_multiplier", "channel_shift", "row_multiplier", "row_shift"),
    *("sample_multiplier", "sample_shift", "phases_height", "phases_width"),
    *("boxes_h", "boxes_w", "tiles_m", "tiles_n"),
]


@cache
def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: TRITON_INTERPRET=1.

    Read once, as Triton does.
    """
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


class Launch:
    """A kernel with all arguments except the pointers.

    Args:
        kernel: a ``@triton.jit`` function whose pointers come first.
        programs: size of the grid.
        arguments: the arguments after the pointers, in the kernel's order.
        tile: provides warps and stages.
    """

    def __init__(self, kernel: Any, programs: int, arguments: tuple[Any, ...], tile: Tile) -> None:
        self.kernel = kernel
        self.grid = (programs, 1, 1)
        self.arguments = arguments
        self.options = {"num_warps": tile.warps, "num_stages": tile.stages}
        self._compiled: dict[int, Any] = {}

    def __call__(self, *pointers: Tensor | None, descriptors: tuple[Any, ...] = ()) -> None:
        """Runs on the current stream of the first tensor's device.

        Args:
            pointers: the kernel's first arguments.
            descriptors: Triton's TensorDescriptors, the arguments after them.
        """
        if self.grid[0] == 0:
            return
        first = pointers[0]
        if (
            first is not None
            and first.is_cuda
            and first.get_device() != torch.cuda.current_device()
        ):
            with torch.cuda.device(first.get_device()):
                self._run(pointers, descriptors)
        else:
            self._run(pointers, descriptors)

    def _run(self, pointers: tuple[Tensor | None, ...], descriptors: tuple[Any, ...]) -> None:
        alignment = 0
        for pointer in pointers:
            alignment = alignment * 2 + (pointer is not None and pointer.data_ptr() % 16 == 0)
        compiled = self._compiled.get(alignment)
        if compiled is not None:
            compiled[self.grid](*pointers, *descriptors, *self.arguments)
            return
        arguments = (*pointers, *descriptors, *self.arguments)
        compiled = self.kernel[self.grid](*arguments, **self.options)
        if not interpreted():
            self._compiled[alignment] = compiled
