"""fastgan.optim against torch.optim's own step followed by torch.clamp_."""

from __future__ import annotations

import copy
import io
import math
import os
import pickle
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torch import nn

import fastgan
import fastgan.optim
from fastgan.ops import check_op, op_paths
from fastgan.ops.define import DEFINED

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
OPTIMIZERS = ["RMSprop", "Adam"]
SHAPES = [(64, 3, 4, 4), (7,), (1001,), (), (0, 3), (5, 40, 41)]


def at_least_float32(tensor):
    """A copy with at least ten bits more than a double has."""
    return tensor.detach().cpu().double().numpy().astype(np.longdouble)


def exact_rmsprop(weight, grad, state, step, lr, alpha, eps, momentum, centered):
    """torch.optim.RMSprop's step as its documentation has it."""
    one = np.longdouble(1)
    state["square_avg"] = alpha * state["square_avg"] + (one - alpha) * grad**2
    variance = state["square_avg"]
    if centered:
        state["grad_avg"] = alpha * state["grad_avg"] + (one - alpha) * grad
        variance = variance - state["grad_avg"] ** 2
    update = grad / (np.sqrt(variance) + eps)
    if momentum:
        update = state["momentum_buffer"] = momentum * state["momentum_buffer"] + update
    return weight - lr * update


def exact_adam(weight, grad, state, step, lr, betas, eps, amsgrad):
    """torch.optim.Adam's step as its documentation has it."""
    one = np.longdouble(1)
    first, second = (np.longdouble(beta) for beta in betas)
    state["exp_avg"] = first * state["exp_avg"] + (one - first) * grad
    state["exp_avg_sq"] = second * state["exp_avg_sq"] + (one - second) * grad**2
    largest = state["exp_avg_sq"]
    if amsgrad:
        largest = state["max_exp_avg_sq"] = np.maximum(state["max_exp_avg_sq"], largest)
    denominator = np.sqrt(largest / (one - second**step)) + eps
    return weight - lr / (one - first**step) * state["exp_avg"] / denominator


def exact_step(name, weight, grad, state, step, *, weight_decay=0, maximize=False, **options):
    """The new weight, from arrays of np.longdouble; writes the new state into `state`."""
    grad = (-grad if maximize else grad) + weight_decay * weight
    rule = {"RMSprop": exact_rmsprop, "Adam": exact_adam}[name]
    with np.errstate(invalid="ignore", divide="ignore"):
        return rule(weight, grad, state, step, **options)


DEFAULTS = {
    "RMSprop": {"alpha": 0.99, "eps": 1e-8, "momentum": 0, "centered": False},
    "Adam": {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False},
}
STATES = {
    "RMSprop": ("square_avg", "grad_avg", "momentum_buffer"),
    "Adam": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
}


def parameters(shapes, dtype, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64)
        .to(dtype)
        .to(device)
        .requires_grad_()
        for shape in shapes
    ]


def copies(params):
    return [p.detach().clone(memory_format=torch.preserve_format).requires_grad_() for p in params]


def set_gradients(groups_of_params, seed):
    """The same gradients for every list of parameters, in each parameter's own layout."""
    generator = torch.Generator().manual_seed(seed)
    for same in zip(*groups_of_params, strict=True):
        gradient = torch.randn(same[0].shape, generator=generator, dtype=torch.float64)
        for param in same:
            param.grad = torch.empty_like(param).copy_(gradient)


def reference_step(optimizer, params, bounds, clip_when="after"):
    def clamp():
        with torch.no_grad():
            for param in params:
                param.clamp_(*bounds)

    if bounds is not None and clip_when == "before":
        clamp()
    optimizer.step()
    if bounds is not None and clip_when == "after":
        clamp()


def bounds_of(clip):
    return (-clip, clip) if isinstance(clip, float) else clip


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
    st.tuples(st.just("RMSprop"), rmsprop_options), st.tuples(st.just("Adam"), adam_options)
)
clips = st.sampled_from([None, 0.01, 0.5, (-0.2, 1.5), (0.25, 0.25), (-math.inf, 0.3)])


def units_apart(actual, exact):
    """The largest error in units in the last place of the largest value, of a tensor's dtype."""
    largest = np.abs(exact).max(initial=np.finfo(np.float32).tiny)
    unit = torch.finfo(actual.dtype).eps * 2.0 ** np.floor(np.log2(largest))
    return float(np.abs(at_least_float32(actual) - exact).max(initial=0) / unit)


def steps_errors(name, dtype, device, clip, clip_when, seed, shapes, **options):
    """Of each tensor after each of four steps: its name, error in units, torch's, and a condition.

    All three steps begin with the same weight, gradient and state. The condition says how often a
    rounding of the squares' average counts: centred, it loses the average's square.
    """
    kwargs = {"lr": 1e-3, **DEFAULTS[name], **options}
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
            state = dict.fromkeys(STATES[name], np.zeros(p.shape, np.longdouble))
            state |= {key: at_least_float32(value) for key, value in ours.state.get(p, {}).items()}
            weight = (
                at_least_float32(p).clip(low, high)
                if clip_when == "before"
                else at_least_float32(p)
            )
            weight = exact_step(name, weight, at_least_float32(p.grad), state, step + 1, **kwargs)
            exact.append((weight.clip(low, high) if clip_when == "after" else weight, state))
        ours.step()
        reference_step(theirs, their_params, (low, high), clip_when)
        for p, q, (weight, state) in zip(ours_params, their_params, exact, strict=True):
            condition = 1.0
            if kwargs.get("centered"):
                squares = state["square_avg"]
                kept = squares - state["grad_avg"] ** 2
                condition = float((squares[kept > 0] / kept[kept > 0]).max(initial=1))
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
def test_cpu_step_is_as_exact_as_torchs_step_and_clamp(option, clip, clip_when, dtype, seed):
    name, kwargs = option
    # Centred with alpha = 0 is the square root of a rounding error around zero.
    hypothesis.assume(not (kwargs.get("centered") and kwargs["alpha"] == 0))
    for key, error, theirs, condition in steps_errors(
        name, dtype, "cpu", clip, clip_when, seed, SHAPES, **kwargs
    ):
        assert error <= 2 * theirs + 4 * condition, (key, error, theirs)


@pytest.mark.processors
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_step_is_within_four_units_of_the_exact_one(device, name, dtype):
    """The squares' average takes up to 7 roundings, each of half a unit to a whole one."""
    options = {"RMSprop": {"centered": True}, "Adam": {"amsgrad": True}}[name]
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


# --- Layouts, lists, groups -----------------------------------------------------------------------


def layouts(device, dtype):
    """Pairs of equal values: a parameter in some layout with a gradient in another, contiguous."""
    base = torch.randn(6, 8, 10, 12, device=device, dtype=torch.float64).to(dtype)
    views = {
        "channels_last": base.to(memory_format=torch.channels_last),
        "transposed": base.transpose(0, 3),
        "rows apart": base[..., :7],
        "every other": base[..., ::2],
        "0-d": base[0, 0, 0, 0],
        "empty": base[:0],
        "odd start": base.flatten()[1:],
        "size-1 dimension": base[:, :1].as_strided((6, 1, 12), (960, 3, 1)),
    }
    for name, view in views.items():
        yield name, view.detach()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gradient_layout", ["alike", "contiguous", "reversed", "expanded"])
def test_every_layout_of_weight_and_gradient_is_right(device, name, dtype, gradient_layout):
    options = {"RMSprop": {"momentum": 0.5, "centered": True}, "Adam": {"amsgrad": True}}[name]
    torch.manual_seed(0)
    for layout, view in layouts(device, dtype):
        # Around the view lies memory that must not change.
        strided = nn.Parameter(view)
        plain = view.clone(memory_format=torch.contiguous_format).requires_grad_()
        gradient = torch.randn(view.shape, device=device, dtype=torch.float64).to(dtype)
        if gradient_layout == "expanded":
            gradient = gradient.flatten()[:1].sum().expand(view.shape)
        plain.grad = gradient.contiguous()
        if gradient_layout == "alike":
            strided.grad = torch.empty_like(strided).copy_(gradient)
        elif gradient_layout == "reversed":
            order = list(range(gradient.dim()))[::-1]
            strided.grad = gradient.permute(order).contiguous().permute(order)
        else:
            strided.grad = gradient
        optimizers = [
            getattr(fastgan.optim, name)([p], lr=0.1, clip=0.4, **options) for p in (strided, plain)
        ]
        for _ in range(2):
            for optimizer in optimizers:
                optimizer.step()
        assert torch.equal(strided.detach(), plain.detach()), layout
        for key, value in optimizers[1].state[plain].items():
            assert torch.equal(optimizers[0].state[strided][key], value), (layout, key)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("scaled", [False, True])
def test_lazily_negated_gradient_is_right(device, name, scaled):
    lazy = torch.randn(6, dtype=torch.complex64, device=device).conj().imag
    assert lazy.is_neg()
    weights = []
    for gradient in (lazy, lazy.resolve_neg().clone()):
        weight = torch.zeros(6, device=device, requires_grad=True)
        weight.grad = gradient.view_as(gradient)
        optimizer = getattr(fastgan.optim, name)([weight], lr=0.1)
        if scaled:
            optimizer.grad_scale = torch.tensor(4.0, device=device)
        optimizer.step()
        weights.append(weight)
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0].grad, weights[1].grad)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_memory_around_a_view_is_not_touched(device, name):
    base = torch.full((64, 64), 5.0, device=device)
    view = nn.Parameter(base[1::2, 3:60])
    view.grad = torch.ones_like(view)
    getattr(fastgan.optim, name)([view], clip=1.0).step()
    assert base[1::2, 3:60].eq(1.0).all()
    base[1::2, 3:60] = 5.0
    assert base.eq(5.0).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_mixed_dtypes_in_one_group(device, name):
    ours_params = [p for dtype in DTYPES for p in parameters([(33,), (2, 3)], dtype, device)]
    ours_params = ours_params[::2] + ours_params[1::2]
    alone = copies(ours_params)
    set_gradients((ours_params, alone), 0)
    getattr(fastgan.optim, name)(ours_params, lr=0.1, clip=0.3).step()
    for param in alone:
        getattr(fastgan.optim, name)([param], lr=0.1, clip=0.3).step()
    for p, q in zip(ours_params, alone, strict=True):
        assert torch.equal(p, q)


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_mixed_devices_in_one_group(cuda, name):
    ours_params = parameters([(33,)], torch.float32) + parameters([(33,)], torch.float32, cuda)
    set_gradients((ours_params,), 0)
    ours_params[1].grad.copy_(ours_params[0].grad)
    optimizer = getattr(fastgan.optim, name)(ours_params, lr=torch.tensor(0.1), clip=0.3)
    optimizer.step()
    torch.testing.assert_close(ours_params[0], ours_params[1].cpu())
    assert optimizer.state[ours_params[1]]["step"].device.type == "cuda"


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip_when", ["after", "before"])
def test_parameters_without_gradient_are_clipped_and_nothing_else(device, name, clip_when):
    params = [p.detach() * 5 for p in parameters([(9,), (8,), (7,)], torch.float32, device)]
    params = [params[0].requires_grad_(), params[1].requires_grad_(), params[2]]  # the last: frozen
    values = [p.detach().clone() for p in params]
    params[0].grad = torch.ones_like(params[0])
    optimizer = getattr(fastgan.optim, name)(params, clip=0.5, clip_when=clip_when)
    optimizer.step()
    for param, value in zip(params[1:], values[1:], strict=True):
        assert torch.equal(param.detach(), value.clamp(-0.5, 0.5))
        assert param not in optimizer.state
    no_clip = [v.clone().requires_grad_() for v in values]
    getattr(fastgan.optim, name)(no_clip).step()
    for param, value in zip(no_clip, values, strict=True):
        assert torch.equal(param.detach(), value)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip_when", ["after", "before"])
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_tied_parameters_are_stepped_in_turn_as_by_torch(device, name, clip_when):
    def tied():
        base = torch.linspace(-1, 1, 12, device=device, dtype=torch.float64)
        first = nn.Parameter(base[:8])
        overlapping = nn.Parameter(base[4:])
        first.grad = torch.linspace(1, 2, 8, device=device, dtype=torch.float64)
        overlapping.grad = torch.linspace(-2, 1, 8, device=device, dtype=torch.float64)
        return base, [first, overlapping, first]

    ours_base, ours_params = tied()
    their_base, their_params = tied()
    ours = getattr(fastgan.optim, name)(ours_params, lr=0.1, clip=0.7, clip_when=clip_when)
    theirs = getattr(torch.optim, name)(their_params, lr=0.1, foreach=False)
    for _ in range(3):
        ours.step()
        reference_step(theirs, their_params, (-0.7, 0.7), clip_when)
    torch.testing.assert_close(ours_base, their_base, rtol=1e-14, atol=1e-15)
    assert ours.state[ours_params[0]]["step"].item() == 6


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_tied_module_weights_are_stepped_once(device, name):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(device)
    model[1].weight = model[0].weight
    reference = copy.deepcopy(model)
    ours = getattr(fastgan.optim, name)(model.parameters(), lr=0.1, clip=0.2)
    theirs = getattr(torch.optim, name)(reference.parameters(), lr=0.1)
    x = torch.randn(3, 4, device=device)
    for _ in range(3):
        for net in (model, reference):
            net.zero_grad()
            net(x).square().mean().backward()
        ours.step()
        reference_step(theirs, list(reference.parameters()), (-0.2, 0.2))
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_may_differ_in_everything(device, name):
    options = {
        "RMSprop": [{"momentum": 0.9}, {"centered": True, "alpha": 0.5}, {"weight_decay": 0.1}],
        "Adam": [{"amsgrad": True}, {"betas": (0.0, 0.9)}, {"weight_decay": 0.1}],
    }[name]
    own = [{"clip": 0.1}, {"clip": (-0.5, 0.2), "clip_when": "before"}, {"clip": None}]
    ours_params = parameters([(31,), (32,), (33,), (34,)], torch.float64, device)
    apart = copies(ours_params)
    groups = [
        {"params": [p], "lr": 0.01 * (i + 1), **a, **b}
        for i, (p, a, b) in enumerate(zip(ours_params[:3], options, own, strict=True))
    ]
    ours = getattr(fastgan.optim, name)(groups, clip=0.3)
    ours.add_param_group({"params": ours_params[3]})
    single = [
        getattr(fastgan.optim, name)([p], lr=0.01 * (i + 1), **a, **b)
        for i, (p, a, b) in enumerate(zip(apart[:3], options, own, strict=True))
    ]
    single.append(getattr(fastgan.optim, name)([apart[3]], clip=0.3))
    for step in range(3):
        set_gradients((ours_params, apart), step)
        for optimizer in (ours, *single):
            optimizer.step()
    for p, q in zip(ours_params, apart, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("count", [39, 40, 41, 381, 900])
def test_long_lists_of_tensors_take_several_tables(device, name, count):
    sizes = [(i * 7919) % 300 for i in range(count)]
    ours_params = parameters([(n,) for n in sizes], torch.float32, device)
    together = [p.detach() for p in ours_params]
    flat = torch.cat(together).requires_grad_()
    set_gradients((ours_params,), 1)
    flat.grad = torch.cat([p.grad for p in ours_params])
    optimizers = [getattr(fastgan.optim, name)(p, lr=0.1, clip=0.5) for p in (ours_params, [flat])]
    for _ in range(2):
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(torch.cat([p.detach() for p in ours_params]), flat.detach())
    assert all(optimizers[0].state[p]["step"].item() == 2 for p in ours_params)


def test_number_of_threads_does_not_change_the_result():
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            params = parameters([(200_003,), (3,), (150_001,)], torch.float32)
            set_gradients((params,), 0)
            fastgan.optim.Adam(params, clip=0.5).step()
            results.append(torch.cat([p.detach() for p in params]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_passes_the_checks(instruction_set):
    info = fastgan.build_info()
    if instruction_set not in info.cpu_instruction_sets:
        pytest.skip(f"this build has no loops for {instruction_set}: {info.cpu_instruction_sets}")
    widest = info.cpu_instruction_sets.index(info.cpu_instruction_set)
    if info.cpu_instruction_sets.index(instruction_set) > widest:
        pytest.skip(f"this processor lacks {instruction_set}")
    script = (
        "import torch, fastgan; from fastgan.ops import check_op\n"
        "for op in ('clip_tensors_', 'rmsprop_step_', 'adam_step_'): check_op(op, 'cpu')\n"
        "for d in (torch.float16, torch.bfloat16):\n"
        "    v = torch.arange(-2**15, 2**15).to(torch.int16).view(d)\n"
        "    a = v.clone(); torch.ops.fastgan.clip_tensors_([a], [], -0.3, 7.0, None)\n"
        "    assert torch.equal(a.nan_to_num(9), v.clamp(-0.3, 7.0).nan_to_num(9))\n"
        "print(fastgan.build_info().cpu_instruction_set)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "FASTGAN_CPU_INSTRUCTION_SET": instruction_set},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == instruction_set


# --- torch.optim's manners ------------------------------------------------------------------------


def test_are_torchs_optimisers_with_torchs_arguments():
    import inspect

    for name in OPTIMIZERS:
        ours = getattr(fastgan.optim, name)
        assert issubclass(ours, getattr(torch.optim, name))
        theirs = inspect.signature(getattr(torch.optim, name)).parameters
        own = inspect.signature(ours).parameters
        assert theirs.keys() <= own.keys()
        assert all(own[key].default == theirs[key].default for key in theirs)
        positional = [key for key in theirs if theirs[key].kind is not theirs[key].KEYWORD_ONLY]
        assert list(own)[: len(positional)] == positional
    settings = [0.1, 0.9, 1e-3, 0.2, 0.3, True, False, None, True]
    torch.optim.RMSprop([torch.zeros(1)], *settings)
    rmsprop = fastgan.optim.RMSprop([torch.zeros(1)], *settings, clip=0.4)
    expected = {"lr": 0.1, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.2, "momentum": 0.3}
    expected |= {"centered": True, "maximize": True, "clip": 0.4, "clip_when": "after"}
    assert expected.items() <= rmsprop.param_groups[0].items()
    adam = fastgan.optim.Adam([torch.zeros(1)], 0.1, (0.1, 0.2), 1e-3, 0.2, True, True, (0, 1))
    expected = {"lr": 0.1, "betas": (0.1, 0.2), "eps": 1e-3, "weight_decay": 0.2}
    expected |= {"amsgrad": True, "maximize": True, "clip": (0, 1), "clip_when": "after"}
    assert expected.items() <= adam.param_groups[0].items()
    assert expected.items() <= adam.defaults.items()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"foreach": True},
        {"foreach": False},
        {"fused": True},
        {"fused": False},
        {"capturable": True},
        {"capturable": True, "foreach": True},
        {"differentiable": False},
    ],
)
@pytest.mark.parametrize("where", ["argument", "group", "state dict"])
def test_torchs_choices_of_an_implementation_are_taken_and_change_nothing(name, choice, where):
    params = parameters([(3,), (2, 2)], torch.float32)
    expected = copies(params)
    kind = getattr(fastgan.optim, name)
    if where == "argument":
        optimizer = kind(params, clip=0.5, **choice)
    elif where == "group":
        optimizer = kind([{"params": params, **choice}], clip=0.5)
    else:
        optimizer = kind(params, clip=0.5)
        loaded = optimizer.state_dict()
        loaded["param_groups"][0].update(choice)
        optimizer.load_state_dict(loaded)
    plain = kind(expected, clip=0.5)
    for seed in range(3):
        set_gradients((params, expected), seed)
        optimizer.step()
        plain.step()
    assert all(torch.equal(a, b) for a, b in zip(params, expected, strict=True))
    settings = optimizer.state_dict()["param_groups"][0]
    if name == "Adam" or "fused" not in choice:
        assert choice.items() <= settings.items()
        getattr(torch.optim, name)(expected).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("direction", ["ours to torch", "torch to ours"])
@pytest.mark.parametrize("foreach", [False, True])
def test_state_dicts_interchange(device, name, direction, foreach):
    options = {
        "RMSprop": {"momentum": 0.9, "centered": True},
        "Adam": {"amsgrad": True, "betas": (0.5, 0.9)},
    }[name]
    first_params = parameters([(17,), (3, 4)], torch.float32, device)
    ours = getattr(fastgan.optim, name)(first_params, lr=0.01, clip=0.6, **options)
    theirs = getattr(torch.optim, name)(first_params, lr=0.01, foreach=foreach, **options)
    first, second = (ours, theirs) if direction == "ours to torch" else (theirs, ours)
    for step in range(3):
        set_gradients((first_params,), step)
        reference_step(first, first_params, (-0.6, 0.6))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    second.load_state_dict(copy.deepcopy(loaded))
    assert ours.param_groups[0]["clip"] == 0.6  # torch's dict has none: ours keeps its own
    again = getattr(torch.optim, name)(first_params, foreach=foreach)
    again.load_state_dict(copy.deepcopy(loaded))
    after = []
    for optimizer in (second, again):
        values = [p.detach().clone() for p in first_params]
        set_gradients((first_params,), 7)
        reference_step(optimizer, first_params, (-0.6, 0.6))
        after.append([p.detach().clone() for p in first_params])
        with torch.no_grad():
            for param, value in zip(first_params, values, strict=True):
                param.copy_(value)
    torch.testing.assert_close(after[0], after[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_dict_has_torchs_keys(name):
    options = {"RMSprop": {"momentum": 0.9, "centered": True}, "Adam": {"amsgrad": True}}[name]
    dicts = []
    for module, more in ((fastgan.optim, {"clip": (-1.0, 2.0)}), (torch.optim, {})):
        params = parameters([(5,)], torch.float32)
        set_gradients((params,), 0)
        optimizer = getattr(module, name)(params, **options, **more)
        optimizer.step()
        dicts.append(optimizer.state_dict())
    assert set(dicts[0]["state"][0]) == set(dicts[1]["state"][0])
    ours, theirs = (d["param_groups"][0] for d in dicts)
    assert set(ours) - set(theirs) == {"clip", "clip_when", "shadow_dtype"}
    assert set(theirs) <= set(ours)
    for key in theirs:
        assert ours[key] == theirs[key]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_of_an_optimiser_go_on_alike(name, how):
    model = nn.Linear(4, 3)
    optimizer = getattr(fastgan.optim, name)(
        model.parameters(), lr=0.1, clip=0.2, clip_when="before", shadow_dtype=torch.bfloat16
    )
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    pair = (model, optimizer)
    twin = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    # Neither carries gradients to the copy in every version of torch.
    for net, opt in (pair, twin):
        net.zero_grad()
        net(torch.ones(2, 4)).square().sum().backward()
        opt.step()
    assert twin[1].param_groups[0]["clip_when"] == "before"
    for p, q in zip(model.parameters(), twin[0].parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(twin[1].shadow(q), q.detach().bfloat16())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_closure_hooks_zero_grad_and_scheduler_work(device, name):
    param = torch.full((3,), 2.0, device=device, requires_grad=True)
    optimizer = getattr(fastgan.optim, name)([param], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure():
        calls.append("closure")
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 12.0
    assert calls == ["before", "closure", "after"]
    assert optimizer.step() is None
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5
    optimizer.zero_grad()
    assert param.grad is None
    value = param.detach().clone()
    optimizer.step()
    assert torch.equal(param.detach(), value)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_learning_rate_may_be_a_tensor_and_change(device, name, dtype, shape):
    params = parameters([(50,)], torch.float32, device)
    same = copies(params)
    rate = torch.full(shape, 0.25, dtype=dtype, device=device)
    tensor = getattr(fastgan.optim, name)(params, lr=rate)
    number = getattr(fastgan.optim, name)(same, lr=0.25)
    for value in (0.25, 0.125):
        rate.fill_(value)
        number.param_groups[0]["lr"] = value
        set_gradients((params, same), 3)
        tensor.step()
        number.step()
    assert torch.equal(params[0], same[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_settings_changed_in_a_param_group_hold_from_the_next_step(name):
    params = parameters([(50,)], torch.float32)
    optimizer = getattr(fastgan.optim, name)(params)
    set_gradients((params,), 0)
    optimizer.step()
    assert params[0].abs().max() > 1
    optimizer.param_groups[0]["clip"] = 0.25
    if name == "RMSprop":
        optimizer.param_groups[0]["momentum"] = 0.5
    else:
        optimizer.param_groups[0]["amsgrad"] = True
    optimizer.step()
    assert params[0].abs().max() == 0.25


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_writes_are_counted_so_that_a_stale_backward_raises(name):
    weight = torch.ones(3, requires_grad=True)
    loss = (weight * weight).sum()
    weight.grad = torch.ones(3)
    optimizer = getattr(fastgan.optim, name)([weight], clip=0.1)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_step_works_in_inference_mode_and_keeps_grad_mode(name):
    weight = torch.ones(3, requires_grad=True)
    weight.grad = torch.ones(3)
    optimizer = getattr(fastgan.optim, name)([weight], clip=0.1)
    optimizer.step()
    assert torch.is_grad_enabled()
    assert weight.requires_grad
    assert weight.is_leaf
    version = weight._version
    with torch.inference_mode():
        optimizer.step()
    assert weight._version > version


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": (1.0, -1.0)}, r"clip is \(1.0, -1.0\); expected \(lo, hi\) with lo <= hi"),
        ({"clip": -0.1}, "clip is -0.1; expected c >= 0"),
        ({"clip": "0.01"}, "clip is '0.01'"),
        ({"clip": math.nan}, "clip is nan"),
        ({"clip": 10**400}, "clip has a number beyond what a float holds"),
        ({"clip": (-1, 10**5000)}, "clip has a number beyond what a float holds"),
        ({"clip_when": "never"}, "clip_when is 'never'; expected 'after' or 'before'"),
        ({"shadow_dtype": torch.float32}, "shadow_dtype is torch.float32"),
        ({"differentiable": True}, "differentiable is True; .* take torch.optim"),
        ({"foreach": 0.01}, "foreach is 0.01; expected True, False or None"),
        ({"fused": "yes"}, "fused is 'yes'"),
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"eps": -1.0}, "Invalid epsilon value"),
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
    ],
)
def test_bad_settings_are_refused_at_once(name, settings, message):
    weights = [torch.zeros(2, requires_grad=True)]
    with pytest.raises(ValueError, match=message):
        getattr(fastgan.optim, name)(weights, **settings)
    if "lr" in settings or "eps" in settings:
        return  # torch does not check these for a group
    with pytest.raises(ValueError, match=message):
        getattr(fastgan.optim, name)([{"params": weights, **settings}])
    optimizer = getattr(fastgan.optim, name)(weights)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [torch.zeros(3)], **settings})
    assert len(optimizer.param_groups) == 1


def assert_same_state_dict(actual, expected):
    assert actual["param_groups"] == expected["param_groups"]
    assert actual["state"].keys() == expected["state"].keys()
    for number, state in expected["state"].items():
        assert actual["state"][number].keys() == state.keys()
        for key, value in state.items():
            assert torch.equal(actual["state"][number][key], value)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.float8_e4m3fn])
def test_other_dtypes_are_refused_by_name(name, dtype):
    with pytest.raises(TypeError, match=f"parameter number 1 of the group has dtype {dtype}"):
        getattr(fastgan.optim, name)([torch.zeros(2), torch.zeros(2).to(dtype)])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sparse_gradients_are_refused(device, name):
    embedding = nn.Embedding(4, 3, sparse=True).to(device)
    embedding(torch.tensor([1], device=device)).sum().backward()
    optimizer = getattr(fastgan.optim, name)(embedding.parameters())
    before = embedding.weight.detach().clone()
    with pytest.raises(RuntimeError, match=f"{name} does not support sparse gradients"):
        optimizer.step()
    assert torch.equal(embedding.weight.detach(), before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_expanded_parameter_is_refused_as_by_torch(device, name):
    weight = nn.Parameter(torch.ones(3, 1, device=device).expand(3, 4))
    weight.grad = torch.ones(3, 4, device=device)
    with pytest.raises(RuntimeError, match="single memory location"):
        getattr(fastgan.optim, name)([weight]).step()


def test_adamw_state_and_group_are_refused_and_change_nothing():
    params = parameters([(3,)], torch.float32)
    set_gradients((params,), 0)
    adamw = torch.optim.AdamW(params, lr=0.7)
    adamw.step()
    optimizer = fastgan.optim.Adam(params)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(fastgan.ConfigError, match="decoupled_weight_decay"):
        optimizer.load_state_dict(adamw.state_dict())
    assert_same_state_dict(optimizer.state_dict(), before)
    with pytest.raises(fastgan.ConfigError, match="decoupled_weight_decay"):
        optimizer.add_param_group({"params": [torch.zeros(2)], "decoupled_weight_decay": True})
    assert_same_state_dict(optimizer.state_dict(), before)


def test_rmsprop_switched_from_momentum_to_centered_makes_the_state_it_lacks():
    params = parameters([(3,)], torch.float32)
    set_gradients((params,), 0)
    optimizer = fastgan.optim.RMSprop(params, momentum=0.5)
    optimizer.step()
    expected = optimizer.state[params[0]]["square_avg"].clone() * 0.99
    optimizer.param_groups[0].update(momentum=0, centered=True)
    optimizer.step()
    state = optimizer.state[params[0]]
    torch.testing.assert_close(state["square_avg"], expected + 0.01 * params[0].grad ** 2)
    torch.testing.assert_close(state["grad_avg"], 0.01 * params[0].grad)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "bad",
    [{"clip": (1, -1)}, {"clip_when": "never"}, {"shadow_dtype": 16}, {"differentiable": True}],
)
def test_state_dict_with_a_bad_setting_is_refused_and_changes_nothing(name, bad):
    params = parameters([(3,), (2,)], torch.float32)
    set_gradients((params,), 0)
    optimizer = getattr(fastgan.optim, name)([{"params": [param]} for param in params], clip=0.5)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    loaded = copy.deepcopy(before)
    loaded["param_groups"][0]["lr"] = 0.7
    loaded["param_groups"][1].update(bad)
    loaded["state"][0]["step"] += 1
    with pytest.raises(fastgan.ConfigError, match=next(iter(bad))):
        optimizer.load_state_dict(loaded)
    assert_same_state_dict(optimizer.state_dict(), before)


# --- GradScaler -----------------------------------------------------------------------------------


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


# --- Shadows --------------------------------------------------------------------------------------


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


# --- A training run -------------------------------------------------------------------------------


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


# --- The ops --------------------------------------------------------------------------------------


def op_arguments(op, device, dtype=torch.float32, *, shadows=True, grad_scale=True):
    """Arguments of an op over a dense, a strided and an empty tensor."""
    torch.manual_seed(0)
    base = torch.randn(4, 6, device=device).to(dtype)

    def tensors(n=3):
        made = [base.clone(), base.clone().repeat(1, 2)[:, ::2], base.clone()[:0]]
        return made[:n]

    shadow = [t.to(torch.bfloat16) for t in tensors()] if shadows else []
    steps = [torch.ones((), device=device) for _ in range(3)]
    scale = torch.tensor(2.0, device=device) if grad_scale else None
    found = torch.tensor(0.0, device=device)
    states = [[t**2 + 2 for t in tensors()], tensors(), tensors()]
    if op == "clip_tensors_":
        return tensors(), shadow, -0.1, 0.2, found
    if op == "rmsprop_step_":
        return (tensors(), tensors(), *states, steps, shadow, 0.1, None, 0.9, 1e-3, 0.1, 0.5, True,
                False, -1.0, 1.0, False, scale, found)  # fmt: skip
    states = [states[1], states[0], [t.clone() for t in states[0]]]
    return (tensors(), tensors(), *states, steps, shadow, 0.1, steps[0].clone(), 0.5, 0.9, 1e-3,
            0.1, True, False, -1.0, 1.0, True, scale, found)  # fmt: skip


OPS = ["clip_tensors_", "rmsprop_step_", "adam_step_"]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("extras", [False, True])
def test_opcheck(device, op, dtype, extras):
    arguments = op_arguments(op, device, dtype, shadows=extras, grad_scale=extras)
    torch.library.opcheck(getattr(torch.ops.fastgan, op).default, arguments)


@pytest.mark.parametrize("op", OPS)
def test_plain_pytorch_kernel_agrees_with_the_compiled_one(op):
    for dtype in DTYPES:
        compiled = op_arguments(op, "cpu", dtype)
        plain = copy.deepcopy(compiled)
        getattr(torch.ops.fastgan, op)(*compiled)
        DEFINED[op].reference(*plain)
        for a, b in zip(compiled, plain, strict=True):
            if isinstance(a, list):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("op", OPS)
def test_lists_that_do_not_match_are_refused(device, op):
    function = getattr(torch.ops.fastgan, op)

    def refused(arguments, message):
        for call in (function, DEFINED[op].reference):
            with torch.no_grad(), pytest.raises(RuntimeError, match=message):
                call(*arguments)

    arguments = list(op_arguments(op, device, grad_scale=False, shadows=False))
    wrong = [*arguments[0][:2], arguments[0][2].double()]
    refused([wrong, *arguments[1:]], r"dtype torch\.float64")
    if op == "clip_tensors_":
        refused([arguments[0], arguments[0][:1], *arguments[2:]], "shadows has 1 tensors for 3")
        refused([arguments[0], arguments[0], *arguments[2:]], "float16 or all bfloat16")
        refused([*arguments[:2], 1.0, -1.0, None], "min must not exceed max")
        return
    short = arguments[1][:2]
    refused([arguments[0], short, *arguments[2:]], "grads")
    wrong = [arguments[1][0][:1], *arguments[1][1:]]
    refused([arguments[0], wrong, *arguments[2:]], r"grads\[0\] has shape \(1, 6\)")
    refused([*arguments[:5], arguments[5][:2], *arguments[6:]], "state_steps")


@pytest.mark.parametrize("op", OPS)
def test_gradient_is_never_lost_in_silence(device, op):
    arguments = op_arguments(op, device)
    arguments[0][0].requires_grad_()
    with pytest.raises(RuntimeError, match="requires grad"):
        getattr(torch.ops.fastgan, op)(*arguments)


@pytest.mark.parametrize("op", OPS)
def test_op_counts_its_writes(device, op):
    arguments = op_arguments(op, device, grad_scale=False)
    versions = [[t._version for t in a] if isinstance(a, list) else None for a in arguments]
    getattr(torch.ops.fastgan, op)(*arguments)
    for i, (argument, before) in enumerate(zip(arguments, versions, strict=True)):
        if before is not None:
            after = [t._version for t in argument]
            if i == 1 and op != "clip_tensors_":  # gradients, which are not unscaled here
                assert after == before
            else:
                assert all(new > old for new, old in zip(after, before, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_step_op_compiles_as_one_graph(device, name, backend):
    op = {"RMSprop": "rmsprop_step_", "Adam": "adam_step_"}[name]

    def step(*arguments):
        with torch.no_grad():
            getattr(torch.ops.fastgan, op)(*arguments)
        return arguments[0][0] * 2

    import torch._inductor.config  # takes a second

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    eager_arguments = op_arguments(op, device)
    arguments = copy.deepcopy(eager_arguments)
    # Which vectors the compiler knows, and precompiled headers, would take half a minute.
    with torch._inductor.config.patch(
        {"cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False}
    ):
        expected, actual = step(*eager_arguments), compiled(*arguments)
    torch.testing.assert_close(actual, expected)
    for a, b in zip(arguments, eager_arguments, strict=True):
        if isinstance(a, list):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_step_with_a_grad_scale_compiles_as_one_graph(device, name):
    def optimizer():
        params = parameters([(5,), (2, 3)], torch.float32, device=device)
        set_gradients((params,), 1)
        optimizer = getattr(fastgan.optim, name)(params, lr=0.1, clip=0.5)
        optimizer.grad_scale = torch.tensor(4.0, device=device)
        optimizer.found_inf = torch.tensor(0.0, device=device)
        return params, optimizer

    (eager_params, eager), (params, traced) = optimizer(), optimizer()
    eager.step()
    torch.compile(traced.step, fullgraph=True, backend="eager")()
    for expected, actual in zip(eager_params, params, strict=True):
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(actual.grad, expected.grad)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_step_compiles_as_one_graph(device, name):
    params = parameters([(17,), (3, 4)], torch.float32, device)
    eager_params = copies(params)
    set_gradients((params, eager_params), 0)
    compiled = getattr(fastgan.optim, name)(params, lr=0.1, clip=0.5)
    eager = getattr(fastgan.optim, name)(eager_params, lr=0.1, clip=0.5)
    torch._dynamo.reset()
    step = torch.compile(lambda: compiled.step(), fullgraph=True, backend="aot_eager")
    for seed in range(3):
        set_gradients((params, eager_params), seed)
        step()
        eager.step()
    for p, q in zip(params, eager_params, strict=True):
        torch.testing.assert_close(p, q)
        assert compiled.state[p]["step"].item() == 3


@pytest.mark.parametrize("op", OPS)
def test_paths_are_reported_and_checks_pass(device, op):
    row = {(row.op, row.device): row for row in op_paths()}[op, device.type]
    info = fastgan.build_info()
    assert row.path == (
        device.type if info.native and (device.type == "cpu" or info.cuda) else "aten"
    )
    check_op(op, device)


# --- CUDA alone -----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_runs_on_the_current_stream_without_waiting(cuda, name):
    stream = torch.cuda.Stream()
    slow = torch.randn(4096, 4096, device=cuda)
    weight = torch.zeros(1 << 20, device=cuda, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    optimizer = getattr(fastgan.optim, name)([weight], lr=0.1, clip=1.0)
    optimizer.step()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(30):
            slow = slow @ slow
        with torch.no_grad():
            weight.fill_(5.0)
        optimizer.step()
        assert not stream.query(), "the step waited for the device"
    stream.synchronize()
    assert weight.unique().tolist() == [1.0]


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_is_captured_in_a_cuda_graph_and_replays(cuda, name):
    params = parameters([(1000,), (3, 5)], torch.float32, cuda)
    plain = copies(params)
    rate = torch.tensor(0.1, device=cuda)
    optimizer = getattr(fastgan.optim, name)(params, lr=rate, clip=0.5, shadow_dtype=torch.bfloat16)
    eager = getattr(fastgan.optim, name)(plain, lr=0.1, clip=0.5)
    set_gradients((params, plain), 0)
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        optimizer.step()
    torch.cuda.current_stream().wait_stream(warm_up)
    eager.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for step in range(1, 4):
        generator = torch.Generator().manual_seed(step)
        for p, q in zip(params, plain, strict=True):
            p.grad.copy_(torch.randn(p.shape, generator=generator))
            q.grad.copy_(p.grad)
        rate.fill_(0.1 / step)
        eager.param_groups[0]["lr"] = rate.item()
        graph.replay()
        eager.step()
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q)
        assert optimizer.state[p]["step"].item() == 4
        assert torch.equal(optimizer.shadow(p), p.detach().bfloat16())


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_torchs_state_on_the_cpu_moves_to_the_weights(cuda, name):
    params = parameters([(10,)], torch.float32, cuda)
    theirs = getattr(torch.optim, name)(params)
    set_gradients((params,), 0)
    theirs.step()
    assert theirs.state[params[0]]["step"].device.type == "cpu"
    ours = getattr(fastgan.optim, name)(params)
    ours.load_state_dict(theirs.state_dict())
    assert ours.state[params[0]]["step"].device.type == "cuda"
    ours.step()
    assert ours.state[params[0]]["step"].item() == 2


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements(cuda):
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of free GPU memory")
    weight = torch.zeros(2**31 + 37, dtype=torch.bfloat16, device=cuda)
    weight.grad = torch.ones_like(weight)
    fastgan.optim.RMSprop([weight], lr=1.0, clip=0.5).step()
    assert weight[:100].eq(-0.5).all()
    assert weight[-100:].eq(-0.5).all()
