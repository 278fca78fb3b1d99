"""The three kernels, their prologues and epilogues, against float64 convolutions of torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.activations import ACTIVATIONS
from fastgan.kernels import ConvGeometry, forward, input_gradient, plans, weight_gradient
from fastgan.kernels import convolution as kernel_convolution
from fastgan.kernels.fusion import (
    ActivationGradient,
    BatchNormGradient,
    BiasActivation,
    NormActivation,
    NormActivationGradient,
    Statistics,
)
from fastgan.kernels.launch import interpreted
from fastgan.kernels.tile_tables import TABLES
from fastgan.kernels.tiles import Tile, rows_of

NAMES = list(ACTIVATIONS)
INTERPRETED = interpreted()
SLOPE = 0.2


@dataclass(frozen=True)
class Case:
    """A convolution; ``channels`` in and out."""

    geometry: ConvGeometry
    batch: int
    channels: tuple[int, int]
    size: tuple[int, int]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        inputs, outputs = self.channels
        first = (inputs, outputs) if self.geometry.transposed else (outputs, inputs)
        return (*first, *self.geometry.kernel_size)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels[0], *self.size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels[1], *self.geometry.output_size(self.size))

    def convolve(self, input: Tensor, weight: Tensor) -> Tensor:
        geometry = self.geometry
        if input.device.type == "cpu" and input.dtype == torch.float16:
            # As oneDNN sums and rounds. On processors with AMX its own float16 convolution dies of
            # some geometries (torch 2.13; test_fuzzed_geometry.py has one).
            return self.convolve(input.float(), weight.float()).half()
        if geometry.transposed:
            return F.conv_transpose2d(
                input,
                weight,
                None,
                geometry.stride,
                geometry.padding,
                geometry.output_padding,
                1,
                geometry.dilation,
            )
        return F.conv2d(input, weight, None, geometry.stride, geometry.padding, geometry.dilation)

    def gradients(self, input: Tensor, weight: Tensor, grad_output: Tensor) -> tuple[Tensor, ...]:
        """Of input and weight."""
        input = input.detach().requires_grad_()
        weight = weight.detach().requires_grad_()
        return torch.autograd.grad(self.convolve(input, weight), (input, weight), grad_output)


def case(transposed: bool, channels=(5, 7), size=(6, 5), batch=2, kernel=4, stride=2, padding=1):
    geometry = ConvGeometry(
        (kernel, kernel), (stride, stride), (padding, padding), transposed=transposed
    )
    return Case(geometry, batch, channels, size)


def draw(shape, dtype, device, seed, channels_last=True) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=generator).to(device, dtype)
    if len(shape) == 4 and channels_last:
        tensor = tensor.to(memory_format=torch.channels_last)
    return tensor


def per_channel(values: Tensor) -> Tensor:
    return values[:, None, None]


def norm_of(channels, name, device, seed, with_bias=True) -> NormActivation:
    mean, scale, bias = (draw((channels,), torch.float32, device, seed + i) for i in range(3))
    return NormActivation(mean, scale, bias if with_bias else None, name, SLOPE)


def batch_norm_gradient_of(input, seed) -> BatchNormGradient:
    vectors = [draw((input.shape[1],), torch.float32, input.device, seed + i) for i in range(4)]
    return BatchNormGradient(input, *vectors)


def cast(fused, dtype):
    """The same prologue or epilogue with tensors of another dtype."""
    if fused is None:
        return None
    changes = {
        name: value.to(dtype) if isinstance(value, Tensor) else cast(value, dtype)
        for name, value in vars(fused).items()
        if isinstance(value, (Tensor, NormActivation))
    }
    return replace(fused, **changes)


def kept_of(name: str, x: Tensor) -> Tensor:
    """What an activation of ``x`` keeps for its derivative."""
    activation = ACTIVATIONS[name]
    return x if activation.keeps_input(SLOPE) else activation.forward(x, SLOPE)


def normalised(x: Tensor, norm: NormActivation) -> Tensor:
    value = (x - per_channel(norm.mean)) * per_channel(norm.scale)
    return value if norm.bias is None else value + per_channel(norm.bias)


def apply(fused, value: Tensor) -> Tensor:
    """What fusion.py says a prologue or epilogue does, in the dtype of its tensors."""
    if fused is None:
        return value
    if isinstance(fused, NormActivation):
        return ACTIVATIONS[fused.activation].forward(normalised(value, fused), SLOPE)
    if isinstance(fused, ActivationGradient):
        activation = ACTIVATIONS[fused.activation]
        return value * activation.gradient(torch.ones_like(fused.kept), fused.kept, SLOPE)
    if isinstance(fused, BatchNormGradient):
        centred = (fused.input - per_channel(fused.mean)) * per_channel(fused.slope)
        return per_channel(fused.scale) * value + centred + per_channel(fused.offset)
    if isinstance(fused, NormActivationGradient):
        # By autograd, so that no formula of the derivative is shared.
        x = normalised(fused.input, fused.norm).detach().requires_grad_()
        y = ACTIVATIONS[fused.norm.activation].forward(x, SLOPE)
        return torch.autograd.grad(y, x, value)[0]
    if fused.bias is not None:
        value = value + per_channel(fused.bias)
    if isinstance(fused, BiasActivation):
        return ACTIVATIONS[fused.activation].forward(value, SLOPE)
    return value


def assert_as_good_as_eager(
    ours: Tensor, eager: Tensor, exact: Tensor, terms: Tensor | None = None
) -> None:
    """Our error is at most twice eager's in the same precision, or what two roundings make.

    The latter because of a few values eager's error may be next to nothing, by luck. ``terms`` is
    the result with every term's sign taken away: where terms cancel, roundings are of these.
    """
    assert ours.shape == exact.shape
    error, theirs = ((result.double() - exact).norm() for result in (ours, eager))
    size = (exact if terms is None else terms).norm()
    assert error <= max(2 * theirs, 2 * torch.finfo(eager.dtype).eps * size), (
        f"error {error:.2e}, eager's {theirs:.2e}, of {size:.2e}"
    )


def check_forward(case: Case, input, weight, prologue=None, epilogue=None) -> Tensor:
    ours, statistics = forward(input, weight, case.geometry, prologue=prologue, epilogue=epilogue)
    eager, exact = (
        apply(
            cast(epilogue, dtype),
            case.convolve(apply(cast(prologue, dtype), input.to(dtype)), weight.to(dtype)),
        )
        for dtype in (input.dtype, torch.float64)
    )
    terms = (
        None
        if prologue or epilogue != Statistics()
        else case.convolve(input.double().abs(), weight.double().abs())
    )
    assert_as_good_as_eager(ours, eager, exact, terms)
    assert ours.dtype == input.dtype
    assert ours.is_contiguous(memory_format=torch.channels_last)
    if isinstance(epilogue, Statistics):
        check_statistics(statistics, ours)
    else:
        assert statistics is None
    return ours


def check_statistics(statistics, stored: Tensor) -> None:
    """Merged by Chan's formula in float64, they are those of what was stored."""
    count, mean, m2 = (x.double() for x in (statistics.count, statistics.mean, statistics.m2))
    total = count.sum()
    assert total == stored.shape[0] * stored.shape[2] * stored.shape[3]
    merged_mean = (count[:, None] * mean).sum(0) / total
    merged_m2 = (m2 + count[:, None] * (mean - merged_mean) ** 2).sum(0)
    exact = stored.double()
    expected = exact.var((0, 2, 3), unbiased=False) * total
    spread = (expected / total).sqrt()
    rounding = 1e-6 * exact.abs().amax((0, 2, 3))
    assert ((merged_mean - exact.mean((0, 2, 3))).abs() <= rounding).all()
    # The mean is only known to its own rounding, and so is the distance from it.
    assert ((merged_m2 - expected).abs() <= total * (1e-5 * spread**2 + rounding**2)).all()


def check_gradients(case: Case, dtype, device, seed=0, channels_last=True) -> None:
    """Input, weight and bias gradient, with nothing around them."""
    input = draw(case.input_shape, dtype, device, seed, channels_last)
    weight = draw(case.weight_shape, dtype, device, seed + 1, channels_last)
    grad_output = draw(case.output_shape, dtype, device, seed + 2, channels_last)
    eager, exact = (
        case.gradients(input.to(d), weight.to(d), grad_output.to(d)) for d in (dtype, torch.float64)
    )
    terms = case.gradients(*(t.double().abs() for t in (input, weight, grad_output)))
    grad_input, sums = input_gradient(grad_output, weight, case.geometry, case.size)
    assert sums is None
    assert_as_good_as_eager(grad_input, eager[0], exact[0], terms[0])
    grad_weight, grad_bias = weight_gradient(
        input, grad_output, case.geometry, weight, with_bias=True
    )
    assert_as_good_as_eager(grad_weight, eager[1], exact[1], terms[1])
    assert grad_weight.stride() == torch.empty_like(weight).stride()
    assert grad_weight.dtype == dtype
    exact_bias = grad_output.double().sum((0, 2, 3))
    terms_bias = grad_output.double().abs().sum((0, 2, 3))
    assert_as_good_as_eager(grad_bias, grad_output.sum((0, 2, 3)), exact_bias, terms_bias)


TRANSPOSED = pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])


@pytest.mark.parametrize(
    ("name", "with_bias", "transposed"),
    [*((name, True, i % 2 == 0) for i, name in enumerate(NAMES)), ("relu", False, True)],
)
def test_norm_and_activation_on_load(name, with_bias, transposed, dtype, device):
    conv = case(transposed)
    input = draw(conv.input_shape, dtype, device, 0)
    weight = draw(conv.weight_shape, dtype, device, 1)
    prologue = norm_of(5, name, device, 2, with_bias)
    check_forward(conv, input, weight, prologue, Statistics())


@pytest.mark.parametrize(
    ("name", "with_bias"), [*((name, True) for name in NAMES), ("tanh", False)]
)
def test_bias_and_activation_on_store(name, with_bias, dtype, device):
    conv = case(transposed=True, stride=1, padding=0, size=(3, 2))
    input = draw(conv.input_shape, dtype, device, 0)
    weight = draw(conv.weight_shape, dtype, device, 1) / 8
    bias = draw((7,), torch.float32, device, 2) if with_bias else None
    check_forward(conv, input, weight, None, BiasActivation(bias, name, SLOPE))


@TRANSPOSED
def test_statistics_of_what_is_stored_with_bias(transposed, dtype, device):
    conv = case(transposed, size=(9, 7), batch=3)
    input = draw(conv.input_shape, dtype, device, 0)
    weight = draw(conv.weight_shape, dtype, device, 1)
    check_forward(conv, input, weight, None, Statistics(draw((7,), torch.float32, device, 2)))


@pytest.mark.parametrize(
    ("name", "transposed"),
    [("batch norm", True), *((name, i % 2 == 1) for i, name in enumerate(["batch norm", *NAMES]))],
)
def test_gradient_prologues(name, transposed, dtype, device):
    conv = case(transposed, channels=(3, 20))
    input = draw(conv.input_shape, dtype, device, 0)
    weight = draw(conv.weight_shape, dtype, device, 1)
    grad_output = draw(conv.output_shape, dtype, device, 2)
    other = draw(conv.output_shape, dtype, device, 3)
    if name == "batch norm":
        prologue = batch_norm_gradient_of(other, 4)
    else:
        prologue = ActivationGradient(kept_of(name, other), name, SLOPE)
    (eager, eager_weight), (exact, exact_weight) = (
        conv.gradients(input.to(d), weight.to(d), apply(cast(prologue, d), grad_output.to(d)))
        for d in (dtype, torch.float64)
    )
    ours, _ = input_gradient(grad_output, weight, conv.geometry, conv.size, prologue=prologue)
    assert_as_good_as_eager(ours, eager, exact)
    ours, grad_bias = weight_gradient(
        input, grad_output, conv.geometry, weight, grad_prologue=prologue, with_bias=True
    )
    assert_as_good_as_eager(ours, eager_weight, exact_weight)
    eager, exact = (
        apply(cast(prologue, d), grad_output.to(d)).sum((0, 2, 3)) for d in (dtype, torch.float64)
    )
    assert_as_good_as_eager(grad_bias, eager, exact)


def test_a_norms_gradient_without_slope_leaves_its_input_out(device):
    """Constant statistics: dx = scale g + offset, whatever x, where 0 times infinity is NaN."""
    conv = case(False, channels=(3, 4))
    weight = draw(conv.weight_shape, torch.float32, device, 1)
    input = draw(conv.input_shape, torch.float32, device, 0)
    grad_output = draw(conv.output_shape, torch.float32, device, 2)
    x = torch.full(conv.output_shape, float("inf"), device=device)
    prologue = batch_norm_gradient_of(x, 4)
    prologue = replace(prologue, slope=torch.zeros_like(prologue.slope))
    through = per_channel(prologue.scale) * grad_output + per_channel(prologue.offset)
    ours, _ = input_gradient(grad_output, weight, conv.geometry, conv.size, prologue=prologue)
    plain, _ = input_gradient(through, weight, conv.geometry, conv.size)
    assert torch.allclose(ours, plain, rtol=1e-5, atol=1e-5)
    ours, _ = weight_gradient(input, grad_output, conv.geometry, weight, grad_prologue=prologue)
    plain, _ = weight_gradient(input, through, conv.geometry, weight)
    assert torch.allclose(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "transposed"), [(name, i % 2 == 0) for i, name in enumerate(NAMES)]
)
def test_gradient_epilogues(name, transposed, dtype, device):
    conv = case(transposed, channels=(7, 5))
    weight = draw(conv.weight_shape, dtype, device, 1)
    grad_output = draw(conv.output_shape, dtype, device, 2)
    x = draw(conv.input_shape, dtype, device, 3)
    invstd = draw((7,), torch.float32, device, 9).abs()
    norm = norm_of(7, name, device, 4)
    for epilogue in (
        ActivationGradient(kept_of(name, x), name, SLOPE),
        NormActivationGradient(x, norm, invstd),
    ):
        ours, sums = input_gradient(
            grad_output, weight, conv.geometry, conv.size, epilogue=epilogue
        )
        eager, exact = (
            apply(
                cast(epilogue, d),
                conv.gradients(torch.zeros_like(x, dtype=d), weight.to(d), grad_output.to(d))[0],
            )
            for d in (dtype, torch.float64)
        )
        assert_as_good_as_eager(ours, eager, exact)
        if isinstance(epilogue, ActivationGradient):
            assert sums is None
            continue
        stored = ours.double()
        xhat = (x.double() - per_channel(norm.mean.double())) * per_channel(invstd.double())
        for found, value in ((sums.grad, stored), (sums.grad_xhat, stored * xhat)):
            bound = 1e-5 * value.abs().sum((0, 2, 3))
            assert ((found.double().sum(0) - value.sum((0, 2, 3))).abs() <= bound).all()


@TRANSPOSED
@pytest.mark.parametrize("name", NAMES)
def test_tangents_are_masked_on_store(name, transposed, dtype, device):
    conv = case(transposed)
    tangent = draw(conv.input_shape, dtype, device, 0)
    weight = draw(conv.weight_shape, dtype, device, 1)
    at = kept_of(name, draw(conv.output_shape, dtype, device, 2))
    epilogue = ActivationGradient(at, name, SLOPE)
    plain = check_forward(conv, tangent, weight, None, epilogue)
    prologue = norm_of(5, "leaky_relu", device, 3)
    assert not torch.equal(check_forward(conv, tangent, weight, prologue, epilogue), plain)


@TRANSPOSED
def test_results_are_written_where_asked(transposed, dtype, device):
    """Into some rows of a larger tensor, over the very tensor that the mask is read from."""
    conv = case(transposed, channels=(5, 7), batch=2)
    input = draw(conv.input_shape, dtype, device, 0)
    weight = draw(conv.weight_shape, dtype, device, 1)
    grad_output = draw(conv.output_shape, dtype, device, 2)
    for shape, into in (
        (conv.output_shape, lambda e, out: forward(input, weight, conv.geometry, **e, out=out)),
        (
            conv.input_shape,
            lambda e, out: input_gradient(
                grad_output, weight, conv.geometry, conv.size, **e, out=out
            ),
        ),
    ):
        rows = draw((5, *shape[1:]), dtype, device, 3)
        before = rows.clone()
        mask = ActivationGradient(rows[1:3], "leaky_relu", SLOPE)
        for fused in ({}, {"epilogue": mask}):
            rows.copy_(before)
            expected, _ = into(fused, None)
            found, _ = into(fused, rows[1:3])
            assert found.data_ptr() == rows[1:3].data_ptr()
            assert torch.equal(rows[1:3], expected)
            assert torch.equal(rows[:1], before[:1])
            assert torch.equal(rows[3:], before[3:])


ONE_TO_ONE = Case(ConvGeometry((1, 1)), 1, (1, 1), (4, 3))


#: NumPy's, of what inf - inf and 0 inf are.
IN_THE_INTERPRETER = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


def at_the_kinks(name, device) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients, infinite ones too, and what the activation took at each; what torch makes of it.

    As images of one channel: through a 1x1 convolution by 1 nothing meets anything else.
    """
    inputs = torch.tensor([-1.0, 0.0, 2.0], device=device)
    gradients = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.5], device=device)
    grad, x = (
        t.reshape(ONE_TO_ONE.output_shape) for t in torch.meshgrid(gradients, inputs, indexing="ij")
    )
    y = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(ACTIVATIONS[name].forward(y, SLOPE), y, grad)
    return grad, x, expected


@IN_THE_INTERPRETER
@pytest.mark.parametrize("name", NAMES)
def test_infinite_gradients_are_let_through_or_not_as_by_torch(name, device):
    grad, x, expected = at_the_kinks(name, device)
    one = torch.ones(1, device=device)
    norm = NormActivation(0 * one, one, None, name, SLOPE)
    weight = torch.ones(1, 1, 1, 1, device=device)
    alone = ActivationGradient(kept_of(name, x), name, SLOPE)
    geometry, size = ONE_TO_ONE.geometry, ONE_TO_ONE.size
    for fused in (
        {"prologue": alone},
        {"epilogue": alone},
        {"epilogue": NormActivationGradient(x, norm, one)},
    ):
        ours, _ = input_gradient(grad, weight, geometry, size, **fused)
        torch.testing.assert_close(ours, expected, equal_nan=True)


@IN_THE_INTERPRETER
def test_infinite_gradients_that_are_masked_reach_no_sum(device):
    grad, x, expected = at_the_kinks("relu", device)
    let_through = x > 0
    grad = grad.masked_fill(let_through, 0.5)
    expected = expected.masked_fill(let_through, 0.5)
    one = torch.ones(1, device=device)
    weight = torch.ones(1, 1, 1, 1, device=device)
    geometry, size = ONE_TO_ONE.geometry, ONE_TO_ONE.size
    norm = NormActivation(0 * one, one, None, "relu", 0.0)
    _, sums = input_gradient(
        grad, weight, geometry, size, epilogue=NormActivationGradient(x, norm, one)
    )
    alone = ActivationGradient(x.relu(), "relu", 0.0)
    of_weight, of_bias = weight_gradient(
        x, grad, geometry, weight, grad_prologue=alone, with_bias=True
    )
    assert sums.grad.sum() == of_bias == expected.sum() == 2.0
    assert sums.grad_xhat.sum() == of_weight == (expected * x).sum() == 4.0


@TRANSPOSED
def test_all_at_once(transposed, dtype, device):
    conv = case(transposed, channels=(20, 17), size=(4, 4))
    grad_output = draw(conv.output_shape, dtype, device, 0)
    weight = draw(conv.weight_shape, dtype, device, 1)
    x = draw(conv.input_shape, dtype, device, 2)
    prologue = batch_norm_gradient_of(draw(conv.output_shape, dtype, device, 3), 4)
    norm = norm_of(20, "leaky_relu", device, 8)
    epilogue = NormActivationGradient(x, norm, norm.scale.abs())
    ours, sums = input_gradient(
        grad_output, weight, conv.geometry, conv.size, prologue=prologue, epilogue=epilogue
    )
    found, _ = weight_gradient(
        x, grad_output, conv.geometry, weight, input_prologue=norm, grad_prologue=prologue
    )
    (eager, eager_weight), (exact, exact_weight) = (
        conv.gradients(
            apply(cast(norm, d), x.to(d)),
            weight.to(d),
            apply(cast(prologue, d), grad_output.to(d)),
        )
        for d in (dtype, torch.float64)
    )
    assert_as_good_as_eager(
        ours, apply(cast(epilogue, dtype), eager), apply(cast(epilogue, torch.float64), exact)
    )
    assert_as_good_as_eager(found, eager_weight, exact_weight)
    assert sums is not None


@pytest.mark.parametrize(
    "conv",
    [
        case(True, (100, 40), (1, 1), batch=3, stride=1, padding=0),
        case(False, (40, 1), (4, 4), batch=3, stride=1, padding=0),
        case(True, (20, 3), (4, 4), batch=1),
        case(False, (3, 20), (8, 8), batch=1),
        case(False, (100, 33), (1, 1), batch=5, kernel=1, stride=1, padding=0),
        case(True, (5, 7), (4, 4), kernel=2, stride=3, padding=0),
        case(True, (1, 1), (1, 1), batch=1, kernel=1, stride=1, padding=0),
        case(False, (1, 1), (1, 1), batch=1, kernel=3, stride=2, padding=1),
        case(True, (20, 5), (1, 3), batch=2, kernel=3, stride=2, padding=1),
    ],
    ids=lambda conv: f"{conv.geometry.transposed}-{conv.input_shape}-{conv.output_shape}",
)
def test_shapes_of_a_dcgan_and_smaller(conv, dtype, device):
    input = draw(conv.input_shape, dtype, device, 0)
    weight = draw(conv.weight_shape, dtype, device, 1)
    check_forward(conv, input, weight, None, Statistics())
    check_gradients(conv, dtype, device)


# Warps and stages are the compiler's, and no concern of the interpreter's.
TILES = sorted(
    {
        (row.kernel, row.tile._replace(warps=4, stages=1) if INTERPRETED else row.tile)
        for name in TABLES
        for row in rows_of(name)
    }
)


@pytest.mark.parametrize(("kernel", "tile"), TILES, ids=str)
def test_every_tile(kernel: str, tile: Tile, device, monkeypatch):
    monkeypatch.setattr(plans, "tile_for", lambda problem, capability: tile)
    monkeypatch.setattr("fastgan.kernels.convolution._PLANS", {})
    # More than one tile of all, but not of the interpreter's time.
    size = (5, 5) if tile.block_m < 64 or kernel == "scatter" else (12, 12)
    conv = case(kernel == "scatter", channels=(tile.block_k // 2 + 1, 19), size=size)
    if kernel == "weight_gradient":
        check_gradients(conv, torch.float32, device)
        return
    input = draw(conv.input_shape, torch.float32, device, 0)
    weight = draw(conv.weight_shape, torch.float32, device, 1)
    check_forward(conv, input, weight, norm_of(conv.channels[0], "relu", device, 2), Statistics())


@TRANSPOSED
def test_padding_is_zero_after_the_prologue(transposed, device):
    conv = case(transposed, channels=(3, 2), kernel=3, stride=1, padding=2 if not transposed else 0)
    zeros = torch.zeros(conv.input_shape, device=device)
    ones = torch.ones(3, device=device)
    # z(0) = 1 everywhere: outside of the image nothing must be added.
    prologue = NormActivation(0 * ones, ones, ones, "none", SLOPE)
    weight = torch.ones(conv.weight_shape, device=device)
    ours, _ = forward(zeros, weight, conv.geometry, prologue=prologue)
    assert torch.equal(ours, conv.convolve(zeros + 1, weight))


def test_bias_alone_where_no_tap_reaches(device):
    conv = case(True, channels=(3, 2), size=(3, 3), kernel=1, stride=3, padding=0)
    geometry = replace(conv.geometry, output_padding=(2, 2))
    conv = replace(conv, geometry=geometry)
    bias = torch.tensor([2.0, -3.0], device=device)
    weight = torch.ones(conv.weight_shape, device=device)
    ours, _ = forward(
        torch.ones(conv.input_shape, device=device), weight, geometry, epilogue=BiasActivation(bias)
    )
    expected = per_channel(bias).expand(ours.shape[1:]).clone().repeat(2, 1, 1, 1)
    expected[:, :, ::3, ::3] += 3
    assert torch.equal(ours, expected)


def test_statistics_of_a_mean_much_larger_than_the_spread(device):
    conv = case(False, (4, 6), (16, 16), batch=4, kernel=1, stride=1, padding=0)
    input = draw(conv.input_shape, torch.float32, device, 0)
    weight = draw(conv.weight_shape, torch.float32, device, 1)
    bias = torch.full((6,), 1e4, device=device)
    ours, statistics = forward(input, weight, conv.geometry, epilogue=Statistics(bias))
    check_statistics(statistics, ours)
    count, mean, m2 = statistics.count, statistics.mean, statistics.m2
    variance = (m2.sum(0) + (count[:, None] * (mean - mean.mean(0)) ** 2).sum(0)) / count.sum()
    exact = ours.double().var((0, 2, 3), unbiased=False)
    assert ((variance.double() - exact).abs() <= 1e-3 * exact).all()


@pytest.mark.parametrize("value", [0.1, 1e4, -12345.678])
def test_constant_channels_have_no_variance(value, dtype, device):
    if dtype == torch.float16 and abs(value) > 1e4:
        value = -1234.5
    conv = case(True, (4, 6), (5, 5), batch=3)
    input = torch.zeros(conv.input_shape, dtype=dtype, device=device)
    weight = draw(conv.weight_shape, dtype, device, 1)
    bias = torch.full((6,), value, device=device)
    ours, statistics = forward(input, weight, conv.geometry, epilogue=Statistics(bias))
    filled = statistics.count > 0
    # A mean that is off by a unit in its last place is the square of that off.
    rounding = (abs(value) * torch.finfo(torch.float32).eps) ** 2
    assert (statistics.m2 <= rounding * statistics.count[:, None]).all()
    torch.testing.assert_close(
        statistics.mean[filled], ours[0, :, 0, 0].float().expand_as(statistics.mean[filled]),
        rtol=2e-7, atol=0.0,
    )  # fmt: skip


@TRANSPOSED
def test_the_same_bits_in_every_run(transposed, dtype, device):
    conv = case(transposed, channels=(5, 20), size=(6, 6), batch=3)
    input = draw(conv.input_shape, dtype, device, 0)
    weight = draw(conv.weight_shape, dtype, device, 1)
    grad_output = draw(conv.output_shape, dtype, device, 2)
    norm = norm_of(5, "tanh", device, 3)

    def run() -> list[Tensor]:
        output, statistics = forward(
            input, weight, conv.geometry, prologue=norm, epilogue=Statistics()
        )
        grad_input, sums = input_gradient(
            grad_output,
            weight,
            conv.geometry,
            conv.size,
            epilogue=NormActivationGradient(input, norm, norm.scale),
        )
        grads = weight_gradient(input, grad_output, conv.geometry, weight, with_bias=True)
        return [output, *vars(statistics).values(), grad_input, *vars(sums).values(), *grads]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels-last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "every second element": lambda t: torch.stack([t, t + 1], dim=-1)[..., 0],
    "width before height": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "cut out": lambda t: F.pad(t, (1, 2, 1, 1))[:, :, 1:-1, 1:-2],
}


@TRANSPOSED
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [(3, 4), (20, 9)], ids=str)
def test_any_strides(channels, layout, transposed, device):
    conv = case(transposed, channels=channels, size=(4, 4))
    lay = LAYOUTS[layout]
    input, weight, grad_output, x = (
        draw(shape, torch.float32, device, seed)
        for seed, shape in enumerate(
            (conv.input_shape, conv.weight_shape, conv.output_shape, conv.output_shape)
        )
    )
    prologue = batch_norm_gradient_of(x, 5)
    expected = [
        forward(input, weight, conv.geometry)[0],
        input_gradient(grad_output, weight, conv.geometry, conv.size, prologue=prologue)[0],
        weight_gradient(input, grad_output, conv.geometry, weight, grad_prologue=prologue)[0],
    ]
    odd = replace(prologue, input=lay(x))
    found = [
        forward(lay(input), lay(weight), conv.geometry)[0],
        input_gradient(lay(grad_output), lay(weight), conv.geometry, conv.size, prologue=odd)[0],
        weight_gradient(
            lay(input), lay(grad_output), conv.geometry, lay(weight), grad_prologue=odd
        )[0],
    ]
    for ours, same in zip(found, expected, strict=True):
        assert torch.equal(ours, same)


@TRANSPOSED
def test_an_expanded_gradient(transposed, device):
    """What ``output.sum().backward()`` passes: one element, all of whose strides are 0."""
    conv = case(transposed, channels=(4, 20), size=(4, 4))
    weight = draw(conv.weight_shape, torch.float32, device, 0)
    input = draw(conv.input_shape, torch.float32, device, 1)
    one = torch.tensor(0.5, device=device).expand(conv.output_shape)
    full = one.clone(memory_format=torch.channels_last)
    prologue = ActivationGradient(draw(conv.output_shape, torch.float32, device, 2), "tanh", 0.0)
    for p in (None, prologue):
        for gradient in (
            lambda g, p=p: input_gradient(g, weight, conv.geometry, conv.size, prologue=p)[0],
            lambda g, p=p: weight_gradient(
                input, g, conv.geometry, weight, grad_prologue=p, with_bias=True
            ),
        ):
            for ours, same in zip(gradient(one), gradient(full), strict=True):
                assert torch.equal(ours, same)


def test_an_empty_batch(dtype, device):
    conv = case(True, batch=0)
    input = torch.empty(conv.input_shape, dtype=dtype, device=device)
    weight = draw(conv.weight_shape, dtype, device, 0)
    output, statistics = forward(input, weight, conv.geometry, epilogue=Statistics())
    assert output.shape == conv.output_shape
    assert statistics.count.sum() == 0
    assert input_gradient(output, weight, conv.geometry, conv.size)[0].shape == conv.input_shape
    grad_weight, grad_bias = weight_gradient(input, output, conv.geometry, weight, with_bias=True)
    assert not grad_weight.any()
    assert not grad_bias.any()


def test_a_vector_in_half_precision_is_read_as_it_is(device):
    conv = case(False)
    input = draw(conv.input_shape, torch.float16, device, 0)
    weight = draw(conv.weight_shape, torch.float16, device, 1)
    check_forward(conv, input, weight, None, BiasActivation(draw((7,), torch.float16, device, 2)))


def test_gradients_of_halves_are_not_rounded_where_float32_is_asked_for(device):
    conv = case(False, channels=(17, 18), size=(8, 8))
    input, weight, grad_output = (
        draw(shape, torch.float16, device, seed)
        for seed, shape in enumerate((conv.input_shape, conv.weight_shape, conv.output_shape))
    )
    ours = weight_gradient(
        input, grad_output, conv.geometry, weight, with_bias=True, dtype=torch.float32
    )
    geometry = conv.geometry
    exact = (
        torch.nn.grad.conv2d_weight(
            input.double(),
            weight.shape,
            grad_output.double(),
            geometry.stride,
            geometry.padding,
            geometry.dilation,
        ),
        grad_output.double().sum((0, 2, 3)),
    )
    for found, truth in zip(ours, exact, strict=True):
        assert found.dtype == torch.float32
        assert (found - truth).abs().max() <= 1e-5 * truth.abs().max()


def test_offsets_beyond_32_bits(device, monkeypatch):
    """Samples further apart than 2^31 elements, and positions numbered in 64 bits.

    The memory between them is asked for, but never touched.
    """
    conv = case(False, channels=(17, 18), size=(4, 4))
    apart = 2**31 + 64
    storage = torch.empty(apart + 2048, dtype=torch.float16, device=device)

    def far(tensor: Tensor) -> Tensor:
        _, c, _, w = tensor.shape
        return storage.as_strided(tensor.shape, (apart, 1, c * w, c)).copy_(tensor)

    input = draw(conv.input_shape, torch.float16, device, 0)
    weight = draw(conv.weight_shape, torch.float16, device, 1)
    grad_output = draw(conv.output_shape, torch.float16, device, 2)
    expected = [
        forward(input, weight, conv.geometry)[0],
        input_gradient(grad_output, weight, conv.geometry, conv.size)[0],
        *weight_gradient(input, grad_output, conv.geometry, weight, with_bias=True),
    ]
    monkeypatch.setattr(plans, "_position_type", lambda positions: plans.tl.int64)
    monkeypatch.setattr("fastgan.kernels.convolution._PLANS", {})
    found = [forward(far(input), weight, conv.geometry)[0]]
    distant = far(grad_output)
    found += [
        input_gradient(distant, weight, conv.geometry, conv.size)[0],
        *weight_gradient(input, distant, conv.geometry, weight, with_bias=True),
    ]
    found.append(weight_gradient(far(input), grad_output, conv.geometry, weight)[0])
    for ours, same in zip(found, [*expected, expected[2]], strict=True):
        assert torch.equal(ours, same)


def test_errors_of_a_bias_gradient_do_not_grow_with_the_positions(device, monkeypatch):
    """One split of 2^17 positions, of terms alike: where a sum grows, all roundings go one way."""
    monkeypatch.setattr(plans, "splits_of", lambda tiles, steps, capability: 1)
    generator = torch.Generator().manual_seed(0)
    of_channels = torch.rand((1, 6, 1, 1), generator=generator).to(device) + 1
    grad_output = of_channels.expand(2, 6, 256, 256).contiguous(memory_format=torch.channels_last)
    loaded = kernel_convolution._load(grad_output, None)
    exact = 2**17 * of_channels.double().flatten()
    error = (kernel_convolution._channel_sums(loaded, torch.float32).double() / exact - 1).abs()
    assert (error <= 26 * 2.0**-24).all(), error * 2**24
