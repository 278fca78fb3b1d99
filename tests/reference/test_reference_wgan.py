"""Clipping against numpy, the Wasserstein steps against gradients worked out by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgan import losses, reference


class LinearCritic(nn.Module):
    """f(x) = w . x: its gradient in x is w, everywhere."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(features, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w


def linear_players(seed: int) -> tuple[nn.Linear, LinearCritic, Tensor, Tensor]:
    torch.manual_seed(seed)
    generator = nn.Linear(3, 4, bias=False, dtype=torch.float64)
    real, noise = torch.randn(6, 4).double(), torch.randn(6, 3).double()
    return generator, LinearCritic(4), real, noise


def test_losses_are_differences_of_means() -> None:
    random = np.random.default_rng(0)
    real, fake = random.normal(size=7), random.normal(size=4)
    for module, critic_loss, generator_loss in (
        ("reference", reference.wgan_critic_loss, reference.wgan_generator_loss),
        ("fastgan", losses.wasserstein_critic_loss, losses.wasserstein_generator_loss),
    ):
        loss = critic_loss(torch.tensor(real), torch.tensor(fake))
        assert loss.item() == pytest.approx(fake.mean() - real.mean()), module
        assert generator_loss(torch.tensor(fake)).item() == pytest.approx(-fake.mean()), module


@pytest.mark.parametrize("clip", [0.05, (-0.2, 0.1)])
def test_critic_step_ascends_then_clips(clip: float | tuple[float, float]) -> None:
    generator, critic, real, noise = linear_players(1)
    w, rate = critic.w.detach().numpy().copy(), 0.3
    before = generator.weight.detach().clone()

    optimizer = torch.optim.SGD(critic.parameters(), lr=rate)
    step = reference.wgan_critic_step(generator, critic, optimizer, real, noise, clip=clip)

    fake = noise.numpy() @ before.numpy().T
    ascent = real.numpy().mean(0) - fake.mean(0)
    low, high = clip if isinstance(clip, tuple) else (-clip, clip)
    np.testing.assert_allclose(critic.w.detach(), np.clip(w + rate * ascent, low, high))
    assert step.wasserstein.item() == pytest.approx(ascent @ w)
    assert step.loss.item() == pytest.approx(-ascent @ w)
    assert torch.equal(generator.weight, before)


def test_generator_step_ascends_the_critic() -> None:
    generator, critic, _, noise = linear_players(2)
    a, w, rate = generator.weight.detach().numpy().copy(), critic.w.detach().numpy(), 0.3

    optimizer = torch.optim.SGD(generator.parameters(), lr=rate)
    reference.wgan_generator_step(generator, critic, optimizer, noise)

    np.testing.assert_allclose(
        generator.weight.detach(), a + rate * np.outer(w, noise.numpy().mean(0))
    )
    assert critic.w.grad is None


def test_penalised_critic_step_on_a_linear_critic() -> None:
    generator, critic, real, noise = linear_players(3)
    w, rate, weight = critic.w.detach().numpy().copy(), 0.01, 7.0

    optimizer = torch.optim.SGD(critic.parameters(), lr=rate)
    step = reference.wgan_gp_critic_step(generator, critic, optimizer, real, noise, weight=weight)

    norm = np.linalg.norm(w)
    fake = noise.numpy() @ generator.weight.detach().numpy().T
    gradient = fake.mean(0) - real.numpy().mean(0) + weight * 2 * (norm - 1) * w / norm
    np.testing.assert_allclose(critic.w.detach(), w - rate * gradient)
    assert step.penalty.item() == pytest.approx(weight * (norm - 1) ** 2)
    assert step.loss.item() == pytest.approx(-step.wasserstein.item() + step.penalty.item())
    assert not any(value.requires_grad for value in step)


def test_penalised_step_gives_the_critic_its_labels_three_times() -> None:
    seen: list[Tensor] = []

    class Critic(reference.WGANCritic):
        def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
            assert labels is not None
            seen.append(labels)
            return super().forward(images, labels)

    critic = Critic(1, 2, 16, num_classes=3)
    generator = reference.DCGANGenerator(3, 2, 1, 16, num_classes=3)
    labels = torch.tensor([2, 0])
    reference.wgan_gp_critic_step(
        generator,
        critic,
        torch.optim.SGD(critic.parameters(), lr=0.1),
        torch.rand(2, 1, 16, 16),
        torch.randn(2, 3),
        labels=labels,
    )
    assert len(seen) == 3
    assert all(torch.equal(labels, given) for given in seen)


def mixed_module() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)
    )
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize("clip", [0.25, 0.0, (-0.5, 0.1), (0.2, 0.3)])
def test_clipping_is_numpys(clip: float | tuple[float, float]) -> None:
    module = mixed_module()
    buffers = copy.deepcopy(dict(module.named_buffers()))
    low, high = clip if isinstance(clip, tuple) else (-clip, clip)
    expected = [p.detach().numpy().clip(low, high) for p in module.parameters()]
    reference.clip_weights_(module, clip)
    for parameter, value in zip(module.parameters(), expected, strict=True):
        np.testing.assert_array_equal(parameter.detach(), value)
    assert all(torch.equal(value, buffers[name]) for name, value in module.named_buffers())


def test_normalisation_layers_can_be_spared() -> None:
    module = mixed_module()
    before = [p.detach().clone() for p in module.parameters()]
    reference.clip_weights_(module, 0.25, include_norm=False)
    before[:2] = [old.clamp(-0.25, 0.25) for old in before[:2]]  # the convolution's
    assert all(torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))


def test_clipping_takes_tensors_and_keeps_nan() -> None:
    values = torch.tensor([float("nan"), float("inf"), -3.0])
    reference.clip_weights_(values, 1.0)
    torch.testing.assert_close(values, torch.tensor([float("nan"), 1, -1]), equal_nan=True)


@pytest.mark.parametrize("clip", [-0.1, (0.2, 0.1), float("nan")])
def test_an_empty_box_is_refused(clip: float | tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="lo <= hi"):
        reference.clip_weights_(torch.ones(2), clip)


def test_sparing_normalisation_needs_a_module() -> None:
    with pytest.raises(ValueError, match="needs a module"):
        reference.clip_weights_([torch.ones(2)], 0.1, include_norm=False)
