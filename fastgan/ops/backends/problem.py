"""The problem that a backend is selected for: one pass of a convolution, with its fusion."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from fastgan.ops.memory_format import is_channels_last
from fastgan.ops.stages import Stage

Pass = Literal["forward", "input_gradient", "weight_gradient"]
PASSES: tuple[Pass, ...] = get_args(Pass)


class Fusion(NamedTuple):
    """What is fused on load and on store; backends that don't fuse use separate passes.

    Attributes:
        input: on loading the input: "norm" (normalise and activate) or "".
        grad: on loading the gradient of the output: "norm", "activation" or "".
        store: forward: "statistics", "activation" or ""; input gradient: "norm", "activation" or
            "", backwards through the layers before the convolution.
    """

    input: str = ""
    grad: str = ""
    store: str = ""


UNFUSED = Fusion()


@cache
def fusion(input: str = "", grad: str = "", store: str = "") -> Fusion:
    """The unique :class:`Fusion` of these arguments: look-ups compare it by identity.

    Example:
        >>> fusion("norm", "", "statistics") is fusion("norm", "", "statistics")
        True
    """
    return Fusion(input, grad, store)


class Problem(NamedTuple):
    """One pass of a convolution, with all that affects its speed.

    Attributes:
        which: the pass.
        stage: geometry; its norm and activation count only as ``fusion`` says.
        input_shape: (N, C_in, H, W), or (N, C_in) for a linear layer; None if unknown.
        weight_shape: torch's, for the stage's kind.
        input_channels_last: whether torch considers the input channels-last.
        weight_channels_last: the same for the weight.
        dtype: of input and weight.
        device: their device.
        fusion: what is done around the convolution.
        precision: of float32 products on a GPU, such as "tf32"; otherwise "".
        threads: torch's, on a CPU; 0 elsewhere.
    """

    which: Pass
    stage: Stage
    input_shape: tuple[int, ...] | None
    weight_shape: tuple[int, ...]
    input_channels_last: bool
    weight_channels_last: bool
    dtype: torch.dtype
    device: torch.device
    fusion: Fusion = UNFUSED
    precision: str = ""
    threads: int = 0

    @staticmethod
    def of(
        which: Pass,
        stage: Stage,
        input: Tensor | None,
        weight: Tensor,
        fusion: Fusion = UNFUSED,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Problem:
        """The problem of these tensors; their values aren't read.

        Args:
            which: the pass.
            stage: the convolution.
            input: a tensor with the input's shape, layout, dtype and device; None if only the layer
                is known.
            weight: of the weight's shape and layout.
            fusion: what is done around the convolution.
            dtype: the input's; needed without an input.
            device: the input's; needed without an input, or if the input represents one on another
            device.

        Example:
            >>> input, weight = torch.empty(2, 3, 8, 8), torch.empty(4, 3, 3, 3)
            >>> problem = Problem.of("forward", Stage("conv2d"), input, weight)
            >>> problem.input_shape, problem.input_channels_last
            ((2, 3, 8, 8), False)
        """
        if input is not None:
            dtype, device = input.dtype, device or input.device
        assert dtype is not None
        assert device is not None
        return Problem(
            which,
            Stage(
                stage.kind,
                stage.stride,
                stage.padding,
                stage.dilation,
                stage.output_padding,
                stage.groups,
            ),
            None if input is None else tuple(input.shape),
            tuple(weight.shape),
            input is not None and is_channels_last(input),
            is_channels_last(weight),
            dtype,
            device,
            fusion,
            float32_precision(dtype, device),
            torch.get_num_threads() if device.type == "cpu" else 0,
        )

    @property
    def is_linear(self) -> bool:
        """Whether the layer is linear."""
        return self.stage.kind == "linear"

    @property
    def gives_channels_last(self) -> bool:
        """Whether torch's output and input gradient are channels-last."""
        return self.input_channels_last or self.weight_channels_last

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(N, C_out, H_out, W_out), or (N, C_out)."""
        assert self.input_shape is not None
        weight = torch.Size(self.weight_shape)
        _, channels = self.stage.channels(weight)
        if self.is_linear:
            return self.input_shape[0], channels
        size = (self.input_shape[2], self.input_shape[3])
        meta = torch.empty(weight, device="meta")
        return (self.input_shape[0], channels, *self.stage.output_size(size, meta))

    @property
    def layer(self) -> str:
        """The part of :attr:`key` shared by a layer's inputs and passes."""
        stage = self.stage
        settings = [
            f"{name} {_times(value)}"
            for name, value, default in (
                ("stride", stage.stride, (1, 1)),
                ("padding", stage.padding, (0, 0)),
                ("dilation", stage.dilation, (1, 1)),
                ("output_padding", stage.output_padding, (0, 0)),
                ("groups", (stage.groups,), (1,)),
            )
            if value != default
        ]
        dtype = str(self.dtype).removeprefix("torch.")
        return " ".join([stage.kind, _times(self.weight_shape), *settings, dtype])

    @property
    def key(self) -> str:
        """The problem in words, without the device: the key in files of choices.

        Example:
            >>> problem = Problem.of(
            ...     "forward", Stage("conv2d", (2, 2)), torch.empty(2, 3, 8, 8),
            ...     torch.empty(4, 3, 3, 3))._replace(threads=4)
            >>> print(problem.key.replace(": ", ":\\n"))
            conv2d 4x3x3x3 stride 2x2 float32:
            forward of 2x3x8x8, input nchw, weight nchw, threads 4
        """
        parts = [f"{self.which} of {_times(self.input_shape or ())}"]
        for name, channels_last in (
            ("input", self.input_channels_last),
            ("weight", self.weight_channels_last),
        ):
            if not self.is_linear:
                parts.append(f"{name} {'nhwc' if channels_last else 'nchw'}")
        parts += [f"{field} {done}" for field, done in self.fusion._asdict().items() if done]
        parts += [self.precision] if self.precision else []
        parts += [f"threads {self.threads}"] if self.threads else []
        return f"{self.layer}: {', '.join(parts)}"


def float32_precision(dtype: torch.dtype, device: torch.device) -> str:
    """Torch's precision of float32 convolutions on a GPU, "tf32" or "ieee"; otherwise ""."""
    if dtype is not torch.float32 or device.type != "cuda":
        return ""
    backends: Any = torch.backends
    return _tf32_or_ieee(backends.cudnn.conv.fp32_precision)


def product_precision() -> str:
    """As :func:`float32_precision`, for matrix products."""
    backends: Any = torch.backends
    return _tf32_or_ieee(backends.cuda.matmul.fp32_precision)


def _tf32_or_ieee(setting: str) -> str:
    # "none" if never set, or set by allow_tf32.
    return "tf32" if setting == "tf32" else "ieee"


def _times(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
