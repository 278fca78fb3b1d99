"""upfirdn2d and filtered_lrelu against their formulas in float64, and against SciPy."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scipy
import torch
from torch import Tensor

from fastgan.errors import ConfigError
from fastgan.ops.filtered_lrelu import filtered_lrelu
from fastgan.ops.upfirdn2d import upfirdn2d
from fastgan.reference import style_ops

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def of_rank_one(taps: list[int]) -> Tensor:
    """Zeros and signs among the taps; exact products, which are filtered along one axis a time."""
    factors = [torch.randint(-4, 5, (count,)).float() for count in taps]
    return factors[0] if len(taps) == 1 else torch.outer(*factors)


def drawn(draw: random.Random, most_taps: int) -> tuple[Tensor, dict[str, Any]]:
    """A map and the arguments of upfirdn2d; sizes on both sides of where the kernels' ways part."""
    height, width = draw.randint(1, 12), draw.choice((1, 5, 23, 24, 25, 60))
    channels = draw.choice((1, 3, 16, 17, 40))
    x = torch.randn(draw.randint(1, 2), channels, height, width, dtype=torch.float64)
    x = x.to(draw.choice(DTYPES))
    if draw.random() < 0.5:
        x = x.contiguous(memory_format=torch.channels_last)
    taps = [draw.randint(1, most_taps) for _ in range(draw.randint(1, 2))]
    up, down = ([draw.choice((1, 2, 2, 3, 4)) for _ in range(2)] for _ in range(2))
    padding = []
    for axis, size in enumerate((width, height)):
        padding += [draw.randint(-min(2, (size - 1) // 2), 9) for _ in range(2)]
        lacking = taps[0] if axis == 1 else taps[-1]
        lacking -= size * up[axis] + padding[2 * axis] + padding[2 * axis + 1]
        padding[2 * axis + 1] += max(0, lacking)
    return x, {
        "f": draw.choice((torch.randn(taps), of_rank_one(taps), None)),
        "up": tuple(up),
        "down": tuple(down),
        "padding": tuple(padding),
        "flip_filter": draw.random() < 0.5,
        "gain": draw.choice((1.0, -1.5, 4.0)),
    }


def results(function: Callable[..., Tensor], x: Tensor, rest: dict[str, Any]) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = function(x, **rest)
    seed = torch.arange(y.numel(), dtype=torch.float64, device=x.device).reshape(y.shape).cos()
    return [y, torch.autograd.grad(y, x, seed.to(y.dtype))[0]]


def assert_as_near_as_torch(
    own: Callable[..., Tensor], plain: Callable[..., Tensor], x: Tensor, rest: dict[str, Any]
) -> None:
    wide = {
        key: value.double() if isinstance(value, Tensor) else value for key, value in rest.items()
    }
    right = results(plain, x.double(), wide)
    for found, exact, torchs in zip(
        results(own, x, rest), right, results(plain, x, rest), strict=True
    ):
        assert found.dtype == x.dtype
        # Torch's own double has no error here: it is what the others are compared with.
        units = 32 if x.dtype == torch.float64 else 1
        rounding = units * torch.finfo(x.dtype).eps * exact.abs().max()
        bound = 2 * (torchs - exact).abs().max() + rounding
        assert found.shape == exact.shape
        assert (found - exact).abs().max() <= bound, (x.shape, x.dtype, rest)


@pytest.mark.parametrize("seed", range(4))
def test_random_cases_are_as_near_as_torchs(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(30):
        x, rest = drawn(draw, most_taps=8)
        assert_as_near_as_torch(upfirdn2d, style_ops.upfirdn2d, x, rest)
        y = upfirdn2d(x, **rest)
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        assert y.is_contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        )


@pytest.mark.processors
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("down", [1, 2])
def test_four_taps_are_as_near_as_torchs(down: int, channels_last: bool) -> None:
    """StyleGAN2's filters have loops of their own: at edges, beyond them, and with few rows."""
    torch.manual_seed(down)
    shapes = (1, 3, 9, 40), (2, 20, 2, 33), (1, 17, 20, 25), (1, 40, 37, 58)
    for shape in shapes:
        for padding in ((1, 2, 1, 2), (0, 0, 3, 3), (-1, 3, 3, -1), (6, 5, 4, 7)):
            for dtype, f in ((torch.float32, of_rank_one([4, 4])), (torch.float64, torch.rand(4))):
                x = torch.randn(shape, dtype=dtype)
                if channels_last:
                    x = x.contiguous(memory_format=torch.channels_last)
                rest = {"f": f, "down": (down, down), "padding": padding, "gain": 4.0}
                assert_as_near_as_torch(upfirdn2d, style_ops.upfirdn2d, x, rest)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(20))
def test_two_thousand_cases(seed: int) -> None:
    draw = random.Random(1000 + seed)
    torch.manual_seed(seed)
    for _ in range(100):
        assert_as_near_as_torch(upfirdn2d, style_ops.upfirdn2d, *drawn(draw, most_taps=32))


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_is_scipys_upfirdn_along_both_axes(up: int, down: int, channels_last: bool) -> None:
    x = torch.randn(1, 16, 7, 40, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    taps = torch.randn(12)
    # SciPy pads by taps - 1 on both sides, and puts no zeros behind the last value.
    edges = (11, 12 - up) * 2
    found = upfirdn2d(x, taps, (up, up), (down, down), edges)
    right = x.numpy()
    for axis in (2, 3):
        right = scipy.signal.upfirdn(taps.double().numpy(), right, up, down, axis=axis)
    assert found.shape == right.shape
    torch.testing.assert_close(found, torch.from_numpy(right), atol=1e-12, rtol=1e-12)


def filtered(draw: random.Random, clamp: float | None) -> tuple[Tensor, dict[str, Any]]:
    channels = draw.choice((3, 17))
    x = torch.randn(2, channels, draw.choice((6, 19)), draw.choice((7, 30)), dtype=torch.float64)
    x = x.to(draw.choice(DTYPES[:2]))
    if draw.random() < 0.5:
        x = x.contiguous(memory_format=torch.channels_last)
    size = draw.randint(1, 12), draw.randint(1, 12)
    return x, {
        "fu": draw.choice((torch.rand(size[0]), torch.rand(size[0]).outer(torch.rand(3)), None)),
        "fd": draw.choice((torch.rand(size[1]), torch.rand(3).outer(torch.rand(size[1])), None)),
        "b": torch.randn(channels, dtype=x.dtype) if draw.random() < 0.7 else None,
        "up": draw.choice((1, 2, 4)),
        "down": draw.choice((1, 2, 3)),
        "padding": [draw.randint(8, 12) for _ in range(4)],
        "clamp": clamp,
        "flip_filter": draw.random() < 0.5,
    }


@pytest.mark.parametrize("clamp", [None, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_filtered_lrelu_is_as_near_as_torchs(seed: int, clamp: float | None) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(6):
        x, rest = filtered(draw, clamp)
        assert_as_near_as_torch(filtered_lrelu, style_ops.filtered_lrelu, x, rest)


@pytest.mark.parametrize("dtype", DTYPES[2:])
def test_filtered_lrelu_rounds_halves_once(dtype: torch.dtype) -> None:
    x, f = torch.randn(1, 20, 9, 33).to(dtype), torch.rand(6) / 3
    rest = (f, f, torch.randn(20).to(dtype), 2, 2, (5, 5, 5, 5))
    right = style_ops.filtered_lrelu(
        x.double(), *(each.double() if isinstance(each, Tensor) else each for each in rest)
    )
    error = (filtered_lrelu(x, *rest) - right).abs().max()
    assert error <= torch.finfo(dtype).eps * right.abs().max()


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_of_any_order(channels_last: bool) -> None:
    channels = 16 if channels_last else 1
    x = torch.randn(1, channels, 2, 3, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    x, f = x.requires_grad_(), torch.rand(3)

    def fir(x: Tensor) -> Tensor:
        return upfirdn2d(x, f, (2, 1), (1, 2), (1, 2, 2, -1), gain=2.0).square()

    assert torch.autograd.gradcheck(fir, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(fir, (x,), fast_mode=True)
    b = torch.randn(channels, dtype=torch.float64).requires_grad_()

    def both(x: Tensor, b: Tensor) -> Tensor:
        return filtered_lrelu(x, f, f, b, 2, 2, (2, 2, 2, 2), clamp=0.7).square()

    assert torch.autograd.gradcheck(both, (x, b), fast_mode=True)
    assert torch.autograd.gradgradcheck(both, (x, b), fast_mode=True)


def test_a_filter_gets_its_gradient() -> None:
    x, f = torch.randn(1, 2, 5, 5), torch.rand(3).requires_grad_()
    for function in (
        lambda f: upfirdn2d(x, f, (2, 2)),
        lambda f: filtered_lrelu(x, f, None, up=2, padding=(2, 2, 2, 2)),
    ):
        (grad,) = torch.autograd.grad(function(f).sum(), f)
        assert grad.abs().min() > 0


@pytest.mark.parametrize("channels", [1, 16])
@pytest.mark.parametrize("rank_one", [False, True])
def test_special_values_spread_as_in_torch(channels: int, rank_one: bool) -> None:
    f = torch.tensor([2.0, 0, -1, 1])[:, None] * torch.tensor([1.0, 3, 0])
    f = f if rank_one else torch.rand(4, 3)
    fir, both = (upfirdn2d, style_ops.upfirdn2d), (filtered_lrelu, style_ops.filtered_lrelu)
    for special in (float("nan"), float("inf")):
        x = torch.randn(1, channels, 9, 40).contiguous(memory_format=torch.channels_last)
        x[0, 0, 4, 20] = 0
        for (own, plain), filters, *args in (
            (fir, (f,), (2, 2), (1, 1)),
            (fir, (f,), (1, 1), (2, 2)),
            (both, (f, f), None, 2, 2),
        ):
            # Sums of terms whose magnitudes add up to this have errors of a few units of it.
            magnitudes = plain(x.abs(), *(each.abs() for each in filters), *args, (2, 2, 2, 2))
            x[0, 0, 4, 20] = special
            actual = own(x, *filters, *args, (2, 2, 2, 2)).double()
            expected = plain(x.double(), *(g.double() for g in filters), *args, (2, 2, 2, 2))
            x[0, 0, 4, 20] = 0
            assert not expected.isfinite().all()
            error = (actual - expected).abs().where(expected.isfinite(), 0)
            assert (error <= 16 * torch.finfo(torch.float32).eps * magnitudes).all()
            same = (actual == expected) | (actual.isnan() & expected.isnan())
            assert (same | expected.isfinite()).all()


def test_results_do_not_depend_on_the_threads() -> None:
    f = torch.rand(12)
    threads = torch.get_num_threads()
    for format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(1, 20, 30, 41).contiguous(memory_format=format)
        runs = []
        for count in (1, 3):
            torch.set_num_threads(count)
            rest = {"fu": f, "fd": f, "up": 2, "down": 2, "padding": (11, 10, 11, 10)}
            runs.append(results(filtered_lrelu, x, {**rest, "clamp": 1.0}))
        torch.set_num_threads(threads)
        assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no huge pages here"
)
def test_large_results_are_in_huge_pages() -> None:
    """Where the kernel has them: the flag is "hg" in the list of this process's memory."""
    y = upfirdn2d(torch.zeros(1, 1, 2048, 4096), None)
    address = y.data_ptr() + (1 << 20)
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            begin, _, end = name.partition("-")
            inside = int(begin, 16) <= address < int(end, 16)
        elif inside and name == "VmFlags:":
            assert "hg" in rest.split()
            return
    raise AssertionError("the result is in none of the listed mappings")


def test_a_bit_a_value_is_kept() -> None:
    kept: list[Tensor] = []
    x, f = torch.randn(1, 3, 8, 8).requires_grad_(), torch.rand(12)
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, id):
        filtered_lrelu(x, f, f, None, 2, 2, (11, 10, 11, 10))
    assert sorted(each.numel() * each.element_size() for each in kept) == [48, 48, 3 * 26 * 4]


def test_compiles_as_one_graph() -> None:
    x, f = torch.randn(1, 3, 8, 8).requires_grad_(), torch.rand(4)

    def call(x: Tensor) -> Tensor:
        y = upfirdn2d(x, f, (2, 2), padding=(2, 1, 2, 1))
        return filtered_lrelu(y, f, f, None, 2, 2, (3, 2, 3, 2))

    y = torch.compile(call, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(y, call(x))
    (found,), (right,) = (torch.autograd.grad(each.sum(), x) for each in (y, call(x)))
    torch.testing.assert_close(found, right)


def test_wrong_arguments_are_named() -> None:
    x = torch.ones(1, 2, 3, 3)
    with pytest.raises(ConfigError, match="a filter of 5 taps is longer than 3"):
        upfirdn2d(x, torch.ones(5))
    with pytest.raises(ConfigError, match="expected numbers from 1 on"):
        upfirdn2d(x, None, up=(0, 1))
    with pytest.raises(RuntimeError, match="a filter of 5 taps is longer than 3"):
        filtered_lrelu(x, torch.ones(5), None)
    with pytest.raises(ConfigError, match=r"b has shape \(3,\); expected \(2,\)"):
        filtered_lrelu(x, None, None, torch.ones(3))
    with pytest.raises(RuntimeError, match="signs has shape"):
        torch.ops.fastgan.filtered_lrelu_masked(
            *(x, torch.zeros(1, 2, 3, 2, dtype=torch.uint8), None, None, 1, 1),
            *([0, 0, 0, 0], [3, 3, 3, 3], 1.0, 0.2, False, False),
        )
