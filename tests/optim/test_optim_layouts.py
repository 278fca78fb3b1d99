"""Parameters of every layout, dtype and length, apart, tied and in groups."""

from __future__ import annotations

import copy

import pytest
import torch
from optim_steps import DTYPES, OPTIMIZERS, ROWS, copies, parameters, reference_step, set_gradients
from torch import nn

import fastgan
import fastgan.optim


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
    options = ROWS[name].full
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
    one_each = [
        getattr(fastgan.optim, name)([p], lr=0.01 * (i + 1), **a, **b)
        for i, (p, a, b) in enumerate(zip(apart[:3], options, own, strict=True))
    ]
    one_each.append(getattr(fastgan.optim, name)([apart[3]], clip=0.3))
    for step in range(3):
        set_gradients((ours_params, apart), step)
        for optimizer in (ours, *one_each):
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
