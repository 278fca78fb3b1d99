"""Losses against their formulas in numpy, steps against gradients worked out by hand."""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from fastgan import losses, reference

Array = npt.NDArray[np.float64]


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def draw_logits(seed: int) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    return random.normal(scale=3, size=random.integers(1, 9)), random.normal(size=5)


@pytest.mark.parametrize("seed", range(4))
def test_discriminator_losses_are_minus_the_value_function(seed: int) -> None:
    real, fake = draw_logits(seed)
    value = np.log(sigmoid(real)).mean() + np.log(1 - sigmoid(fake)).mean()
    real_t, fake_t = torch.tensor(real), torch.tensor(fake)
    for loss in (
        reference.discriminator_loss(real_t.sigmoid(), fake_t.sigmoid()),
        reference.discriminator_loss_with_logits(real_t, fake_t),
        losses.bce_discriminator_loss(real_t, fake_t),
    ):
        assert loss.item() == pytest.approx(-value, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("objective", ["non-saturating", "minimax"])
def test_generator_losses_are_the_papers(seed: int, objective: str) -> None:
    _, fake = draw_logits(seed)
    expected = {
        "non-saturating": -np.log(sigmoid(fake)).mean(),
        "minimax": np.log(1 - sigmoid(fake)).mean(),
    }[objective]
    logits = torch.tensor(fake)
    for loss in (
        reference.generator_loss(logits.sigmoid(), objective=objective),
        reference.generator_loss_with_logits(logits, objective=objective),
        losses.bce_generator_loss(logits, objective=objective),  # type: ignore[arg-type]
    ):
        assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_only_the_minimax_generator_saturates_against_a_sure_discriminator() -> None:
    for function in (losses.bce_generator_loss, reference.generator_loss_with_logits):
        slopes = {}
        for objective in ("non-saturating", "minimax"):
            logit = torch.tensor([-15.0], dtype=torch.float64, requires_grad=True)
            function(logit, objective=objective).backward()  # type: ignore[arg-type]
            assert logit.grad is not None
            slopes[objective] = logit.grad.item()
        assert slopes["non-saturating"] == pytest.approx(-1, abs=1e-5)
        assert slopes["minimax"] == pytest.approx(-sigmoid(np.array(-15.0)), rel=1e-6)


def test_logits_stay_finite_where_probabilities_round_to_zero() -> None:
    sure = torch.tensor([-200.0])
    assert losses.bce_generator_loss(sure).item() == 200.0
    assert losses.bce_discriminator_loss(sure, -sure).item() == 400.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_half_precision_scores_are_taken_in_float32(dtype: torch.dtype) -> None:
    # Half way between two neighbours, which the narrow format itself cannot express.
    spacing = torch.finfo(dtype).eps
    loss = losses.wasserstein_generator_loss(torch.tensor([1.0, 1.0 + spacing], dtype=dtype))
    assert loss.item() == -(1.0 + spacing / 2)
    scores = torch.ones(2, dtype=dtype)
    assert losses.bce_generator_loss(scores).dtype == torch.float32


def test_unknown_objectives_are_named() -> None:
    for function in (
        losses.bce_generator_loss,
        reference.generator_loss,
        reference.generator_loss_with_logits,
    ):
        with pytest.raises(ValueError, match=r"'hinge'.*'non-saturating'"):
            function(torch.tensor([0.5]), objective="hinge")  # type: ignore[arg-type]


class LinearDiscriminator(nn.Module):
    """D(x) = sigmoid(w . x), whose gradients are one line each."""

    def __init__(self, features: int, output: str) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(features, dtype=torch.float64))
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        score = x @ self.w
        return score.sigmoid() if self.output == "probability" else score


@pytest.mark.parametrize("output", ["probability", "logits"])
@pytest.mark.parametrize("seed", range(3))
def test_discriminator_step_ascends_the_value_function(seed: int, output: str) -> None:
    torch.manual_seed(seed)
    n, nz, features, rate = 5, 3, 4, 0.5
    generator = nn.Linear(nz, features, bias=False, dtype=torch.float64)
    discriminator = LinearDiscriminator(features, output)
    before = copy.deepcopy(generator.state_dict())
    w = discriminator.w.detach().numpy().copy()
    real, noise = torch.randn(n, features).double(), torch.randn(n, nz).double()

    optimizer = torch.optim.SGD(discriminator.parameters(), lr=rate)
    step = reference.discriminator_step(
        generator, discriminator, optimizer, real, noise, output=output
    )

    x, fake = real.numpy(), noise.numpy() @ generator.weight.detach().numpy().T
    # d/dw [log D(x) + log(1 - D(G(z)))] = (1 - D(x)) x - D(G(z)) G(z)
    gradient = ((1 - sigmoid(x @ w))[:, None] * x - sigmoid(fake @ w)[:, None] * fake).mean(0)
    np.testing.assert_allclose(discriminator.w.detach(), w + rate * gradient, rtol=1e-10)
    value = np.log(sigmoid(x @ w)).mean() + np.log(1 - sigmoid(fake @ w)).mean()
    assert step.loss.item() == pytest.approx(-value)
    assert step.real_score.item() == pytest.approx(sigmoid(x @ w).mean())
    assert step.fake_score.item() == pytest.approx(sigmoid(fake @ w).mean())
    assert not any(value.requires_grad for value in step)
    assert all(torch.equal(before[key], value) for key, value in generator.state_dict().items())


@pytest.mark.parametrize("output", ["probability", "logits"])
@pytest.mark.parametrize("objective", ["non-saturating", "minimax"])
def test_generator_step_descends_its_objective(objective: str, output: str) -> None:
    torch.manual_seed(7)
    n, nz, features, rate = 5, 3, 4, 0.5
    generator = nn.Linear(nz, features, bias=False, dtype=torch.float64)
    discriminator = LinearDiscriminator(features, output)
    w, a = discriminator.w.detach().numpy().copy(), generator.weight.detach().numpy().copy()
    noise = torch.randn(n, nz).double()

    optimizer = torch.optim.SGD(generator.parameters(), lr=rate)
    reference.generator_step(
        generator, discriminator, optimizer, noise, output=output, objective=objective
    )

    z = noise.numpy()
    d = sigmoid(z @ a.T @ w)
    # -log D has the slope D - 1 in the logit, log(1 - D) the slope -D.
    slope = d - 1 if objective == "non-saturating" else -d
    gradient = (slope[:, None, None] * w[None, :, None] * z[:, None, :]).mean(0)
    np.testing.assert_allclose(generator.weight.detach(), a - rate * gradient, rtol=1e-10)
    np.testing.assert_array_equal(discriminator.w.detach(), w)
    assert discriminator.w.grad is None


def test_steps_give_both_networks_the_labels() -> None:
    generator = reference.MLPGenerator(3, 8, 1, 4, num_classes=2)
    discriminator = reference.MLPDiscriminator(1, 8, 4, num_classes=2)
    real, noise = torch.rand(4, 1, 4, 4), torch.randn(4, 3)
    results = []
    for labels in (torch.tensor([0, 1, 0, 1]), torch.tensor([1, 0, 1, 0])):
        g, d = copy.deepcopy(generator), copy.deepcopy(discriminator)
        step_d = reference.discriminator_step(
            g, d, torch.optim.SGD(d.parameters(), lr=0.1), real, noise, labels=labels
        )
        step_g = reference.generator_step(
            g, d, torch.optim.SGD(g.parameters(), lr=0.1), noise, labels=labels
        )
        results.append((step_d, step_g))
    assert results[0][0].real_score != results[1][0].real_score
    assert results[0][0].fake_score != results[1][0].fake_score
    assert results[0][1].loss != results[1][1].loss


def test_an_unknown_output_is_named() -> None:
    network = nn.Identity()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(ValueError, match=r"'odds'.*'logits'"):
        reference.generator_step(network, network, optimizer, torch.zeros(1), output="odds")
