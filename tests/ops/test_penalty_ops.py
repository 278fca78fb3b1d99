"""torch.ops.fastgan.penalty_*: against float64 formulas and autograd, on the CPU and on a GPU, and
their CUDA kernels on the host."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from host_harness import Case, HostHarness
from torch import Tensor

from fastgan.ops import check_op, op_paths, penalty_mix, penalty_norm, penalty_tangent

ops = torch.ops.fastgan
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
PAIRS = [(d, d) for d in DTYPES] + [
    pair
    for half in (torch.float16, torch.bfloat16)
    for pair in ((torch.float32, half), (half, torch.float32))
]
NAMES = [row.op for row in op_paths() if row.op.startswith("penalty_") and row.device == "cpu"]
#: Of results of float32 arithmetic; the dtype they are stored in adds its own rounding.
ARITHMETIC = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-6, torch.bfloat16: 2e-6}


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def assert_near(found: Tensor, exact: Tensor, scale: float = 1.0) -> None:
    """Within the arithmetic's rounding, and that of being stored as ``found`` is."""
    tolerance = ARITHMETIC[found.dtype] + torch.finfo(found.dtype).eps
    error = (found.double() - exact.double()).abs().max()
    assert error <= scale * tolerance * max(1.0, float(exact.abs().max())), float(error)


# --- Points and tangents --------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "mixed", "strided", "vectors"])
@pytest.mark.parametrize(("source", "target"), PAIRS, ids=str)
def test_mix_writes_fakes_reals_and_points(
    source: torch.dtype, target: torch.dtype, layout: str, device: torch.device
) -> None:
    shape = (5, 7) if layout == "vectors" else (5, 3, 4, 6)
    real, fake = (random(*shape, seed=s, dtype=source).to(device) for s in (1, 2))
    batch = torch.full((15, *shape[1:]), torch.nan, dtype=target, device=device)
    if layout in ("channels_last", "mixed"):
        batch = batch.contiguous(memory_format=torch.channels_last)
    if layout == "channels_last":
        real, fake = (t.contiguous(memory_format=torch.channels_last) for t in (real, fake))
    if layout == "strided":
        real = real.repeat_interleave(2, 3)[:, :, :, ::2]
        fake = fake.transpose(2, 3).contiguous().transpose(2, 3)
    eps = torch.rand(5, generator=torch.Generator().manual_seed(3), dtype=wide(source)).to(device)
    ops.penalty_mix_(batch, real, fake, eps)
    r, f = real.double(), fake.double()
    shares = eps.double().view(-1, *[1] * (len(shape) - 1))
    fakes, reals, points = batch.unflatten(0, (3, 5)).unbind(0)
    assert torch.equal(fakes, fake.to(target))
    assert torch.equal(reals, real.to(target))
    assert_near(points, shares * r + (1 - shares) * f, 4)


@pytest.mark.parametrize("asked", [(10.0, 1.0, False), (3.0, 1.5, True), (2.5, 0.0, False)])
@pytest.mark.parametrize(("source", "target"), PAIRS, ids=str)
def test_tangent_is_the_penaltys_derivative(
    source: torch.dtype, target: torch.dtype, asked: tuple[float, float, bool], device: torch.device
) -> None:
    weight, aim, one_sided = asked
    gradient = 0.1 * random(6, 3, 5, 7, seed=4)
    gradient[0] *= 100
    gradient[1] = 0
    gradient = gradient.to(source).to(device).contiguous(memory_format=torch.channels_last)
    tangent = torch.empty_like(gradient, dtype=target)
    norms, value = (torch.empty(n, dtype=wide(source), device=device) for n in (6, 1))
    ops.penalty_tangent_(gradient, tangent, norms, value, weight, aim, one_sided)

    exact = gradient.double().requires_grad_()
    squares = exact.square().sum((1, 2, 3))
    norm = torch.where(squares == 0, 0, squares.where(squares != 0, 1).sqrt())
    excess = (norm - aim).relu() if one_sided else norm - aim
    penalty = weight * (squares if aim == 0 else excess.square()).mean()
    (derivative,) = torch.autograd.grad(penalty, exact)
    assert_near(norms, norm.detach(), 2)
    assert_near(value, penalty.detach().view(1), 4)
    assert_near(tangent, 6 * derivative, 8)
    assert torch.equal(tangent[1], torch.zeros_like(tangent[1]))


def test_tangent_may_be_written_over_the_gradient(device: torch.device) -> None:
    gradient = random(4, 1000, dtype=torch.float32).to(device)
    apart, norms, value = torch.empty_like(gradient), gradient.new_empty(4), gradient.new_empty(1)
    ops.penalty_tangent_(gradient, apart, norms, value, 10.0, 1.0, False)
    ops.penalty_tangent_(gradient, gradient, norms, value, 10.0, 1.0, False)
    assert torch.equal(gradient, apart)


@pytest.mark.parametrize("large", [1e20, torch.inf, torch.nan])
def test_what_is_not_a_number_stays_none(large: float) -> None:
    gradient = torch.ones(3, 2)
    gradient[1, 0] = large
    tangent, norms, value = torch.empty(3, 2), torch.empty(3), torch.empty(1)
    ops.penalty_tangent_(gradient, tangent, norms, value, 10.0, 1.0, True)
    assert norms[1].isnan() == torch.tensor(large).isnan()
    assert not value.isfinite() or large == 1e20
    assert tangent[0].isfinite().all()


# --- Norms ----------------------------------------------------------------------------------------


def group_norm(x: Tensor, groups: int, weight: Tensor | None, eps: float) -> Tensor:
    """In elementary functions, so that autograd's derivatives are exact in every order."""
    grouped = x.reshape(x.size(0), groups, -1)
    centred = grouped - grouped.mean(2, keepdim=True)
    result = centred / (centred.square().mean(2, keepdim=True) + eps).sqrt()
    result = result.reshape(x.shape)
    return result if weight is None else result * weight.view(-1, *[1] * (x.dim() - 2))


class Expected:
    """xhat and everything else by autograd, in float64, of maps as the op gets them."""

    def __init__(
        self, x: Tensor, d: Tensor, u: Tensor, weight: Tensor | None, groups: int, eps: float
    ) -> None:
        x, d, u = (t.double().detach().contiguous() for t in (x, d, u))
        w = torch.ones(x.size(1), dtype=torch.float64, device=x.device)
        w = w if weight is None else weight.detach().double()
        x.requires_grad_()
        w.requires_grad_()
        seed = torch.zeros_like(x, requires_grad=True)
        output = group_norm(x, groups, w, eps)
        self.xhat = group_norm(x, groups, None, eps).detach()
        self.output = output.detach()
        (back,) = torch.autograd.grad(output, x, seed, create_graph=True)
        (tangent,) = torch.autograd.grad(back, seed, u, create_graph=True)
        self.tangent = tangent.detach()
        self.signal, self.of_values = torch.autograd.grad(output, (x, w), d, retain_graph=True)
        self.curvature, self.of_tangents = torch.autograd.grad(tangent, (x, w), d)
        self.of_bias = d.reshape(*d.shape[:2], -1).sum((0, 2))


def run_ops(
    x: Tensor, d: Tensor, u: Tensor, weight: Tensor | None, groups: int, eps: float
) -> dict[str, Tensor]:
    found = {name: torch.empty_like(x) for name in ("xhat", "output", "signal", "tangent")}
    found["curvature"] = torch.empty_like(x)
    n, c = x.shape[:2]
    invstd = torch.empty(n, groups, dtype=wide(x.dtype), device=x.device)
    bias = None if weight is None else torch.zeros_like(weight)
    sums = invstd.new_empty(3, n, c)
    means = invstd.new_empty(2, n, groups)
    ops.penalty_norm_forward_(x, weight, bias, groups, eps, found["xhat"], invstd, found["output"])
    ops.penalty_norm_project_(d, found["xhat"], invstd, weight, groups, False, found["signal"])
    ops.penalty_norm_project_(u, found["xhat"], invstd, weight, groups, True, found["tangent"])
    ops.penalty_norm_curvature_(d, u, found["xhat"], invstd, weight, groups, found["curvature"])
    ops.penalty_norm_gradients_(d, u, found["xhat"], invstd, groups, sums[0], sums[1], means)
    found["of_tangents"] = sums[0].sum(0)
    ops.penalty_norm_gradients_(d, None, found["xhat"], invstd, groups, sums[2], sums[1], means)
    found["of_values"], found["of_bias"] = sums[2].sum(0), sums[1].sum(0)
    return found


def laid_out(maps: Tensor, channels_last: bool) -> Tensor:
    if not channels_last:
        return maps.contiguous()
    return maps.movedim(1, -1).contiguous().movedim(-1, 1)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    n=st.integers(1, 3),
    groups=st.integers(1, 4),
    width=st.integers(1, 20),
    positions=st.sampled_from([(), (1,), (7,), (3, 5), (13, 11), (2, 3, 2)]),
    channels_last=st.booleans(),
    weighted=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_norm_ops_are_what_autograd_says(
    n: int,
    groups: int,
    width: int,
    positions: tuple[int, ...],
    channels_last: bool,
    weighted: bool,
    seed: int,
) -> None:
    shape = (n, groups * width, *positions)
    x, d, u = (laid_out(m, channels_last) for m in random(3, *shape, seed=seed).unbind(0))
    x = 2 * x + 3
    weight = random(groups * width, seed=seed + 1) if weighted else None
    eps = 0.1  # a group of one element has no deviation
    expected = Expected(x, d, u, weight, groups, eps)
    for name, found in run_ops(x, d, u, weight, groups, eps).items():
        exact = getattr(expected, name)
        error = (found - exact).abs().max()
        assert error <= 1e-11 * max(1.0, float(exact.abs().max())), (name, float(error))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("groups", [1, 4, 24])
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_norm_ops_are_as_exact_as_their_dtype(
    dtype: torch.dtype, groups: int, channels_last: bool, device: torch.device
) -> None:
    maps = random(3, 2, 24, 9, 10, seed=5).to(dtype).to(device)
    x, d, u = (laid_out(m, channels_last) for m in maps.unbind(0))
    weight = random(24, seed=6, dtype=torch.float32).to(device)
    found = run_ops(x, d, u, weight, groups, 1e-5)
    expected = Expected(x, d, u, weight, groups, 1e-5)
    for name, value in found.items():
        # xhat is stored in the dtype, and what is computed with it has its rounding.
        exact = getattr(expected, name)
        error = (value.double() - exact).abs().max() / exact.abs().max()
        assert error <= 8 * torch.finfo(dtype).eps + 1e-6, (name, float(error))


def test_a_mean_far_from_zero_cancels_nothing(device: torch.device) -> None:
    x, d, u = random(3, 2, 6, 8, 8, seed=7).unbind(0)
    x, d, u = (m.float().to(device) for m in (x + 1e3, d + 50, u + 50))
    found = run_ops(x, d, u, None, 2, 1e-5)
    expected = Expected(x, d, u, None, 2, 1e-5)
    point = x.clone().requires_grad_()
    output = torch.nn.functional.group_norm(point, 2)
    (signal,) = torch.autograd.grad(output, point, d, create_graph=True)
    (curvature,) = torch.autograd.grad(signal, point, u)
    torchs = {"output": output.detach(), "signal": signal.detach(), "curvature": curvature}
    for name, value in torchs.items():
        exact = getattr(expected, name)
        errors = [float((f.double() - exact).norm() / exact.norm()) for f in (found[name], value)]
        assert errors[0] <= 2 * errors[1] + 1e-6, (name, errors)
    # E[x^2] - E[x]^2 would have lost the variance, which is 1, beside a mean square of 10^6.
    assert (found["xhat"].double() - expected.xhat).abs().max() < 2e-4


def test_norm_outputs_may_be_where_inputs_are(device: torch.device) -> None:
    x, d, u = (random(2, 8, 5, 5, seed=s, dtype=torch.float32).to(device) for s in (1, 2, 3))
    weight = random(8, seed=4, dtype=torch.float32).to(device)
    apart = run_ops(x, d, u, weight, 2, 1e-5)
    invstd = x.new_empty(2, 2)
    output = torch.empty_like(x)
    ops.penalty_norm_forward_(x, weight, None, 2, 1e-5, x, invstd, output)
    assert torch.equal(x, apart["xhat"])
    for grad, tangent, name in ((d, False, "signal"), (u, True, "tangent")):
        ops.penalty_norm_project_(grad, x, invstd, weight, 2, tangent, grad)
        assert torch.equal(grad, apart[name])


# --- What all ops have in common ------------------------------------------------------------------


def arguments(name: str, device: torch.device | str = "cpu") -> tuple[Any, ...]:
    x, d, u, y = (random(2, 4, 3, 3, seed=s, dtype=torch.float32).to(device) for s in range(4))
    x = group_norm(x, 2, None, 1e-5)  # as xhat is
    vector, invstd = torch.ones(4, device=device), torch.ones(2, 2, device=device)
    sums = torch.empty(2, 4, device=device)
    return {
        "penalty_mix_": (
            torch.empty(6, 4, 3, 3, device=device),
            x,
            d,
            torch.ones(2, device=device),
        ),
        "penalty_tangent_": (x, y, vector[:2], vector[2:3], 10.0, 1.0, False),
        "penalty_norm_forward_": (x, vector, None, 2, 1e-5, d, invstd, y),
        "penalty_norm_project_": (d, x, invstd, vector, 2, True, y),
        "penalty_norm_curvature_": (d, u, x, invstd, vector, 2, y),
        "penalty_norm_gradients_": (d, u, x, invstd, 2, sums, sums + 1, torch.empty(2, 2, 2).to(d)),
    }[name]


@pytest.mark.parametrize("name", NAMES)
def test_check_finds_nothing_wrong(name: str, device: torch.device) -> None:
    check_op(name, device)


@pytest.mark.parametrize("name", NAMES)
def test_where_autograd_would_record_an_op_it_raises(name: str) -> None:
    given = arguments(name)
    for index, argument in enumerate(given):
        if isinstance(argument, Tensor):
            recorded = list(given)
            recorded[index] = argument.detach().clone().requires_grad_()
            with pytest.raises(RuntimeError, match="no gradient"):
                getattr(ops, name)(*recorded)
            with torch.no_grad():
                getattr(ops, name)(*recorded)


@pytest.mark.parametrize("name", NAMES)
def test_writes_are_counted(name: str) -> None:
    given = arguments(name)
    before = [a._version if isinstance(a, Tensor) else None for a in given]
    getattr(ops, name)(*given)
    op = getattr(ops, name).default
    for argument, description, version in zip(given, op._schema.arguments, before, strict=True):
        if isinstance(argument, Tensor):
            assert (argument._version > version) == description.is_write, description.name


@pytest.mark.parametrize("name", NAMES)
def test_ops_compile_as_one_graph(name: str) -> None:
    op = getattr(ops, name)
    given = arguments(name)
    again = [a.clone() if isinstance(a, Tensor) else a for a in given]
    op(*given)
    torch.compile(lambda *args: op(*args), backend="aot_eager", fullgraph=True)(*again)
    for a, b in zip(given, again, strict=True):
        if isinstance(a, Tensor) and name != "penalty_norm_gradients_":
            torch.testing.assert_close(a, b)


PLAIN: dict[str, Callable[..., None]] = {
    "penalty_mix_": penalty_mix.penalty_mix_,
    "penalty_tangent_": penalty_tangent.penalty_tangent_,
    "penalty_norm_forward_": penalty_norm.penalty_norm_forward_,
    "penalty_norm_project_": penalty_norm.penalty_norm_project_,
    "penalty_norm_curvature_": penalty_norm.penalty_norm_curvature_,
    "penalty_norm_gradients_": penalty_norm.penalty_norm_gradients_,
}


@pytest.mark.parametrize("name", NAMES)
def test_the_fallback_in_plain_pytorch_agrees(name: str) -> None:
    given = [a.double() if isinstance(a, Tensor) else a for a in arguments(name)]
    again = [a.clone() if isinstance(a, Tensor) else a for a in given]
    getattr(ops, name)(*given)
    PLAIN[name](*again)
    op = getattr(ops, name).default
    for a, b, description in zip(given, again, op._schema.arguments, strict=True):
        if isinstance(a, Tensor) and description.name != "means":
            # float32 numbers were normalised, so their mean is zero to 7 digits.
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", ["dtype", "shape", "gaps"])
def test_unfit_tensors_are_refused_by_name(name: str, wrong: str) -> None:
    given = arguments(name)
    for index, description in enumerate(getattr(ops, name).default._schema.arguments):
        argument = given[index]
        if not isinstance(argument, Tensor) or (
            name == "penalty_mix_" and wrong == "gaps" and description.name in ("real", "fake")
        ):
            continue
        unfit = {
            "dtype": lambda a: a.long(),
            "shape": lambda a: torch.zeros(*a.shape[:-1], a.shape[-1] + 1),
            "gaps": lambda a: torch.zeros(*a.shape, 2)[..., 0],
        }[wrong](argument)
        if unfit.numel() == 1 and wrong == "gaps":
            continue  # one number has no gaps
        changed = [*given[:index], unfit, *given[index + 1 :]]
        with pytest.raises(RuntimeError, match=f"fastgan::{name}: "):
            getattr(ops, name)(*changed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_ops_run_in_the_current_stream_and_in_cuda_graphs(name: str) -> None:
    given = arguments(name, "cuda")
    expected = [a.clone() if isinstance(a, Tensor) else a for a in given]
    getattr(ops, name)(*expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        getattr(ops, name)(*given)
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(given, expected, strict=True):
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b)


# --- The CUDA kernels, on the host ----------------------------------------------------------------


def test_kernels_of_points_and_tangents_on_the_host(harness: HostHarness) -> None:
    cases = []
    for number, (source, target) in enumerate(PAIRS):
        real, fake = (random(3, 5, 7, seed=number + s, dtype=source) for s in (0, 50))
        if number % 2:
            fake = fake.transpose(1, 2).contiguous().transpose(1, 2)
        cases.append(
            Case(
                "mix",
                {
                    "real": real,
                    "fake": fake,
                    "eps": random(3, seed=number, dtype=wide(source)).sigmoid(),
                    "batch": torch.empty(9, 35, dtype=target),
                },
                uninitialised=frozenset({"batch"}),
                label=f"mix of {source} into {target}",
            )
        )
    for number, (source, target) in enumerate(PAIRS):
        gradient = random(3, 301, seed=number, dtype=source)
        gradient[1] = 0
        cases.append(
            Case(
                "penalty_tangent",
                {
                    "gradient": gradient,
                    "tangent": torch.empty(3, 301, dtype=target),
                    "norms": torch.empty(3, dtype=wide(source)),
                    "value": torch.empty(1, dtype=wide(source)),
                },
                numbers={"weight": 10.0, "target": 1.0},
                integers={"one_sided": number % 2},
                uninitialised=frozenset({"tangent", "norms", "value"}),
                label=f"tangent of {source} into {target}",
            )
        )
    results = harness.kernels("penalty_points").check(cases)
    for case, result in zip(cases, results, strict=True):
        assert result.error == ""
        given, found = case.tensors, result.tensors
        if case.entry == "mix":
            shares = given["eps"].view(-1, 1, 1).double()
            points = shares * given["real"].double() + (1 - shares) * given["fake"].double()
            batch = found["batch"].view(3, 3, 5, 7)
            assert torch.equal(batch[0], given["fake"].to(batch.dtype))
            assert torch.equal(batch[1], given["real"].to(batch.dtype))
            assert_near(batch[2], points, 4)
            continue
        norms = given["gradient"].double().norm(dim=1)
        excess = norms - 1
        excess = excess.relu() if case.integers["one_sided"] else excess
        factor = torch.where(norms == 0, 0, 20 * excess / norms)
        assert_near(found["norms"], norms, 4)
        assert_near(found["value"], 10 * excess.square().mean().view(1), 8)
        assert_near(found["tangent"], factor.view(-1, 1) * given["gradient"].double(), 8)


def test_kernels_of_norms_on_the_host(harness: HostHarness) -> None:
    cases = []
    exact = []
    for number, (dtype, channels_last, groups) in enumerate(
        itertools.product((torch.float64, torch.bfloat16), (False, True), (1, 12))
    ):
        # 36 channels by 15 positions: more than a block's threads, and no multiple of them.
        maps = random(3, 2, 36, 15, seed=number).to(dtype)
        x, d, u = (laid_out(m, channels_last) for m in maps.unbind(0))
        weight = random(36, seed=number, dtype=wide(dtype))
        expected = Expected(x, d, u, weight, groups, 0.01)
        grouped = x.double().contiguous().reshape(2, groups, -1)
        invstd = (grouped.var(2, correction=0) + 0.01).rsqrt().to(wide(dtype))
        xhat = laid_out(expected.xhat.to(dtype), channels_last)
        common = {"xhat": xhat, "invstd": invstd}
        integers = {"groups": groups}
        label = f"{dtype}, channels-last {channels_last}, {groups} groups"

        def add(entry: str, tensors: dict[str, Tensor], written: str, /, **more: Any) -> None:
            integers_of = {**integers, **more}  # noqa: B023
            names = frozenset(written.split())
            cases.append(
                Case(
                    entry,
                    {**common, **tensors},  # noqa: B023
                    numbers={"eps": 0.01},
                    integers=integers_of,
                    uninitialised=names,
                    label=f"{entry}, {label}",  # noqa: B023
                )
            )

        def out() -> Tensor:
            return torch.empty_like(x)  # noqa: B023

        add("norm_forward", {"input": x, "weight": weight, "output": out()}, "xhat invstd output")
        exact.append({"xhat": expected.xhat, "output": expected.output})
        add("norm_project", {"grad": d, "weight": weight, "output": out()}, "output", is_tangent=0)
        exact.append({"output": expected.signal})
        add("norm_project", {"grad": u, "weight": weight, "output": out()}, "output", is_tangent=1)
        exact.append({"output": expected.tangent})
        add(
            "norm_curvature", {"grad": d, "tangent": u, "weight": weight, "output": out()}, "output"
        )
        exact.append({"output": expected.curvature})
        for tangent, sums in (({"tangent": u}, expected.of_tangents), ({}, expected.of_values)):
            buffers = {
                "weight_grad": invstd.new_empty(2, 36),
                "bias_grad": invstd.new_empty(2, 36),
                "means": invstd.new_empty(2, 2, groups),
            }
            add("norm_gradients", {"grad": d, **tangent, **buffers}, " ".join(buffers))
            exact.append({"weight_grad": sums, "bias_grad": expected.of_bias})
    results = harness.kernels("penalty_norm").check(cases)
    for case, result, expected_of in zip(cases, results, exact, strict=True):
        assert result.error == ""
        for name, value in expected_of.items():
            found = result.tensors[name]
            found = found.sum(0) if name.endswith("_grad") else found
            eps = torch.finfo(case.tensors["xhat"].dtype).eps
            error = (found.double() - value).abs().max() / value.abs().max()
            assert error <= 16 * eps + (1e-6 if eps > 1e-10 else 1e-12), (case.label, name)
