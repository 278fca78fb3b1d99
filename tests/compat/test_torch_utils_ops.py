"""The ops under other code's names: installing, values, gradients, a user's code."""

from __future__ import annotations

import importlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import fastgan
from fastgan.compat import torch_utils_ops as ops
from fastgan.ops.conv2d_resample import four_sides
from fastgan.ops.memory_format import is_channels_last
from fastgan.ops.upfirdn2d import upfirdn2d
from fastgan.reference import style_ops

USERS_CODE = Path(__file__).parent / "users_code"
NCHW, NHWC = torch.contiguous_format, torch.channels_last


# --- Installing -----------------------------------------------------------------------------------


@pytest.fixture
def modules() -> Iterator[None]:
    """What a test installs, or imports of users' code, is gone after it.

    Other packages stay: native ones (onnx's) end the process when they are loaded a second time.
    """
    before = dict(sys.modules)
    yield
    ops.uninstall()
    for name in sys.modules.keys() - before.keys():
        module = sys.modules[name]
        file = getattr(module, "__file__", None)
        by_hand = file is None and getattr(module, "__spec__", None) is None
        if by_hand or (file is not None and Path(file).is_relative_to(USERS_CODE)):
            del sys.modules[name]


@pytest.fixture
def users_code(modules: None, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(USERS_CODE)
    ops.install("torch_utils.ops")
    return importlib.import_module("networks")


def test_a_made_parent_goes_with_its_package(modules: None):
    ops.install("no_such.parent.ops")
    ops.install("no_such.parent.ops")
    ops.install_op("no_such.op")
    import no_such.parent.ops as installed
    from no_such.op import FusedLeakyReLU, fused_leaky_relu, upfirdn2d
    from no_such.op.upfirdn2d import upfirdn2d as same
    from no_such.parent.ops.fma import fma

    assert installed.bias_act is ops.bias_act
    assert fma is ops.fma.fma
    assert upfirdn2d is same
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(FusedLeakyReLU(3)(x), fused_leaky_relu(x))
    assert list(FusedLeakyReLU(3).state_dict()) == ["bias"]
    assert FusedLeakyReLU(3, bias=False).bias is None
    ops.uninstall()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such.op")
    assert not any(name.startswith("no_such") for name in sys.modules)


def test_a_folder_keeps_its_other_modules(users_code: ModuleType):
    import torch_utils.ops
    from torch_utils.ops import own

    assert torch_utils.ops.upfirdn2d is ops.upfirdn2d
    assert own.bias_act is ops.bias_act
    assert own.__file__ == str(USERS_CODE / "torch_utils/ops/own.py")


def test_originals_that_were_imported_are_named(modules: None):
    sys.modules["their.ops.bias_act"] = ModuleType("their.ops.bias_act")
    with pytest.raises(ImportError, match=r"their\.ops\.bias_act: imported already"):
        ops.install("their.ops")
    assert "their.ops" not in sys.modules


def test_names_that_no_module_can_have_are_refused():
    with pytest.raises(fastgan.ConfigError, match="expected a dotted name"):
        ops.install("torch_utils/ops")


def test_an_error_of_a_users_parent_package_is_raised(
    modules: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/__init__.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        ops.install("broken.ops")
    assert not any(name.startswith("broken") for name in sys.modules)


def test_the_page_of_the_docs_runs(modules: None, capsys: pytest.CaptureFixture[str]):
    page = (Path(__file__).parent.parent.parent / "docs/compat.md").read_text()
    exec(page.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out.count("torch.Size") == 2


# --- Values ---------------------------------------------------------------------------------------


def assert_as_exact(ours: Tensor, plain: Tensor, exact: Tensor, size: Tensor | None = None) -> None:
    """At most twice plain PyTorch's error, or one rounding of the largest value.

    Args:
        size: the sum of what is added up without its signs, of which the roundings are.
    """
    assert ours.shape == exact.shape
    assert ours.dtype == plain.dtype
    if exact.numel() == 0:
        return
    unit = torch.finfo(ours.dtype).eps * float((exact if size is None else size).abs().max())
    error = (ours.double() - exact).abs().max()
    assert error <= 2 * (plain.double() - exact).abs().max() + unit


def random_case(draw: random.Random, generator: torch.Generator) -> tuple[Any, ...]:
    dtype = draw.choice([torch.float64, torch.float32, torch.bfloat16, torch.float16])
    up, down = ([draw.choice([1, 2, 4]) for _ in "xy"] for _ in range(2))
    taps = [draw.randint(1, draw.choice([4, 12])) for _ in range(draw.choice([1, 2]))]
    size = [draw.randint(1, 2), draw.choice([1, 3, 8]), draw.randint(1, 7), draw.randint(1, 7)]
    padding = [draw.randint(-3, 6) for _ in range(4)]
    for axis, (length, first, factor) in enumerate(
        ((size[3], taps[-1], up[0]), (size[2], taps[0], up[1]))
    ):
        short = first - length * factor - padding[2 * axis] - padding[2 * axis + 1]
        padding[2 * axis] += max(short, 0)
    x = torch.randn(size, generator=generator).to(dtype)
    x = x.contiguous(memory_format=draw.choice([NCHW, NHWC]))
    return x, torch.randn(taps, generator=generator), up, down, padding, draw.random() < 0.5


def test_upfirdn2d_in_random_cases():
    draw, generator = random.Random(0), torch.Generator().manual_seed(0)
    for _ in range(200):
        x, f, *settings, gain = *random_case(draw, generator), draw.choice([1, 0.3])
        found = ops.upfirdn2d.upfirdn2d(x, f, *settings, gain)
        exact = style_ops.upfirdn2d(x.double(), f.double(), *settings, gain)
        size = style_ops.upfirdn2d(x.double().abs(), f.double().abs(), *settings, gain)
        plain = ops.upfirdn2d.upfirdn2d(x, f, *settings, gain, impl="ref")
        if x.dtype == torch.float64:  # of which nothing is more exact
            size, plain = (2 * f.numel() + 4) * size, exact
        assert_as_exact(found, plain, exact, size)
        again = ops.upfirdn2d.upfirdn2d(x, f, *settings, gain)
        assert torch.equal(found, again)
        without_kernel = fastgan.ops.upfirdn2d._upfirdn2d(x, f, *settings, gain)
        assert_as_exact(without_kernel, found, exact, (2 * f.numel() + 4) * size)


@pytest.mark.parametrize("layout", [NCHW, NHWC])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_other_ops_against_float64(dtype: torch.dtype, layout: torch.memory_format):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x, b, w = normal(2, 8, 9, 8), normal(8), normal(4, 8, 3, 3)
    styles, f, noise = normal(2, 8), ops.upfirdn2d.setup_filter([1, 3, 3, 1]), normal(2, 1, 18, 16)
    long = ops.upfirdn2d.setup_filter(torch.arange(1.0, 13.0))
    mine = [each.to(dtype) for each in (x, b, w, styles, noise)]
    mine[0] = mine[0].contiguous(memory_format=layout)
    wide = [each.double() for each in mine]
    sides = (11, 10, 11, 10)
    calls: list[tuple[Callable[..., Tensor], Callable[..., Tensor]]] = [
        *(
            (
                lambda x, b, *_, act=act: ops.bias_act.bias_act(x, b, act=act, clamp=2.0),
                lambda x, b, *_, act=act: style_ops.bias_act(x, b, act=act, clamp=2.0),
            )
            for act in ops.bias_act.activation_funcs
        ),
        (
            lambda x, b, *_: ops.filtered_lrelu.filtered_lrelu(
                x, long, long, b, 2, 2, sides, clamp=1.0
            ),
            lambda x, b, *_: style_ops.filtered_lrelu(x, long, long, b, 2, 2, sides, clamp=1.0),
        ),
        (
            lambda x, b, w, s, n: fastgan.functional.modulated_conv2d(x, w, s, n, 2, 1, 1, f),
            lambda x, b, w, s, n: style_ops.modulated_conv2d(x, w, s, n, 2, 1, (1,) * 4, f),
        ),
        (
            lambda x, b, *_: ops.fma.fma(x, b.view(-1, 1, 1), x[:, :1]),
            lambda x, b, *_: x * b.view(-1, 1, 1) + x[:, :1],
        ),
        (
            lambda x, *_: fastgan.nn.MinibatchStdDev(2, 2)(x),
            lambda x, *_: style_ops.minibatch_stddev(x, 2, 2),
        ),
    ]
    for ours, plain in calls:
        found = ours(*mine)
        assert_as_exact(found, plain(*mine), plain(*wide))
        assert found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("taps", [None, [1, 2, 1], [1, 3, 3, 1], list(range(1, 10))])
@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (2, 2)])
def test_conv2d_resample_is_up_convolve_down(
    up: int, down: int, kernel: int, taps: list[int] | None
):
    f = ops.upfirdn2d.setup_filter(taps).double() if taps else None
    x = torch.randn(1, 4, 7, 6, dtype=torch.float64)
    for groups, padding, flip in ((1, 1, True), (2, [0, 2, 3, 1], False), (2, kernel // 2, True)):
        w = torch.randn(6, 4 // groups, kernel, kernel, dtype=torch.float64)
        found = ops.conv2d_resample.conv2d_resample(x, w, f, up, down, padding, groups, flip, flip)
        expected = style_ops.conv2d_resample(
            x, w, f, up, down, four_sides(padding), groups, flip, flip
        )
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_upsampled_contiguous_maps_are_filtered_channels_last_on_cpus(monkeypatch):
    x, w, f = torch.randn(2, 32, 6, 5), torch.randn(64, 32, 3, 3), torch.rand(4, 4)
    filtered = []

    def watched(map: Tensor, *rest: Any) -> Tensor:
        filtered.append(is_channels_last(map))
        return upfirdn2d(map, *rest)

    monkeypatch.setattr("fastgan.ops.conv2d_resample.upfirdn2d", watched)
    expected = style_ops.conv2d_resample(x.double(), w.double(), f.double(), 2, 1, (1,) * 4)
    for weight, layout in ((w, True), (w.clone().requires_grad_(), False)):
        filtered.clear()
        found = ops.conv2d_resample.conv2d_resample(x, weight, f, 2, 1, 1)
        assert filtered == [layout]
        assert found.is_contiguous()
        torch.testing.assert_close(found.detach().double(), expected, rtol=1e-4, atol=1e-4)


def test_resampling_keeps_images_centred():
    x, f = torch.ones(1, 1, 8, 6), ops.upfirdn2d.setup_filter([1, 3, 3, 1])
    up, down = ops.upfirdn2d.upsample2d(x, f), ops.upfirdn2d.downsample2d(x, f)
    same = ops.upfirdn2d.filter2d(x, ops.upfirdn2d.setup_filter([1, 2, 1]))
    for y, shape in ((up, (16, 12)), (down, (4, 3)), (same, (8, 6))):
        assert y.shape[2:] == shape
        assert torch.equal(y, y.flip([2, 3]))
        inner = y[..., 2:-2, 1:-1] if shape[0] > 4 else y[..., 1:-1, 1:-1]
        torch.testing.assert_close(inner, torch.ones_like(inner))
    up = ops.upfirdn2d.upsample2d(x, f, up=[1, 2], padding=[1, 0, 0, 0])
    assert up.shape[2:] == (16, 7)


def test_filters():
    setup = ops.upfirdn2d.setup_filter
    assert setup(None).tolist() == [[1.0]]
    assert setup([1, 3], gain=4, flip_filter=True).tolist() == [[2.25, 0.75], [0.75, 0.25]]
    assert setup([1, 3], separable=True, normalize=False, gain=4).tolist() == [2.0, 6.0]
    assert setup(range(1, 9)).shape == (8,)
    assert setup(torch.ones(8), separable=False).shape == (8, 8)
    for wrong in ([], torch.ones(1, 1, 1)):
        with pytest.raises(fastgan.ConfigError, match="f has shape"):
            setup(wrong)
    assert ops.upfirdn2d._parse_padding([1, 2]) == (1, 1, 2, 2)
    assert ops.upfirdn2d._parse_scaling(3) == (3, 3)
    assert ops.upfirdn2d._get_filter_size(torch.ones(2, 3)) == (3, 2)
    assert ops.upfirdn2d._init()


def test_the_table_of_activations():
    rows = {name: tuple(row) for name, row in ops.bias_act.activation_funcs.items()}
    root = 2**0.5
    assert rows == {
        "linear": (0, 1, False),
        "relu": (0, root, False),
        "lrelu": (0.2, root, False),
        **dict.fromkeys(("tanh", "sigmoid", "elu", "selu", "softplus"), (0, 1, True)),
        "swish": (0, root, True),
    }


def test_modulation_in_half_precision_neither_overflows_nor_vanishes():
    x, w, styles = torch.randn(2, 64, 8, 8), torch.randn(32, 64, 3, 3), torch.randn(2, 64)
    for size in (1e-3, 1.0, 200.0):
        half = fastgan.functional.modulated_conv2d(
            x.half(), size * w, size * styles, padding=1
        ).float()
        exact = style_ops.modulated_conv2d(
            *(each.double() for each in (x.half(), size * w, size * styles)), padding=(1,) * 4
        )
        torch.testing.assert_close(half.double(), exact, rtol=0, atol=1e-2)


@pytest.mark.parametrize("layout", [NCHW, NHWC], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    ("channels", "taps", "up", "down"),
    [(32, 3, 1, 1), (32, 3, 2, 1), (32, 3, 1, 2), (3, 1, 1, 1), (24, 1, 2, 1), (24, 3, 1, 1)],
)
def test_modulated_convolutions_that_are_not_recorded(
    channels: int, taps: int, up: int, down: int, layout: torch.memory_format
):
    """By scales in the convolution and by passes; noise for all images, each, and each channel."""
    f = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    size = (6 * up // down, 4 * up // down)
    for noise in (None, torch.randn(size), torch.randn(3, 1, *size), torch.randn(channels, 1, 1)):
        x, w = torch.randn(3, 32, 6, 4), torch.randn(channels, 32, taps, taps)
        x, w = (each.contiguous(memory_format=layout) for each in (x, w))
        for demodulate in (True, False):
            rest = (up, down, taps // 2, f, demodulate, False)
            mine = [x, w, torch.randn(3, 32), noise]
            found = fastgan.functional.modulated_conv2d(*mine, *rest)
            rest = (up, down, (taps // 2,) * 4, f, demodulate, False)
            wide = [None if each is None else each.double() for each in mine]
            plain, exact = (style_ops.modulated_conv2d(*each, *rest) for each in (mine, wide))
            sizes = [None if each is None else each.abs() for each in wide]
            assert_as_exact(found, plain, exact, style_ops.modulated_conv2d(*sizes, *rest))
            assert found.is_contiguous(memory_format=layout)
            with torch.enable_grad():
                recorded = fastgan.functional.modulated_conv2d(
                    x.clone().requires_grad_(), w, *mine[2:], up, down, taps // 2, f, *rest[4:]
                )
            assert found.stride() == recorded.stride()


def test_minibatch_stddev_of_no_images_is_empty():
    for group_size in (4, None):
        x = torch.zeros(0, 8, 4, 4, requires_grad=True)
        y = fastgan.nn.MinibatchStdDev(group_size)(x)
        y.sum().backward()
        assert y.shape == (0, 9, 4, 4)


def test_minibatch_stddev_says_what_does_not_divide():
    with pytest.raises(fastgan.ConfigError, match=r"shape \(6, 3, 2, 2\)"):
        fastgan.nn.MinibatchStdDev()(torch.ones(6, 3, 2, 2))


# --- Gradients ------------------------------------------------------------------------------------


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


def gradient_cases() -> Iterator[Any]:
    f, taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8, torch.rand(2, 3)
    conv, gradfix = ops.conv2d_resample.conv2d_resample, ops.conv2d_gradfix
    grid = F.affine_grid(
        torch.tensor([[[0.7, -0.6, 0.1], [0.6, 0.8, -0.2]]]), [1, 2, 3, 3], False
    ).double()
    yield "upfirdn2d", lambda x: ops.upfirdn2d.upfirdn2d(x, taps, 2, [3, 2], 1), (1, 2, 3, 3)
    yield (
        "filtered_lrelu",
        lambda x, b: ops.filtered_lrelu.filtered_lrelu(x, f, f, b, 2, 2, 3, clamp=1.0),
        (1, 2, 2, 3),
        (2,),
    )
    yield "up", lambda x, w: conv(x, w, f, up=2, padding=1), (1, 2, 3, 3), (2, 2, 3, 3)
    yield "down", lambda x, w: conv(x, w, f, down=2, padding=1), (1, 2, 4, 3), (2, 2, 3, 3)
    yield (
        "modulated_conv2d",
        lambda *leaves: fastgan.functional.modulated_conv2d(*leaves, padding=1),
        *((2, 2, 2, 3), (2, 2, 3, 3), (2, 2), (2, 1, 2, 3)),
    )
    yield (
        "conv2d",
        lambda *leaves: gradfix.conv2d(*leaves, stride=2, padding=1, groups=2),
        *((1, 2, 4, 3), (4, 1, 3, 3), (4,)),
    )
    yield (
        "conv_transpose2d",
        lambda *leaves: gradfix.conv_transpose2d(*leaves, stride=2, padding=1, output_padding=1),
        *((1, 2, 2, 3), (2, 2, 3, 3), (2,)),
    )
    yield "grid_sample", lambda x: ops.grid_sample_gradfix.grid_sample(x, grid), (1, 2, 3, 3)
    yield "fma", ops.fma.fma, (2, 3, 2), (3, 1), (2,)
    yield "stddev", fastgan.nn.MinibatchStdDev(2, 2), (4, 4, 1, 2)


@pytest.mark.parametrize("case", list(gradient_cases()), ids=lambda case: case[0])
def test_first_and_second_gradients(case: Any):
    _, function, *shapes = case
    leaves = [leaf(*shape) for shape in shapes]
    assert gradcheck(function, leaves, fast_mode=True)
    assert gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("act", ops.bias_act.activation_funcs)
def test_gradients_of_every_activation(act: str):
    leaves = [leaf(2, 3, 2), leaf(3)]

    def function(x: Tensor, b: Tensor) -> Tensor:
        return ops.bias_act.bias_act(x, b, act=act, clamp=2.0)

    assert gradcheck(function, leaves, fast_mode=True)
    assert gradgradcheck(function, leaves, fast_mode=True)


def test_the_third_derivative_of_a_convolution_is_that_of_torch():
    x, w = leaf(1, 2, 4, 4), leaf(2, 2, 3, 3)
    found = []
    for convolve in (ops.conv2d_gradfix.conv2d, F.conv2d):
        y = convolve(x, w, padding=1).tanh().sum()
        for _ in range(2):
            y = sum(g.square().sum() for g in torch.autograd.grad(y, [x, w], create_graph=True))
        found.append(torch.autograd.grad(y, [x, w]))
    torch.testing.assert_close(*found)


def test_grid_sample_differentiates_once_by_the_grid_and_then_says_so():
    x, grid = leaf(1, 2, 3, 3), leaf(1, 2, 2, 2)
    y = ops.grid_sample_gradfix.grid_sample(x, 0.5 * grid)
    plain = F.grid_sample(x, 0.5 * grid, align_corners=False)
    for ours, theirs in zip(
        *(torch.autograd.grad(each.sum(), [x, grid], retain_graph=True) for each in (y, plain)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    (gradient,) = torch.autograd.grad(y.square().sum(), [x], create_graph=True)
    gradient.sum().backward(inputs=[x])
    (gradient,) = torch.autograd.grad(
        ops.grid_sample_gradfix.grid_sample(x, 0.5 * grid).sum(), [x], create_graph=True
    )
    with pytest.raises(RuntimeError, match="second derivative by the grid"):
        gradient.square().sum().backward()
    with torch.autocast("cpu"):
        half = ops.grid_sample_gradfix.grid_sample(x.bfloat16(), grid.bfloat16())
    (gradient,) = torch.autograd.grad(half.square().sum(), [x], create_graph=True)
    gradient.sum().backward(inputs=[x])


class Counted(TorchDispatchMode):
    """Counts ATen's convolutions, and the gradients that each computes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = 0
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        self.names.append(name)
        if name == "aten::convolution":
            self.convolutions += 1
        if name == "aten::convolution_backward":
            self.convolutions += sum(args[-1][:2])
        return func(*args, **(kwargs or {}))


def counted_penalty(layers: int, convolve: Any, activate: Callable[..., Tensor]) -> Counted:
    x, b = leaf(2, 4, 5, 5), leaf(4)
    weights = [leaf(4, 4, 3, 3) for _ in range(layers)]
    with Counted() as counted:
        y = x
        for w in weights:
            y = activate(convolve(y, w, padding=1), b)
        (gradient,) = torch.autograd.grad(y.sum(), [x], create_graph=True)
        gradient.square().sum().backward()
    return counted


def test_a_penalty_takes_four_convolutions_a_layer_and_sends_no_zeros():
    """Forward, gradient of the input, its gradient, the weight's; autograd takes six."""
    counts = []
    for layers in (2, 3):
        ours = counted_penalty(
            layers,
            ops.conv2d_gradfix.conv2d,
            lambda x, b: ops.bias_act.bias_act(x, b, act="lrelu"),
        )
        assert not {"aten::zeros", "aten::zeros_like", "aten::new_zeros"} & set(ours.names)
        plain = counted_penalty(
            layers, F.conv2d, lambda x, b: F.leaky_relu(x + b.view(-1, 1, 1), 0.2) * 2**0.5
        )
        counts.append((ours.convolutions, plain.convolutions))
    (ours_of_two, plain_of_two), (ours_of_three, plain_of_three) = counts
    assert ours_of_three - ours_of_two == 4
    assert ours_of_two == 7  # the last layer's signal is a constant
    assert plain_of_three - plain_of_two >= 6


def test_weight_gradients_can_be_left_out():
    x, w = leaf(1, 2, 3, 3), leaf(2, 2, 3, 3)
    gradfix = ops.conv2d_gradfix
    assert not gradfix.weight_gradients_disabled
    y = gradfix.conv2d(x, w).square().sum()
    with gradfix.no_weight_gradients():
        assert gradfix.weight_gradients_disabled
        y.backward(retain_graph=True)
    assert w.grad is None
    assert x.grad is not None
    with gradfix.no_weight_gradients(False):
        y.backward(retain_graph=True)
    assert w.grad is not None
    (gradient,) = torch.autograd.grad(y, [w])
    torch.testing.assert_close(gradient, w.grad)


def test_convolutions_as_torch_has_them_where_it_decides():
    x, w = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 4, 4, requires_grad=True)
    conv2d = ops.conv2d_gradfix.conv2d
    torch.testing.assert_close(conv2d(x[0], w), F.conv2d(x[0], w))
    torch.testing.assert_close(conv2d(x, w, padding="valid"), F.conv2d(x, w))
    with torch.autocast("cpu", torch.bfloat16):
        assert conv2d(x, w).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="channels"):
        conv2d(x, w[:, :1])
    mapped = torch.func.vmap(lambda image: conv2d(image[None], w)[0])(x)
    torch.testing.assert_close(mapped, F.conv2d(x, w))


# --- A user's code --------------------------------------------------------------------------------


def plainly(monkeypatch: pytest.MonkeyPatch, networks: ModuleType) -> None:
    """The user's modules with plain PyTorch in the ops' place."""

    def conv(x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True):
        return style_ops.conv2d_resample(x, w, f, up, down, (padding,) * 4, groups, flip_weight)

    monkeypatch.setattr(ops.bias_act, "bias_act", style_ops.bias_act)
    monkeypatch.setattr(networks.conv2d_resample, "conv2d_resample", conv)
    monkeypatch.setattr(ops.upfirdn2d._op, "upfirdn2d", style_ops.upfirdn2d)
    monkeypatch.setattr(networks.fma, "fma", lambda a, b, c: a * b + c)


def test_a_users_networks_and_penalties(users_code: ModuleType, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    generator = users_code.Generator().double()
    discriminator = users_code.Discriminator().double()
    z, real, noise = (torch.randn(4, *s).double() for s in ((16,), (3, 16, 16), (3, 16, 16)))

    def gradients() -> list[Tensor]:
        image = generator(z)
        loss = users_code.r1_penalty(discriminator, real) + discriminator(image).mean()
        loss = loss + users_code.path_length_penalty(generator, z, noise)
        leaves = [*generator.parameters(), *discriminator.parameters()]
        return [image, *torch.autograd.grad(loss, leaves)]

    found = gradients()
    plainly(monkeypatch, users_code)
    torch.testing.assert_close(found, gradients(), rtol=1e-9, atol=1e-12)


def test_a_users_discriminator_in_the_fused_penalty(users_code: ModuleType):
    discriminator = users_code.Discriminator(4, 8).double()
    images = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    fused, plain = (
        torch.autograd.grad(
            fastgan.discriminator_loss(
                discriminator, *images, loss="logistic", r1=1.0, path=path
            ).loss,
            list(discriminator.parameters()),
        )
        for path in ("fused", "autograd")
    )
    torch.testing.assert_close(fused, plain)


def test_a_users_code_compiles_and_exports_whole(users_code: ModuleType):
    torch.manual_seed(0)
    generator, z = users_code.Generator(channels=4, resolution=8), torch.randn(2, 16)
    expected = generator(z)
    expected.square().sum().backward()
    gradient = generator.up[0].weight.grad.clone()
    generator.zero_grad()
    compiled = torch.compile(generator, fullgraph=True, backend="aot_eager")
    output = compiled(z)
    torch.testing.assert_close(output, expected)
    output.square().sum().backward()
    torch.testing.assert_close(generator.up[0].weight.grad, gradient, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        program = torch.export.export(generator.eval(), (z,))
        torch.testing.assert_close(program.module()(z), expected)


def test_a_users_generator_in_onnx_is_of_standard_ops(users_code: ModuleType, tmp_path: Path):
    import onnxruntime

    torch.manual_seed(0)
    generator, z = users_code.Generator(channels=4, resolution=8).eval(), torch.randn(2, 16)
    path = tmp_path / "generator.onnx"
    program = torch.onnx.export(generator, (z,), dynamo=True, verbose=False)
    assert {node.domain for node in program.model.graph} == {""}
    program.save(path)
    session = onnxruntime.InferenceSession(path)
    (output,) = session.run(None, {session.get_inputs()[0].name: z.numpy()})
    torch.testing.assert_close(
        torch.from_numpy(output), generator(z).detach(), rtol=1e-4, atol=1e-4
    )


def test_a_users_script_trains_in_two_processes_without_compiler_or_home(tmp_path: Path):
    """Two forked processes with DistributedDataParallel agree with one."""
    environment = {
        "PATH": "",
        "HOME": "/dev/null/home",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(Path(fastgan.__file__).parent.parent),
        "FASTGAN_AUTOTUNE": os.environ.get("FASTGAN_AUTOTUNE", "0"),
    }
    done = subprocess.run(
        [sys.executable, "train.py", str(tmp_path)],
        cwd=USERS_CODE,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "trained\n"
