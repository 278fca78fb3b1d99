"""The numbers of fastgan.optim: against torch.optim's step, then ``clamp_``, and the exact step."""

from __future__ import annotations

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from optim_steps import (
    NUMERIC,
    OPTIMIZERS,
    ROWS,
    bounds_of,
    copies,
    exact_step,
    parameters,
    reference_step,
    set_gradients,
    to_long_double,
)
from torch import nn

import fastgan
import fastgan.optim

SHAPES = [(64, 3, 4, 4), (7,), (1001,), (), (0, 3), (5, 40, 41)]


rmsprop_options = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([0.0, 1e-3, 0.1]),
        "alpha": st.sampled_from([0.0, 0.4, 0.9, 0.99, 1.0]),
        "eps": st.sampled_from([1e-8, 1e-2]),
        "weight_decay": st.sampled_from([0, 0.1]),
        "momentum": st.sampled_from([0, 0.5, 0.9]),
        "centered": st.booleans(),
        "maximize": st.booleans(),
    }
)
adam_options = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([0.0, 1e-3, 0.1]),
        "betas": st.tuples(
            st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.sampled_from([0.0, 0.9, 0.999])
        ),
        "eps": st.sampled_from([1e-8, 1e-2]),
        "weight_decay": st.sampled_from([0, 0.1]),
        "amsgrad": st.booleans(),
        "maximize": st.booleans(),
    }
)
options = st.one_of(
    st.tuples(st.just("RMSprop"), rmsprop_options),
    st.tuples(st.sampled_from(["Adam", "AdamW"]), adam_options),
)
clips = st.sampled_from([None, 0.01, 0.5, (-0.2, 1.5), (0.25, 0.25), (-math.inf, 0.3)])


def units_apart(actual, exact):
    """The largest error in units in the last place of the largest value, of a tensor's dtype."""
    largest = np.abs(exact).max(initial=np.finfo(np.float32).tiny)
    unit = torch.finfo(actual.dtype).eps * 2.0 ** np.floor(np.log2(largest))
    return float(np.abs(to_long_double(actual) - exact).max(initial=0) / unit)


def steps_errors(name, dtype, device, clip, clip_when, seed, shapes, **options):
    """Of each tensor after each of four steps: its name, error in units, torch's, and a condition.

    All three steps begin with the same weight, gradient and state. The condition says how often a
    rounding counts: centred, the squares' average loses the average's square, and a step may cancel
    the momentum.
    """
    kwargs = {"lr": 1e-3, **ROWS[name].defaults, **options}
    low, high = bounds_of(clip) if clip is not None else (-math.inf, math.inf)
    ours_params = parameters(shapes, dtype, device, seed=seed)
    their_params = copies(ours_params)
    ours = getattr(fastgan.optim, name)(ours_params, clip=clip, clip_when=clip_when, **kwargs)
    theirs = getattr(torch.optim, name)(their_params, foreach=False, **kwargs)
    for step in range(4):
        set_gradients((ours_params, their_params), seed + step)
        exact = []
        for p, q in zip(ours_params, their_params, strict=True):
            for key, value in ours.state.get(p, {}).items():
                theirs.state[q][key].copy_(value)
            with torch.no_grad():
                q.copy_(p)
            state = dict.fromkeys(ROWS[name].states, np.zeros(p.shape, np.longdouble))
            state |= {key: to_long_double(value) for key, value in ours.state.get(p, {}).items()}
            weight = (
                to_long_double(p).clip(low, high) if clip_when == "before" else to_long_double(p)
            )
            momentum = kwargs.get("momentum", 0) * state.get("momentum_buffer", np.zeros(()))
            weight = exact_step(name, weight, to_long_double(p.grad), state, step + 1, **kwargs)
            clipped = weight.clip(low, high) if clip_when == "after" else weight
            exact.append((clipped, state, momentum))
        ours.step()
        reference_step(theirs, their_params, (low, high), clip_when)
        for p, q, (weight, state, momentum) in zip(ours_params, their_params, exact, strict=True):
            condition = 1.0
            if kwargs.get("momentum"):
                buffer = state["momentum_buffer"]
                added = np.abs(momentum) + np.abs(buffer - momentum)
                condition = float(added.max(initial=0) / np.abs(buffer).max(initial=1e-30))
            if kwargs.get("centered"):
                squares = state["square_avg"]
                kept = squares - state["grad_avg"] ** 2
                condition *= float((squares[kept > 0] / kept[kept > 0]).max(initial=1))
            yield "weight", units_apart(p, weight), units_apart(q, weight), condition
            for key in ours.state[p].keys() - {"step"}:
                mine, other = ours.state[p][key], theirs.state[q][key]
                yield key, units_apart(mine, state[key]), units_apart(other, state[key]), condition


@pytest.mark.processors
@hypothesis.settings(deadline=None, max_examples=80)
@hypothesis.given(
    option=options,
    clip=clips,
    clip_when=st.sampled_from(["after", "before"]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 1000),
)
@hypothesis.example(  # a step that cancels nine tenths of the momentum
    option=("RMSprop", {"lr": 0.1, "alpha": 0.4, "weight_decay": 0.1, "momentum": 0.9}),
    clip=None,
    clip_when="after",
    dtype=torch.float32,
    seed=293,
)
def test_cpu_step_is_as_exact_as_torchs_step_and_clamp(option, clip, clip_when, dtype, seed):
    name, kwargs = option
    # Centred with alpha = 0 is the square root of a rounding error around zero.
    hypothesis.assume(not (kwargs.get("centered") and kwargs["alpha"] == 0))
    for key, error, theirs, condition in steps_errors(
        name, dtype, "cpu", clip, clip_when, seed, SHAPES, **kwargs
    ):
        assert error <= 2 * theirs + 4 * condition, (key, error, theirs)


@pytest.mark.processors
@pytest.mark.parametrize("name", NUMERIC)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_step_is_within_four_units_of_the_exact_one(device, name, dtype):
    """The squares' average takes up to 7 roundings, each of half a unit to a whole one."""
    options = {**ROWS[name].full, **({"momentum": 0} if name == "RMSprop" else {})}
    for key, error, _, _ in steps_errors(
        name, dtype, device, None, "after", 0, [(20000,)], lr=0.01, weight_decay=0.1, **options
    ):
        assert error <= 4, (key, error)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_parameters_are_computed_on_in_float32(device, name, dtype):
    """At most one rounding from the update in float64, where torch's own rounds every operation."""
    params = parameters([(4096,)], dtype, device)
    wide = [p.detach().double().requires_grad_() for p in params]
    ours = getattr(fastgan.optim, name)(params, lr=0.01, eps=1e-3, clip=1.5)
    exact = getattr(torch.optim, name)(wide, lr=0.01, eps=1e-3)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        gradient = torch.randn((4096,), generator=generator).to(dtype).to(device)
        params[0].grad, wide[0].grad = gradient.clone(), gradient.double()
        ours.step()
        reference_step(exact, wide, (-1.5, 1.5))
        rounded = wide[0].detach().to(dtype)
        one_unit = torch.finfo(dtype).eps * rounded.abs().double().clamp_min(2.0**-10)
        assert ((params[0].detach().double() - rounded.double()).abs() <= 1.01 * one_unit).all()
        for key, value in exact.state[wide[0]].items():
            ours_value = ours.state[params[0]][key]
            if key != "step":
                assert ours_value.dtype == dtype
                value.copy_(ours_value)
        with torch.no_grad():
            wide[0].copy_(params[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nan_and_infinities_go_where_torchs_go(name):
    specials = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-300, 1e300, 1.0]
    values = torch.tensor(specials, dtype=torch.float64)
    grid = torch.cartesian_prod(values, values)
    ours_params = [grid[:, 0].clone().requires_grad_()]
    their_params = copies(ours_params)
    ours_params[0].grad, their_params[0].grad = grid[:, 1].clone(), grid[:, 1].clone()
    ours = getattr(fastgan.optim, name)(ours_params, clip=0.5, weight_decay=0.1)
    theirs = getattr(torch.optim, name)(their_params, weight_decay=0.1, foreach=False)
    for _ in range(2):
        ours.step()
        reference_step(theirs, their_params, (-0.5, 0.5))
    torch.testing.assert_close(
        ours_params[0], their_params[0], rtol=1e-13, atol=1e-15, equal_nan=True
    )
    assert ours_params[0].isnan().any()
    assert ours_params[0].detach().nan_to_num(0.0).abs().max() <= 0.5


def critic(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(128, 1),
    ).double()


@hypothesis.settings(deadline=None, max_examples=6)
@hypothesis.given(
    name=st.sampled_from(OPTIMIZERS),
    seed=st.integers(0, 1000),
    clip=st.sampled_from([0.01, (-0.05, 0.02)]),
    clip_when=st.sampled_from(["after", "before"]),
)
def test_critic_trained_200_steps_follows_torchs_trajectory(name, seed, clip, clip_when):
    nets = [critic(seed), critic(seed)]
    ours = getattr(fastgan.optim, name)(
        nets[0].parameters(), lr=1e-3, clip=clip, clip_when=clip_when
    )
    theirs = getattr(torch.optim, name)(nets[1].parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(200):
        real = torch.rand(4, 1, 8, 8, generator=generator, dtype=torch.float64)
        fake = torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64)
        for net in nets:
            net.zero_grad()
            (net(fake).mean() - net(real).mean()).backward()
        ours.step()
        reference_step(theirs, list(nets[1].parameters()), bounds_of(clip), clip_when)
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)
