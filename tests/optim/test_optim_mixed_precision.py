"""Steps under a grad scale, and the 16-bit copies of the weights."""

from __future__ import annotations

import math

import pytest
import torch
from optim_steps import DTYPES, OPTIMIZERS, copies, parameters, reference_step, set_gradients
from torch import nn

import fastgan
import fastgan.optim


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("apart", ["in memory of their own", "side by side"])
def test_parameters_side_by_side_step_under_a_grad_scale(device, name, apart, monkeypatch):
    """Columns of one buffer: the extents of such parameters overlap, their elements do not."""
    monkeypatch.setattr(torch, "_debug_has_internal_overlap", lambda _: 0)  # no gradient is copied

    def optimizer_of(module, **settings):
        buffer = torch.linspace(-1, 1, 24, device=device).reshape(4, 6)
        gradient = torch.linspace(3, -2, 24, device=device).reshape(4, 6)
        params = [nn.Parameter(buffer[:, :3]), nn.Parameter(buffer[:, 3:])]
        params[0].grad, params[1].grad = gradient[:, :3], gradient[:, 3:]
        if apart == "in memory of their own":
            for param in params:
                param.grad = param.grad.clone()
        return params, getattr(module, name)(params, lr=0.1, **settings)

    ours_params, ours = optimizer_of(fastgan.optim, clip=0.5)
    their_params, theirs = optimizer_of(torch.optim, foreach=False)
    for param in their_params:
        param.grad /= 4
    ours.grad_scale = torch.tensor(4.0, device=device)
    ours.step()
    reference_step(theirs, their_params, (-0.5, 0.5), "after")
    for ours_param, their_param in zip(ours_params, their_params, strict=True):
        torch.testing.assert_close(ours_param, their_param)
        torch.testing.assert_close(ours_param.grad, their_param.grad)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("first", "second"),
    [(slice(0, 4), slice(3, 7)), (slice(0, 4), slice(0, 4)), (slice(0, 8, 2), slice(2, 9, 2))],
)
def test_gradients_that_share_memory_are_refused_under_a_grad_scale(
    device, name, first, second, monkeypatch
):
    monkeypatch.setattr(torch, "_debug_has_internal_overlap", lambda _: 0)  # no gradient is copied
    shared = torch.ones(9, device=device)
    params = parameters([(4,), (4,)], torch.float32, device=device)
    params[0].grad, params[1].grad = shared[first], shared[second]
    optimizer = getattr(fastgan.optim, name)(params, clip=0.5)
    before = [param.detach().clone() for param in params]
    optimizer.grad_scale = torch.tensor(4.0, device=device)
    with pytest.raises(RuntimeError, match="gradients that share memory"):
        optimizer.step()
    for param, value in zip(params, before, strict=True):
        assert torch.equal(param.detach(), value)
    assert shared.unique().tolist() == [1.0]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("unscale_first", [False, True])
def test_under_a_grad_scaler_as_torchs_and_a_found_infinity_skips_all(device, name, unscale_first):
    ours_params = parameters([(65,), (4, 5)], torch.float32, device)
    their_params = copies(ours_params)
    ours = getattr(fastgan.optim, name)(ours_params, lr=0.1, clip=2.0)
    theirs = getattr(torch.optim, name)(their_params, lr=0.1)
    scalers = [torch.amp.GradScaler(device.type, init_scale=1024.0) for _ in range(2)]
    for step in range(4):
        gradients = [torch.randn_like(p) for p in ours_params]
        if step == 1:
            gradients[0][3] = math.inf
        values = [p.detach().clone() for p in ours_params]
        for params, optimizer, scaler in (
            (ours_params, ours, scalers[0]),
            (their_params, theirs, scalers[1]),
        ):
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = None
                scaler.scale((param * gradient).sum()).backward()
            if unscale_first:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        if step == 1:
            assert all(torch.equal(p.detach(), v) for p, v in zip(ours_params, values, strict=True))
        else:
            with torch.no_grad():
                for param in their_params:
                    param.clamp_(-2.0, 2.0)
            for p, q in zip(ours_params, their_params, strict=True):
                torch.testing.assert_close(p.grad, q.grad)  # unscaled, as torch leaves it
        assert scalers[0].get_scale() == scalers[1].get_scale()
    for p, q in zip(ours_params, their_params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        assert ours.state[p]["step"].item() == theirs.state[q]["step"].item() == 3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scaled_float16_gradients_do_not_underflow(device, name):
    """Unscaled in float32: in float16, the quotient 2^-26 would be zero."""
    weight = torch.ones(32, dtype=torch.float16, device=device).requires_grad_()
    weight.grad = torch.full_like(weight, 2.0**-10)
    optimizer = getattr(fastgan.optim, name)([weight], lr=0.5, eps=2.0**-26, clip=10.0)
    optimizer.grad_scale = torch.tensor(2.0**16, device=device)
    optimizer.found_inf = torch.tensor(0.0, device=device)
    optimizer.step()
    assert (weight < 0.9).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_expanded_gradient_is_unscaled_once(device, name):
    weight = torch.zeros(100_000, device=device, requires_grad=True)
    weight.grad = torch.tensor(8.0, device=device).expand(100_000)
    optimizer = getattr(fastgan.optim, name)([weight], lr=0.5)
    optimizer.grad_scale = torch.tensor(4.0, device=device)
    optimizer.step()
    assert weight.grad.unique().tolist() == [2.0]


# --- Copies in 16 bits ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("shadow_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shadow_is_the_rounded_weight_after_every_step(device, name, shadow_dtype, dtype):
    base = torch.randn(3, 5, 8, 8, device=device, dtype=torch.float64).to(dtype)
    params = [
        nn.Parameter(base.to(memory_format=torch.channels_last)),
        nn.Parameter(base[..., ::2].clone()[..., 1:]),
        nn.Parameter(base.flatten()[1:]),
        nn.Parameter(base[0, 0].clone()),  # without a gradient
    ]
    optimizer = getattr(fastgan.optim, name)(params, lr=0.1, clip=0.7, shadow_dtype=shadow_dtype)
    shadows = [optimizer.shadow(p) for p in params]
    for step in range(3):
        set_gradients((params[:3],), step)
        optimizer.step()
        for param, shadow in zip(params, shadows, strict=True):
            assert optimizer.shadow(param) is shadow
            if dtype in (torch.float16, torch.bfloat16):
                assert shadow is param
            else:
                assert shadow.dtype == shadow_dtype
                assert torch.equal(shadow, param.detach().to(shadow_dtype))
    assert "shadow" not in str(optimizer.state_dict()["state"])


def test_shadows_are_refreshed_on_demand_and_refused_where_there_are_none():
    weight, other = torch.ones(3), torch.ones(3)
    optimizer = fastgan.optim.Adam(
        [{"params": [weight], "shadow_dtype": torch.bfloat16}, {"params": [other]}]
    )
    shadow = optimizer.shadow(weight)
    weight.fill_(0.5)
    optimizer.refresh_shadows()
    assert shadow.tolist() == [0.5] * 3
    with pytest.raises(fastgan.ConfigError, match="shadow_dtype None"):
        optimizer.shadow(other)
    with pytest.raises(fastgan.ConfigError, match="none of this optimiser's"):
        optimizer.shadow(torch.ones(3))
