"""StyleGAN's operations and a small StyleGAN2 generator, in both memory formats.

Peers are plain PyTorch (:mod:`fastgan.reference.style_ops`) on the same tensors in the same layout,
eager and under torch.compile; for resampling also a strided depthwise convolution, with fewer
passes; for the generator also a convolution with N groups and N weights, as in StyleGAN2's authors'
sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan import functional
from fastgan.bench.cases import DTYPES, Case, Setting
from fastgan.bench.timing import Call
from fastgan.bench.work import ITEM_BYTES, Work, elementwise, products_work
from fastgan.ops.bias_act import bias_act
from fastgan.ops.conv2d_resample import four_sides
from fastgan.ops.filtered_lrelu import filtered_lrelu
from fastgan.ops.upfirdn2d import upfirdn2d
from fastgan.reference import style_ops

Function = Callable[..., Tensor]

#: By the cases' names.
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
_FIR = (0.125, 0.375, 0.375, 0.125)
_MODULATIONS = ("fastgan", "scaled", "grouped")


def cases(device: torch.device, quick: bool) -> list[Case]:
    """The suite "style"."""
    batch, channels, size = (32, 128, 128) if device.type == "cuda" else (8, 64, 64)
    dtypes = ["float32"]
    if device.type == "cuda":
        dtypes = ["float16"] if quick else ["float16", "float32"]
    layouts = ["channels-last"] if quick else list(LAYOUTS)
    return [
        case
        for dtype in dtypes
        for layout in layouts
        for case in (
            *_op_cases((batch, channels, size, size), dtype, layout, quick),
            _generator_case(batch, dtype, layout, not quick),
        )
    ]


#: The measured ops: output values per input value, and whether there is a bias.
_OPS = {
    "bias_act": (1.0, True),
    "upfirdn2d up 2 with 4x4 taps": (4.0, False),
    "upfirdn2d down 2 with 4x4 taps": (0.25, False),
    "filtered_lrelu, 12 taps, up 2, down 2": (1.0, True),
}


def _op_cases(shape: tuple[int, ...], dtype: str, layout: str, quick: bool) -> Iterator[Case]:
    for op in _OPS:
        for backward in [True] if op == "bias_act" else [False] if quick else [False, True]:
            yield _op_case(op, shape, dtype, layout, backward, not quick)


def _functions(
    op: str, channels: int, kind: torch.dtype, device: torch.device
) -> dict[str, Function]:
    """fastgan's op and its peers, of a map and perhaps a bias."""
    taps = torch.tensor(_FIR, device=device)
    filter = torch.outer(taps, taps)
    kernel = filter.to(kind).expand(channels, 1, 4, 4)
    if op == "bias_act":
        return {
            name: lambda x, b, run=run: run(x, b, act="lrelu")
            for name, run in (("fastgan", bias_act), ("eager", style_ops.bias_act))
        }
    if op.startswith("filtered_lrelu"):
        long = torch.hann_window(14, periodic=False, device=device)[1:-1]
        long = long / long.sum()
        sides = (11, 10, 11, 10)
        return {
            name: lambda x, b, run=run: run(x, long, long, b, 2, 2, sides, clamp=256.0)
            for name, run in (("fastgan", filtered_lrelu), ("eager", style_ops.filtered_lrelu))
        }
    plainly = (("fastgan", upfirdn2d), ("eager", style_ops.upfirdn2d))
    if "up 2" in op:
        up: dict[str, Function] = {
            name: lambda x, run=run: run(x, filter, (2, 2), (1, 1), (2, 1, 2, 1), gain=4.0)
            for name, run in plainly
        }
        return up | {
            "depthwise": lambda x: F.conv_transpose2d(
                x, 4 * kernel, stride=2, padding=1, groups=channels
            )
        }
    down: dict[str, Function] = {
        name: lambda x, run=run: run(x, filter, (1, 1), (2, 2), (1, 1, 1, 1))
        for name, run in plainly
    }
    return down | {"depthwise": lambda x: F.conv2d(x, kernel, stride=2, padding=1, groups=channels)}


def _op_case(
    op: str, shape: tuple[int, ...], dtype: str, layout: str, backward: bool, compiled: bool
) -> Case:
    kind, (scale, has_bias) = DTYPES[dtype], _OPS[op]

    def prepare(setting: Setting) -> dict[str, Call]:
        torch.manual_seed(0)
        format, device = LAYOUTS[layout], setting.device
        functions = _functions(op, shape[1], kind, device)
        maps = [
            torch.randn(shape).to(device, kind).contiguous(memory_format=format)
            for _ in range(setting.copies)
        ]
        others = [torch.randn(shape[1]).to(device, kind)] if has_bias else []
        gradient = torch.randn_like(functions["fastgan"](maps[0], *others)) if backward else None

        def call(function: Function) -> Call:
            leaves = [tensor.detach().requires_grad_(backward) for tensor in maps]
            rest = [tensor.detach().requires_grad_(backward) for tensor in others]

            def step(number: int) -> None:
                if gradient is None:
                    with torch.no_grad():
                        function(leaves[number], *rest)
                    return
                for leaf in (leaves[number], *rest):
                    leaf.grad = None
                function(leaves[number], *rest).backward(gradient)

            return step

        calls = {name: call(function) for name, function in functions.items()}
        if setting.compile_mode is not None:
            calls["torch.compile"] = call(
                torch.compile(functions["eager"], mode=setting.compile_mode)
            )
        return calls

    elements = prod(shape)
    moved = elements + int(scale * elements)
    return Case(
        suite="style",
        op=op + (", forward and backward" if backward else ""),
        shape=f"{shape[1]}x{shape[2]}x{shape[3]}, {layout}",
        dtype=dtype,
        batch=shape[0],
        count_work=partial(
            elementwise, (2 if backward else 1) * moved, reads=1, writes=0, dtype=dtype
        ),
        input_bytes=elements * ITEM_BYTES[dtype],
        prepare=prepare,
        compiled=compiled,
        capturable=True,
    )


# --- A generator ----------------------------------------------------------------------------------


def _scaled(
    x: Tensor, w: Tensor, styles: Tensor, noise: Tensor | None, up: int, f: Tensor
) -> Tensor:
    """Styles on the input, demodulation on the output."""
    scale = (styles.square() @ w.square().sum((2, 3)).t() + 1e-8).rsqrt()[:, :, None, None]
    x = x * styles[:, :, None, None]
    if up == 1:
        x = F.conv2d(x, w, padding=w.shape[2] // 2)
    else:
        x = F.conv_transpose2d(x, w.transpose(0, 1).flip([2, 3]), stride=2)
        x = style_ops.upfirdn2d(x, f, padding=(1, 1, 1, 1), gain=4.0)
    return x * scale if noise is None else torch.addcmul(noise, x, scale)


def _grouped(
    x: Tensor, w: Tensor, styles: Tensor, noise: Tensor | None, up: int, f: Tensor
) -> Tensor:
    """A weight for each sample, and a group."""
    batch, channels, height, width = x.shape
    weights = w[None] * styles[:, None, :, None, None]
    weights = weights * (weights.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    x = x.reshape(1, batch * channels, height, width)
    if up == 1:
        x = F.conv2d(x, weights.flatten(0, 1), padding=w.shape[2] // 2, groups=batch)
    else:
        turned = weights.transpose(1, 2).flip([3, 4]).flatten(0, 1)
        x = F.conv_transpose2d(x, turned, stride=2, groups=batch)
        x = style_ops.upfirdn2d(x, f, padding=(1, 1, 1, 1), gain=4.0)
    x = x.view(batch, w.shape[0], *x.shape[2:])
    return x if noise is None else x + noise


def _by_fastgan(
    x: Tensor, w: Tensor, styles: Tensor, noise: Tensor | None, up: int, f: Tensor
) -> Tensor:
    return functional.modulated_conv2d(x, w, styles, noise, up, 1, w.shape[2] // 2, f)


class StyleGenerator(nn.Module):
    """StyleGAN2's synthesis with skips (Karras et al. 2019, arXiv 1912.04958, figure 7b).

    Args:
        modulation: "fastgan"; or "scaled" or "grouped", two ways in plain PyTorch.
        size: of the images, a power of two.
        channels: at 4x4; half as many from 32x32 on at each size.
        style: length of the style vectors.

    Example:
        >>> with torch.no_grad():
        ...     StyleGenerator("fastgan", 16, 8, 8)(torch.randn(2, 8)).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self, modulation: str = "fastgan", size: int = 64, channels: int = 256, style: int = 128
    ) -> None:
        super().__init__()
        ways: dict[str, Function] = dict(
            zip(_MODULATIONS, (_by_fastgan, _scaled, _grouped), strict=True)
        )
        self._modulated = ways[modulation]
        self._bias_act: Function = bias_act if modulation == "fastgan" else style_ops.bias_act
        self._upfirdn2d: Function = upfirdn2d if modulation == "fastgan" else style_ops.upfirdn2d
        self.register_buffer("fir", torch.outer(torch.tensor(_FIR), torch.tensor(_FIR)))
        self.const = nn.Parameter(torch.randn(1, channels, 4, 4))
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.affines, self.noises = nn.ModuleList(), nn.ParameterList()
        self._ups: list[int] = []
        before, resolution = channels, 4
        while resolution <= size:
            after = channels if resolution <= 16 else before // 2
            for up in [1] if resolution == 4 else [2, 1]:
                self._add(before, after, 3, up, style)
                self.noises.append(nn.Parameter(0.1 * torch.randn(1, 1, resolution, resolution)))
                before = after
            self._add(before, 3, 1, 1, style)
            resolution *= 2

    def _add(self, before: int, after: int, taps: int, up: int, style: int) -> None:
        self.weights.append(nn.Parameter(torch.randn(after, before, taps, taps)))
        self.biases.append(nn.Parameter(torch.zeros(after)))
        self.affines.append(nn.Linear(style, before))
        self._ups.append(up)

    def forward(self, w: Tensor) -> Tensor:
        """The images of style vectors (N, style)."""
        x, image = self.const.expand(len(w), -1, -1, -1), None
        noises = iter(self.noises)
        for weight, bias, affine, up in zip(
            self.weights, self.biases, self.affines, self._ups, strict=True
        ):
            if weight.shape[2] == 3:
                x = self._modulated(x, weight, affine(w) + 1, next(noises), up, self.fir)
                x = self._bias_act(x, bias, act="lrelu", clamp=256.0)
                continue
            y = self._bias_act(
                self._modulated(x, weight, affine(w) + 1, None, 1, self.fir), bias, clamp=256.0
            )
            if image is None:
                image = y
            else:
                up2 = self._upfirdn2d(
                    image, self.fir, (2, 2), (1, 1), four_sides([2, 1] * 2), gain=4.0
                )
                image = up2 + y
        assert image is not None
        return image


def _generator_case(batch: int, dtype: str, layout: str, compiled: bool) -> Case:
    style = 128

    def prepare(setting: Setting) -> dict[str, Call]:
        torch.manual_seed(0)
        weights = StyleGenerator().state_dict()
        kind, device = DTYPES[dtype], setting.device
        inputs = [torch.randn(batch, style).to(device, kind) for _ in range(setting.copies)]

        def call(modulation: str, mode: str | None = None) -> Call:
            network = StyleGenerator(modulation)
            network.load_state_dict(weights)
            network.to(device, kind)
            network.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
            run: Function = network if mode is None else torch.compile(network, mode=mode)

            def step(number: int) -> None:
                with torch.no_grad():
                    run(inputs[number])

            return step

        calls = {
            "fastgan": call("fastgan"),
            "eager": call("scaled"),
            "eager, grouped": call("grouped"),
        }
        if setting.compile_mode is not None:
            calls["torch.compile"] = call("scaled", setting.compile_mode)
        return calls

    def count_work() -> Work:
        with torch.device("meta"):
            network = StyleGenerator("scaled").requires_grad_(False)
            return products_work(network, torch.empty(batch, style), dtype, gradients="of images")

    return Case(
        suite="style",
        op="StyleGAN2 generator, forward",
        shape=f"64x64, {layout}",
        dtype=dtype,
        batch=batch,
        count_work=count_work,
        input_bytes=batch * style * ITEM_BYTES[dtype],
        prepare=prepare,
        compiled=compiled,
        capturable=True,
    )
