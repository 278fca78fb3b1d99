"""The fused pass's result is an ordinary loss: higher orders, autocast, scaling, hooks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from penalty_critics import (
    assert_same,
    gradients,
    images,
    make,
    sequential,
    trained_statistics,
)
from torch import Tensor, nn

import fastgan
from fastgan import reference


@pytest.mark.parametrize(
    "name",
    ["dcgan-16", "residual", "bound", "grouped-dilated", "dcgan-layer-norm", "smooth"],
)
def test_third_derivatives_are_right(name: str) -> None:
    critic, shape = make(name)
    real, fake, eps = images(shape, 2, seed=3)
    parameters = [p for p in critic.parameters() if p.requires_grad]
    found = []
    for path in ("fused", "autograd"):
        loss = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path=path).loss
        first = torch.autograd.grad(loss, parameters, create_graph=True)
        size = sum(g.square().sum() for g in first)
        found.append(torch.autograd.grad(size, parameters, allow_unused=True))
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "group": (lambda: nn.GroupNorm(2, 4), (2, 3, 3)),
    "instance": (lambda: nn.InstanceNorm2d(4, affine=True), (2, 3, 3)),
    "layer": (lambda: nn.LayerNorm([4, 2, 2]), (2, 3, 3)),
}


@pytest.mark.parametrize("name", ["vectors", *NORMS])
def test_gradients_pass_gradcheck_and_gradgradcheck(name: str) -> None:
    # So the derivatives of norms are right in every order; torch's own are wrong in the third.
    if name in NORMS:
        torch.manual_seed(1)
        norm, shape = NORMS[name][0](), NORMS[name][1]
        critic: nn.Module = sequential(
            nn.Conv2d(2, 4, 2), norm, nn.ReLU(), nn.Flatten(), nn.Linear(16, 1)
        ).double()
    else:
        critic, shape = make(name)
    real, fake, eps = images(shape, 3)
    layers = [module for module in critic.modules() if list(module.parameters(recurse=False))]
    inputs = tuple(p.detach().clone().requires_grad_() for p in critic.parameters())

    def value(*parameters: Tensor) -> Tensor:
        for module, weight, bias in zip(layers, parameters[::2], parameters[1::2], strict=True):
            del module.weight, module.bias
            module.weight, module.bias = weight, bias  # type: ignore[assignment]
        return fastgan.gradient_penalty(critic, real, fake, eps=eps, path="fused")

    assert torch.autograd.gradcheck(value, inputs)
    assert torch.autograd.gradgradcheck(value, inputs, atol=1e-4)


def test_backward_a_second_time_gives_the_same_gradient_again() -> None:
    critic, shape = make("dcgan-16")
    real, fake, eps = images(shape, 3)
    loss = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="fused").loss
    loss.backward(retain_graph=True)
    once = {name: p.grad.clone() for name, p in critic.named_parameters()}
    critic.zero_grad()
    loss.backward()
    assert_same({name: p.grad for name, p in critic.named_parameters()}, once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradients_accumulate_and_scale() -> None:
    critic, shape = make("dcgan-16")
    real, fake, eps = images(shape, 3)
    once = gradients(
        critic, fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="fused").loss
    )
    once = {name: g.clone() for name, g in once.items() if g is not None}
    critic.zero_grad()
    for scale in (1.0, 2.0):
        loss = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="fused").loss
        (loss * scale).backward()
    for name, parameter in critic.named_parameters():
        torch.testing.assert_close(parameter.grad, 3 * once[name])


def test_parameter_hooks_fire() -> None:
    critic, shape = make("dcgan-16")
    real, fake, _ = images(shape, 3)
    seen: list[str] = []
    for name, parameter in critic.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: seen.append(name))
    fastgan.wgan_gp_critic_loss(critic, real, fake, path="fused").loss.backward()
    assert sorted(seen) == sorted(name for name, _ in critic.named_parameters())


@pytest.mark.parametrize("name", ["dcgan-32", "dcgan-layer-norm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_matches_float32_and_keeps_norms_wide(dtype: torch.dtype, name: str) -> None:
    critic, shape = make(name)
    critic = critic.float()
    real, fake, eps = images(shape, 6, dtype=torch.float32)
    exact = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="autograd")
    expected = gradients(critic, exact.loss)
    errors = {}
    for path in ("fused", "autograd"):
        with torch.autocast("cpu", dtype=dtype):
            result = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path=path)
        assert result.loss.dtype == result.penalty.dtype == torch.float32
        found = gradients(critic, result.loss)
        errors[path] = max(
            float((found[k] - g).norm() / g.norm())  # type: ignore[operator, union-attr]
            for k, g in expected.items()
            if g is not None
        )
        assert all(g is None or g.dtype == torch.float32 for g in found.values())
    assert errors["fused"] <= 2 * errors["autograd"] + 1e-3


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.7), (torch.float16, 0.8)])
def test_hardtanh_is_flat_beyond_bounds_that_its_dtype_rounds(
    dtype: torch.dtype, bound: float
) -> None:
    torch.manual_seed(0)
    assert torch.tensor(bound, dtype=dtype).item() < bound
    critic = sequential(
        nn.Conv2d(2, 6, 3), nn.Hardtanh(-bound, bound), nn.Flatten(), nn.Linear(96, 1)
    )
    real, fake, eps = images((2, 6, 6), 8, dtype=torch.float32)
    expected = gradients(
        critic, fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="autograd").loss
    )
    errors = {}
    for path in ("fused", "autograd"):
        with torch.autocast("cpu", dtype=dtype):
            loss = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path=path).loss
        found = gradients(critic, loss)
        errors[path] = sum(
            float((found[k] - g).norm() / g.norm())  # type: ignore[operator, union-attr]
            for k, g in expected.items()
            if g is not None and g.norm() > 1e-6
        )
    assert errors["fused"] <= 2 * errors["autograd"] + 1e-4, errors


def test_fixed_batch_norm_of_a_half_is_as_exact_as_autograds() -> None:
    torch.manual_seed(0)
    critic = sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 1))
    trained_statistics(critic)
    real, fake, eps = images((2, 6, 6), 6, dtype=torch.float32)
    exact = copy.deepcopy(critic).double()
    expected = gradients(
        exact,
        fastgan.wgan_gp_critic_loss(
            exact, real.double(), fake.double(), eps=eps.double(), path="autograd"
        ).loss,
    )
    errors = {}
    for path in ("fused", "autograd"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path=path).loss
        found = gradients(critic, loss)
        errors[path] = sum(
            float((found[k].double() - g).norm() / g.norm())  # type: ignore[union-attr]
            for k, g in expected.items()
            if g is not None and g.norm() > 1e-6
        )
    assert errors["fused"] <= 2 * errors["autograd"] + 1e-4, errors


def test_grad_scaler_unscales_to_the_same_gradient() -> None:
    critic, shape = make("dcgan-16")
    critic = critic.float()
    real, fake, eps = images(shape, 4, dtype=torch.float32)
    expected = gradients(
        critic, fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="fused").loss
    )
    expected = {k: g.clone() for k, g in expected.items() if g is not None}
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    critic.zero_grad()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="fused").loss
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for name, parameter in critic.named_parameters():
        error = (parameter.grad - expected[name]).norm() / expected[name].norm()
        assert error < 0.02


def test_zero_gradient_gives_zero_not_nan() -> None:
    critic, shape = make("dcgan-16")
    nn.init.zeros_(critic.main[0].weight)  # type: ignore[union-attr, index]
    real, fake, _ = images(shape, 3)
    for target in (0.0, 1.0):
        value = fastgan.gradient_penalty(critic, real, fake, target=target, path="fused")
        found = gradients(critic, value)
        assert value.item() == 10 * target**2
        assert all(g is None or torch.equal(g, torch.zeros_like(g)) for g in found.values())


def test_value_without_grad_mode_has_no_graph() -> None:
    critic, shape = make("residual")
    real, fake, eps = images(shape, 3)
    expected = reference.wgan_gp_critic_loss(critic, real, fake, eps=eps)
    with torch.no_grad():
        result = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="fused")
    assert not result.loss.requires_grad
    torch.testing.assert_close(result.loss, expected.loss.detach())


def test_wrapped_and_compiled_code_gets_the_same_loss() -> None:
    critic, shape = make("dcgan-16")
    real, fake, eps = images(shape, 3)

    def loss(real: Tensor, fake: Tensor) -> Tensor:
        return 2 * fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps).loss

    expected = loss(real, fake)
    torch.testing.assert_close(torch.compile(loss, backend="eager")(real, fake), expected)
    compiled = torch.compile(critic, backend="eager")
    again = fastgan.wgan_gp_critic_loss(compiled, real, fake, eps=eps, path="fused").loss
    torch.testing.assert_close(2 * again, expected)
