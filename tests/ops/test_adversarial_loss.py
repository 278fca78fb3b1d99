"""The adversarial losses against float64 formulas and autograd, on the CPU and on a GPU, and their
CUDA kernels on the host."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from host_harness import SCHEDULES, Case, HostHarness
from torch import Tensor

from fastgan import losses
from fastgan.ops.adversarial_loss import TERMS, adversarial_loss

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
ZERO = torch.zeros((), dtype=torch.float64)
#: By other functions than the op's: log(1 + e^x), and selected margins.
FORMULAS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "logistic": (
        lambda a: torch.logaddexp(-a, ZERO.to(a)),
        lambda b: torch.logaddexp(b, ZERO.to(b)),
    ),
    "hinge": (lambda a: torch.where(a >= 1, 0, 1 - a), lambda b: torch.where(b <= -1, 0, 1 + b)),
    "least_squares": (lambda a: 0.5 * (1 - a) ** 2, lambda b: 0.5 * b**2),
    "wasserstein": (lambda a: -a, lambda b: b),
}


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def expected(loss: str, real: Tensor, fake: Tensor | None) -> Tensor:
    as_real, as_fake = FORMULAS[loss]
    value = as_real(real).mean()
    return value if fake is None else value + as_fake(fake).mean()


def units(found: Tensor, exact: Tensor) -> float:
    """The error in units of the last place of the largest value, at least of a normal one."""
    info = torch.finfo(found.dtype)
    scale = info.eps * max(info.tiny, float(exact.abs().max()))
    return float((found.double().cpu() - exact).abs().max()) / scale


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", TERMS)
def test_loss_means_and_gradients_are_exact_to_rounding(
    loss: str, dtype: torch.dtype, device: torch.device
) -> None:
    wide = torch.promote_types(dtype, torch.float32)
    # One score each; maps of other sizes, more than a block; one alone; more than a CPU's tile.
    for number, (first, second) in enumerate(
        [((64, 1, 1, 1), (64, 1, 1, 1)), ((3, 5, 9, 7), (2, 400)), ((1,), None), ((40000,), None)]
    ):
        real = drawn(first, number, dtype).to(device).requires_grad_()
        fake = None if second is None else drawn(second, 9, dtype).to(device).requires_grad_()
        if len(first) == 4:
            real = real.contiguous(memory_format=torch.channels_last).detach().requires_grad_()
        squash = number % 2 == 0
        value, shown = adversarial_loss(loss, real, fake, squash=squash)
        given = [real] if fake is None else [real, fake]
        scale = torch.tensor(0.375, dtype=wide, device=device)
        found = torch.autograd.grad(value, given, scale)

        exact = [scores.detach().double().cpu().requires_grad_() for scores in given]
        right = expected(loss, exact[0], exact[1] if fake is not None else None)
        gradients = torch.autograd.grad(0.375 * right, exact)
        assert (value.dtype, value.shape, shown.dtype) == (wide, (), wide)
        assert not shown.requires_grad
        # Means of terms of both signs: relative to the terms.
        size = max(float(FORMULAS[loss][0](scores.detach()).abs().mean()) for scores in exact)
        assert abs(float(value.detach()) - float(right.detach())) <= 16 * torch.finfo(
            wide
        ).eps * max(1, size)
        means = [(torch.sigmoid(s) if squash else s).mean() for s in exact]
        means += [ZERO] * (2 - len(means))
        means = torch.stack([*means, means[0] - means[1]])
        assert (shown.double().cpu() - means).abs().max() <= 16 * torch.finfo(wide).eps * 3
        for gradient, correct, scores in zip(found, gradients, given, strict=True):
            assert (gradient.dtype, gradient.shape) == (dtype, scores.shape)
            assert units(gradient, correct) <= (8 if dtype == wide else 1)


@pytest.mark.parametrize("loss", TERMS)
def test_derivatives_of_any_order(loss: str) -> None:
    real, fake = (drawn((5, 2), seed, torch.float64).requires_grad_() for seed in (1, 2))

    def both(real: Tensor, fake: Tensor) -> Tensor:
        return adversarial_loss(loss, real, fake)[0]

    # Hinges and lines have second derivatives of zero, which gradgradcheck can't ask for.
    assert torch.autograd.gradcheck(both, (real, fake))
    (first,) = torch.autograd.grad(both(real, real * 2), real, create_graph=True)
    (right,) = torch.autograd.grad(expected(loss, real, real * 2), real, create_graph=True)
    torch.testing.assert_close(first, right)
    if loss in ("logistic", "least_squares"):
        assert torch.autograd.gradgradcheck(both, (real, fake))


@pytest.mark.parametrize("loss", TERMS)
def test_infinities_and_what_is_not_a_number(loss: str) -> None:
    for value in (torch.inf, -torch.inf, torch.nan, 1e4, -1e4):
        real, fake = (torch.tensor([0.5, value], requires_grad=True) for _ in range(2))
        found, _ = adversarial_loss(loss, real, fake)
        gradients = torch.autograd.grad(found, (real, fake))
        exact = [scores.detach().double().requires_grad_() for scores in (real, fake)]
        right = expected(loss, *exact)
        torch.testing.assert_close(found.double(), right, equal_nan=True)
        if value == value:
            for gradient, correct in zip(gradients, torch.autograd.grad(right, exact), strict=True):
                torch.testing.assert_close(
                    gradient.double(),
                    correct.nan_to_num(-0.5, -0.5, -0.5) if loss == "logistic" else correct,
                    rtol=1e-6,
                    atol=1e-6,
                )


def test_named_losses_and_their_means_are_the_papers() -> None:
    real, fake = drawn((6, 1), 3, torch.bfloat16), drawn((6, 1), 4, torch.bfloat16)
    a, b = real.double(), fake.double()
    for name, (discriminators, generators) in losses.PLAYERS_LOSSES.items():
        value, means = losses.loss_and_means(name, real, fake)
        assert torch.equal(value, discriminators(real, fake))
        shown = [s.sigmoid() if name == "bce" else s for s in (a, b)]
        right = torch.stack([shown[0].mean(), shown[1].mean(), shown[0].mean() - shown[1].mean()])
        torch.testing.assert_close(means.double(), right, rtol=1e-6, atol=1e-6)
        if name == "relativistic":
            continue
        # A generator's is a real image's term, but the hinge's, which is a line.
        column = {"bce": "logistic", "least-squares": "least_squares"}.get(name, "wasserstein")
        right = pytest.approx(float(expected(column, b, None)), rel=1e-6)
        assert float(generators(fake)) == right
        assert float(generators(fake.repeat(1000, 1))) == right


def test_kernels_are_right_on_the_host(harness: HostHarness) -> None:
    cases, exact = [], []
    for number, dtype in enumerate(DTYPES):
        wide = torch.promote_types(dtype, torch.float32)
        for code, loss in enumerate(TERMS):
            real, fake = drawn((300,), number, dtype), drawn((7,), code, dtype)
            alone = number == code
            given = {"real": real} if alone else {"real": real, "fake": fake}
            wides = [scores.double().requires_grad_() for scores in given.values()]
            value = expected(loss, wides[0], None if alone else wides[1])
            means = [s.detach().sigmoid().mean() for s in wides] + [ZERO] * alone
            cases.append(
                Case(
                    "adversarial_loss",
                    {
                        **given,
                        "shown": torch.empty(3, dtype=wide),
                        "value": torch.empty(1, dtype=wide),
                    },
                    integers={"loss": code, "squash": 1},
                    uninitialised=frozenset({"shown", "value"}),
                    label=f"{loss} of {dtype}",
                )
            )
            exact.append(
                {
                    "value": value.detach().view(1),
                    "shown": torch.stack([*means, means[0] - means[1]]),
                }
            )
            gradients = dict(
                zip(("grad_real", "grad_fake"), torch.autograd.grad(3 * value, wides), strict=False)
            )
            rooms = {
                name: torch.empty(len(right), dtype=dtype) for name, right in gradients.items()
            }
            cases.append(
                Case(
                    "adversarial_gradients",
                    {**given, **rooms, "grad_output": torch.full((1,), 1.5, dtype=wide)},
                    numbers={"scale": 2.0},
                    integers={"loss": code},
                    uninitialised=frozenset(rooms),
                    label=f"gradients of {loss} of {dtype}",
                )
            )
            exact.append(gradients)
    results = harness.kernels("adversarial_loss").check(cases, schedules=SCHEDULES[-1:])
    for case, result, right in zip(cases, results, exact, strict=True):
        assert result.error == "", case.label
        for name, value in right.items():
            found = result.tensors[name]
            error = (found.double() - value).abs().max()
            bound = 16 * torch.finfo(found.dtype).eps * max(1.0, float(value.abs().max()))
            assert error <= bound, (case.label, name)
