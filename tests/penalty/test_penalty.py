"""The gradient penalty: against closed forms in numpy, and fastgan's against the reference's.

The two classic mistakes, a norm over the channels alone and one epsilon for the whole batch,
must each move the value far enough that these tests would see it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastgan
from fastgan import reference
from fastgan.models import DCGANGenerator, WGANCritic
from fastgan.models.compat.wasserstein_gan import DCGAN_D

Penalty = Callable[..., Tensor]
CriticLossFunction = Callable[..., Any]

penalties = pytest.mark.parametrize(
    "penalty",
    [reference.gradient_penalty, fastgan.gradient_penalty],
    ids=["reference", "fastgan"],
)
critic_losses = pytest.mark.parametrize(
    "critic_loss",
    [reference.wgan_gp_critic_loss, fastgan.wgan_gp_critic_loss],
    ids=["reference", "fastgan"],
)


def batches(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    real = torch.randn(shape, generator=random, dtype=torch.float64)
    return real, torch.randn(shape, generator=random, dtype=torch.float64)


@penalties
@pytest.mark.parametrize("seed", range(4))
def test_linear_critic_has_the_closed_form(penalty: Penalty, seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = tuple(int(v) for v in random.integers(1, 7, size=4))
    weight, target = float(random.random() * 20), float(random.random() * 2)
    w = torch.tensor(random.normal(size=shape[1:]), requires_grad=True)
    real, fake = batches(seed, *shape)

    value = penalty(lambda x: (x * w).sum((1, 2, 3)), real, fake, weight=weight, target=target)
    value.backward()

    w_value = w.detach().numpy()
    norm = np.linalg.norm(w_value)
    assert value.item() == pytest.approx(weight * (norm - target) ** 2, rel=1e-10)
    expected = 2 * weight * (norm - target) * w_value / norm
    np.testing.assert_allclose(w.grad, expected, rtol=1e-9)


@penalties
def test_norm_is_per_sample_over_all_elements(penalty: Penalty) -> None:
    # f(x) = sum a x^2 / 2 has the gradient a x: another norm for every sample.
    real, fake = batches(0, 5, 3, 4, 2)
    a, eps = torch.rand(3, 4, 2, dtype=torch.float64), torch.rand(5, 1, 1, 1, dtype=torch.float64)
    value = penalty(lambda x: (a * x**2 / 2).sum((1, 2, 3)), real, fake, eps=eps).item()

    points = eps.numpy() * real.numpy() + (1 - eps.numpy()) * fake.numpy()
    gradients = a.numpy() * points

    def formula(norms: Any) -> float:
        return float(10 * ((norms - 1) ** 2).mean())

    right = formula(np.sqrt((gradients**2).sum(axis=(1, 2, 3))))
    over_channels = formula(np.sqrt((gradients**2).sum(axis=1)))
    over_batch = formula(np.sqrt((gradients**2).sum()))
    assert value == pytest.approx(right, rel=1e-10)
    assert abs(over_channels - right) > 0.1 * right
    assert abs(over_batch - right) > 0.1 * right


@penalties
def test_epsilon_is_one_uniform_number_per_sample(penalty: Penalty) -> None:
    n = 400
    real, fake = batches(1, n, 2, 3, 3)
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return x.sum((1, 2, 3))

    penalty(critic, real, fake, generator=torch.Generator().manual_seed(5))
    (points,) = seen
    eps = (points - fake) / (real - fake)
    within = eps.flatten(1)
    torch.testing.assert_close(within, within[:, :1].expand_as(within), rtol=1e-6, atol=1e-6)
    per_sample = within.median(1).values
    assert per_sample.unique().numel() == n
    # Kolmogorov-Smirnov against the uniform distribution: beyond 1.95 / sqrt(n) in 1 of 1,000.
    distance = (per_sample.sort().values - torch.arange(1, n + 1) / n).abs().max().item()
    assert distance < 1.95 / n**0.5


@penalties
def test_given_epsilon_weighs_the_real_image(penalty: Penalty) -> None:
    real, fake = batches(2, 3, 1, 2, 2)
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return x.sum((1, 2, 3))

    eps = torch.tensor([1.0, 0.0, 0.25], dtype=torch.float64).view(3, 1, 1, 1)
    penalty(critic, real, fake, eps=eps)
    expected = torch.stack([real[0], fake[1], 0.25 * real[2] + 0.75 * fake[2]])
    torch.testing.assert_close(seen[0], expected)


@penalties
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_zero_gradient_gives_zero_not_nan(penalty: Penalty, target: float) -> None:
    real, fake = batches(3, 4, 2, 3, 3)
    w = torch.zeros(2, 3, 3, dtype=torch.float64, requires_grad=True)
    value = penalty(lambda x: (x * w).sum((1, 2, 3)), real, fake, target=target)
    value.backward()
    assert value.item() == 10 * target**2
    assert w.grad is not None
    assert torch.equal(w.grad, torch.zeros_like(w))


@penalties
def test_a_dead_sample_leaves_the_others_gradients_alone(penalty: Penalty) -> None:
    # The ReLU is off for the first sample, so only the others pull at w.
    w = torch.tensor([2.0, 1.0], dtype=torch.float64, requires_grad=True)
    real = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [2.0, 1.0]], dtype=torch.float64)
    penalty(lambda x: (x @ w).relu(), real, None, at="real", weight=3.0).backward()
    norm = 5**0.5
    expected = 3.0 * 2 / 3 * 2 * (norm - 1) / norm * w.detach()
    torch.testing.assert_close(w.grad, expected)


@penalties
@pytest.mark.parametrize(("sided", "counted"), [("two", [0, 1, 2]), ("one", [2])])
def test_one_sided_counts_norms_above_the_target_only(
    penalty: Penalty, sided: str, counted: list[int]
) -> None:
    # f(x) = x^2 / 2 in one dimension: the norm is |x|.
    real = torch.tensor([[0.5], [-1.0], [3.0]], dtype=torch.float64)
    value = penalty(
        lambda x: (x**2 / 2).sum(1), real, None, at="real", target=2.0, weight=6.0, sided=sided
    )
    expected = 6.0 / 3 * sum((abs(real[i].item()) - 2.0) ** 2 for i in counted)
    assert value.item() == pytest.approx(expected)


@penalties
@pytest.mark.parametrize("at", ["real", "fake"])
def test_r1_and_r2_are_half_gamma_times_the_mean_squared_norm(penalty: Penalty, at: str) -> None:
    real, fake = batches(4, 6, 2, 3, 3)
    gamma = 5.0
    value = penalty(
        lambda x: (x**2 / 2).sum((1, 2, 3)), real, fake, weight=gamma / 2, target=0, at=at
    )
    points = (real if at == "real" else fake).numpy()
    assert value.item() == pytest.approx(gamma / 2 * (points**2).sum(axis=(1, 2, 3)).mean())


@penalties
def test_dragan_points_lie_around_the_real_images(penalty: Penalty) -> None:
    real, _ = batches(5, 50, 1, 8, 8)
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return x.sum((1, 2, 3))

    penalty(critic, real, None, at="dragan")
    # (1 - eps) u in units of half the standard deviation: a mean of 1/4 for eps, u uniform.
    relative = (seen[0] - real) / (0.5 * real.std())
    assert relative.min() >= 0
    assert relative.max() < 1
    assert relative.mean().item() == pytest.approx(0.25, abs=0.05)


def smooth_critic(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 1)
    ).double()


def with_norm(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 2), norm, nn.Tanh(), nn.Flatten(), nn.Linear(36, 1)
    ).double()


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm([4, 3, 3]),
        nn.LayerNorm(3, elementwise_affine=False),
        nn.InstanceNorm2d(4),
        nn.BatchNorm2d(4),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_autograd_refuses_third_derivatives_that_torch_has_wrong(norm: nn.Module) -> None:
    critic = with_norm(norm)
    real, fake = batches(20, 3, 2, 4, 4)
    parameters = list(critic.parameters())
    for function in (
        lambda: fastgan.gradient_penalty(critic, real, fake, path="autograd"),
        lambda: fastgan.wgan_gp_critic_loss(critic, real, fake, path="autograd").loss,
    ):
        # Once is right, and allowed.
        torch.autograd.grad(function(), parameters, allow_unused=True)
        with pytest.raises(RuntimeError, match=rf"layer '1' \({type(norm).__name__}\).*'fused'"):
            torch.autograd.grad(function(), parameters, create_graph=True, allow_unused=True)


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(2, 4), nn.BatchNorm2d(4).eval()], ids=lambda norm: type(norm).__name__
)
def test_autograd_records_third_derivatives_that_are_right(norm: nn.Module) -> None:
    critic = with_norm(norm)
    real, fake = batches(20, 3, 2, 4, 4)
    eps = torch.rand(3, 1, 1, 1, dtype=torch.float64)
    found = []
    for path in ("autograd", "fused"):
        value = fastgan.gradient_penalty(critic, real, fake, eps=eps, path=path)  # type: ignore[arg-type]
        (first,) = torch.autograd.grad(value, critic[0].weight, create_graph=True)  # type: ignore[index, union-attr]
        found.append(torch.autograd.grad(first.square().sum(), critic[0].weight)[0])  # type: ignore[index, union-attr]
    torch.testing.assert_close(found[0], found[1])


@penalties
@pytest.mark.parametrize(
    "settings",
    [{}, {"target": 0.0, "at": "real"}, {"sided": "one", "target": 0.05}, {"at": "fake"}],
    ids=str,
)
def test_parameter_gradients_agree_with_finite_differences(
    penalty: Penalty, settings: dict[str, Any]
) -> None:
    critic = smooth_critic(0)
    names = [name for name, _ in critic.named_parameters()]
    real, fake = batches(6, 3, 2, 4, 4)
    eps = torch.rand(3, 1, 1, 1, dtype=torch.float64)

    def value(*parameters: Tensor) -> Tensor:
        replaced = dict(zip(names, parameters, strict=True))
        return penalty(
            lambda x: torch.func.functional_call(critic, replaced, (x,)),
            real,
            fake,
            eps=eps,
            **settings,
        )

    inputs = tuple(p.detach().clone().requires_grad_() for p in critic.parameters())
    assert torch.autograd.gradcheck(value, inputs)
    assert torch.autograd.gradgradcheck(value, inputs, atol=1e-4)


@pytest.mark.parametrize("norm", ["none", "batch", "instance", "layer"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sided": "one", "target": 0.3},
        {"target": 0.0, "at": "real"},
        {"target": 0.0, "at": "fake"},
        {"at": "dragan", "weight": 2.5},
    ],
    ids=str,
)
def test_fastgan_equals_the_reference(
    norm: str, settings: dict[str, Any], device: torch.device
) -> None:
    torch.manual_seed(0)
    critic = WGANCritic(nc=2, ndf=3, image_size=16, norm=norm).double().to(device)
    for parameter in critic.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)
    twin = copy.deepcopy(critic)
    real, fake = (batch.to(device) for batch in batches(7, 4, 2, 16, 16))

    def stream() -> torch.Generator:
        return torch.Generator(device).manual_seed(11)

    value = fastgan.gradient_penalty(critic, real, fake, generator=stream(), **settings)
    expected = reference.gradient_penalty(twin, real, fake, generator=stream(), **settings)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    for ours, theirs in zip(critic.parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(critic.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("path", ["auto", "autograd"])
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_critic_loss_equals_the_reference(norm: str, path: str, device: torch.device) -> None:
    torch.manual_seed(0)
    critic = WGANCritic(nc=1, ndf=4, image_size=16, norm=norm).double().to(device)
    twin = copy.deepcopy(critic)
    real, fake = (batch.to(device) for batch in batches(8, 5, 1, 16, 16))
    eps = torch.rand(5, 1, 1, 1, dtype=torch.float64, device=device)
    ours = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path=path)  # type: ignore[arg-type]
    theirs = reference.wgan_gp_critic_loss(twin, real, fake, eps=eps)
    for name in ("loss", "wasserstein", "penalty"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    ours.loss.backward()
    theirs.loss.backward()
    for a, b in zip(critic.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)
    for a, b in zip(critic.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@critic_losses
def test_critic_loss_is_made_of_its_parts(critic_loss: CriticLossFunction) -> None:
    real, fake = batches(9, 6, 4)
    w = torch.randn(4, dtype=torch.float64, requires_grad=True)
    result = critic_loss(lambda x: x @ w, real, fake, weight=3.0)
    w_value = w.detach().numpy()
    wasserstein = (real.numpy() @ w_value).mean() - (fake.numpy() @ w_value).mean()
    penalty = 3.0 * (np.linalg.norm(w_value) - 1) ** 2
    assert result._fields == ("loss", "wasserstein", "penalty")
    assert result.wasserstein.item() == pytest.approx(wasserstein)
    assert result.penalty.item() == pytest.approx(penalty)
    assert result.loss.item() == pytest.approx(penalty - wasserstein)
    assert [value.requires_grad for value in result] == [True, False, False]


@critic_losses
def test_the_generator_gets_no_gradient_from_the_critics_loss(
    critic_loss: CriticLossFunction,
) -> None:
    generator = DCGANGenerator(nz=3, ngf=2, nc=1, image_size=16)
    critic = WGANCritic(nc=1, ndf=2, image_size=16)
    fake = generator(torch.randn(4, 3))
    critic_loss(critic, torch.rand(4, 1, 16, 16), fake).loss.backward()
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert all(parameter.grad is not None for parameter in critic.parameters())


def test_the_batches_are_left_as_they_are() -> None:
    real, fake = batches(10, 3, 2)
    copies = real.clone(), fake.clone()

    def critic(x: Tensor) -> Tensor:
        return (x * 2).sum(1)

    for at in ("interpolates", "real", "fake", "dragan"):
        fastgan.gradient_penalty(critic, real, fake, at=at)  # type: ignore[arg-type]
        reference.gradient_penalty(critic, real, fake, at=at)
    assert torch.equal(real, copies[0])
    assert torch.equal(fake, copies[1])
    assert not real.requires_grad
    assert not fake.requires_grad


def test_without_grad_mode_the_value_comes_without_a_graph() -> None:
    critic = smooth_critic(1)
    real, fake = batches(11, 3, 2, 4, 4)
    expected = reference.gradient_penalty(critic, real, fake, at="real").item()
    with torch.no_grad():
        value = fastgan.gradient_penalty(critic, real, fake, at="real")
    assert not value.requires_grad
    assert value.item() == pytest.approx(expected)


def test_a_constant_critic_has_the_gradient_zero() -> None:
    real, fake = batches(12, 3, 2)
    value = fastgan.gradient_penalty(lambda x: torch.zeros(len(x)), real, fake, weight=4.0)
    assert value.item() == 4.0


def test_the_norm_is_taken_in_float32_under_bfloat16_autocast(device: torch.device) -> None:
    torch.manual_seed(0)
    critic = WGANCritic(nc=1, ndf=8, image_size=16).to(device)
    for parameter in critic.parameters():
        nn.init.normal_(parameter, 0.0, 0.1)
    real, fake = (batch.float().to(device) for batch in batches(13, 8, 1, 16, 16))
    expected = fastgan.gradient_penalty(critic, real, fake, at="real")
    with torch.autocast(device.type, dtype=torch.bfloat16):
        value = fastgan.gradient_penalty(critic, real, fake, at="real")
    assert value.dtype == torch.float32
    # bfloat16 keeps 8 bits; three layers of it stay well within 5%.
    torch.testing.assert_close(value, expected, rtol=0.05, atol=0)


@pytest.mark.parametrize("n", [2, 5])
@penalties
def test_a_batch_mean_is_refused(penalty: Penalty, n: int) -> None:
    real, fake = batches(14, n, 3)
    for critic in (lambda x: x.mean(), lambda x: x.mean().view(1), lambda x: x.mean(0)):
        with pytest.raises(ValueError, match=f"for {n} samples.*one score per sample"):
            penalty(critic, real, fake)


@critic_losses
def test_a_critic_with_scores_is_asked_for_them(critic_loss: CriticLossFunction) -> None:
    torch.manual_seed(0)
    critic = DCGAN_D(16, 8, 1, 4, 1).double().eval()
    real, fake = batches(15, 3, 1, 16, 16)
    eps = torch.rand(3, 1, 1, 1, dtype=torch.float64)
    result = critic_loss(critic, real, fake, eps=eps)
    expected = critic_loss(lambda x: critic.main(x).flatten(), real, fake, eps=eps)
    torch.testing.assert_close(result.loss, expected.loss)


def test_scores_of_shape_n_by_one_are_scores_per_sample() -> None:
    real, fake = batches(16, 4, 3)
    w = torch.tensor([[3.0], [4.0], [0.0]], dtype=torch.float64)
    assert fastgan.gradient_penalty(lambda x: x @ w, real, fake).item() == pytest.approx(160)


@pytest.mark.parametrize(
    "function", [fastgan.gradient_penalty, fastgan.wgan_gp_critic_loss], ids=lambda f: f.__name__
)
def test_the_fused_path_is_refused_by_name(function: Callable[..., Any]) -> None:
    class Hooking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.register_hook(lambda grad: 2 * grad)
            return x.flatten(1).sum(1)

    with pytest.raises(fastgan.UnsupportedCriticError, match=r"'fused'.*Hooking.*register_hook"):
        function(Hooking(), torch.zeros(2, 3), torch.zeros(2, 3), path="fused")


@pytest.mark.parametrize("shape", [(3,), (1, 1, 1, 1), (3, 2, 1, 1), (3, 1), (3, 1, 4, 4)])
def test_an_epsilon_that_is_not_one_per_sample_is_refused(shape: tuple[int, ...]) -> None:
    real, fake = batches(17, 3, 2, 4, 4)
    with pytest.raises(ValueError, match=r"eps has shape .*expected \(3, 1, 1, 1\)"):
        fastgan.gradient_penalty(smooth_critic(0), real, fake, eps=torch.zeros(shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sided": "both"}, r"sided is 'both'.*'one'"),
        ({"at": "noise"}, r"at is 'noise'.*'dragan'"),
        ({"path": "quick"}, r"path is 'quick'.*'autograd'"),
    ],
)
def test_unknown_words_are_named(settings: dict[str, Any], message: str) -> None:
    real, fake = batches(18, 2, 3)
    with pytest.raises(fastgan.ConfigError, match=message):
        fastgan.gradient_penalty(lambda x: x.sum(1), real, fake, **settings)


def test_unfit_batches_are_refused() -> None:
    def critic(x: Tensor) -> Tensor:
        return x.sum(1)

    real, fake = batches(19, 2, 3)
    with pytest.raises(ValueError, match=r"real has shape \(2, 3\) and fake \(1, 3\)"):
        fastgan.gradient_penalty(critic, real, fake[:1])
    with pytest.raises(ValueError, match=r"real has shape \(2, 3\) and fake \(1, 3\)"):
        fastgan.wgan_gp_critic_loss(critic, real, fake[:1])
    with pytest.raises(ValueError, match="fake is None"):
        fastgan.gradient_penalty(critic, real, None)
    for unfit in (real[:0], real[0], real.long()):
        with pytest.raises(ValueError, match="expected a floating tensor"):
            fastgan.gradient_penalty(critic, unfit, unfit)


BOTH = pytest.mark.parametrize(
    "function", [fastgan.gradient_penalty, fastgan.wgan_gp_critic_loss], ids=lambda f: f.__name__
)


@BOTH
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (
            {"eps": 0.5},
            TypeError,
            r"eps is 0.5, of type float; expected a tensor of shape \(2, 1\)",
        ),
        ({"real": np.zeros((2, 3))}, TypeError, "real is of type ndarray; expected a floating"),
        ({"fake": np.zeros((2, 3))}, TypeError, r"fake is of type ndarray; .*shape, \(2, 3\)"),
        ({"fake": [0.0]}, TypeError, "fake is of type list; expected a tensor"),
        (
            {"critic_args": torch.zeros(2)},
            TypeError,
            r"critic_args is of type Tensor; .*such as \(labels,\)",
        ),
        ({"weight": "a"}, ValueError, "weight is 'a'; expected a finite number"),
        ({"weight": float("nan")}, ValueError, "weight is nan; expected a finite number"),
        ({"weight": torch.ones(2)}, ValueError, "weight is tensor.*; expected a finite number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unfit_arguments_are_named(
    function: Callable[..., Any], wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    real, fake = batches(21, 2, 3)
    asked = {"real": real, "fake": fake, **wrong}
    for path in ("auto", "autograd"):
        with pytest.raises(error, match=message) as caught:
            function(nn.Linear(3, 1).double(), path=path, **asked)
        assert isinstance(caught.value, fastgan.FastganError)
        assert "\n" not in str(caught.value)


def test_transforms_of_torch_func_take_autograds_path() -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    real, fake = batches(22, 5, 3)
    eps = torch.rand(5, 1, dtype=torch.float64)
    parameters = dict(critic.named_parameters())

    def penalty(parameters: dict[str, Tensor]) -> Tensor:
        return fastgan.gradient_penalty(
            lambda x: torch.func.functional_call(critic, parameters, (x,)), real, fake, eps=eps
        )

    value = fastgan.gradient_penalty(critic, real, fake, eps=eps, path="fused")
    value.backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastgan.FallbackWarning)
        found, shown = torch.func.grad_and_value(penalty)(parameters)
    torch.testing.assert_close(shown, value)
    for name, parameter in critic.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad)

    def of_images(real: Tensor, fake: Tensor) -> Tensor:
        return fastgan.gradient_penalty(critic, real, fake, eps=eps)

    with pytest.warns(fastgan.FallbackWarning, match="within a transform of torch.func"):
        both = torch.func.vmap(of_images)(torch.stack([real, fake]), torch.stack([fake, real]))
    expected = [of_images(real, fake), of_images(fake, real)]
    torch.testing.assert_close(both, torch.stack(expected))
