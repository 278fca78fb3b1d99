"""The interface of torch.optim: arguments, state_dict, hooks, schedulers, and what is refused."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from optim_steps import NUMERIC, OPTIMIZERS, ROWS, copies, parameters, reference_step, set_gradients
from torch import nn

import fastgan
import fastgan.optim


def test_are_torchs_optimisers_with_torchs_arguments():
    import inspect

    for name in NUMERIC:
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


@pytest.mark.parametrize("name", NUMERIC)
@pytest.mark.parametrize("direction", ["ours to torch", "torch to ours"])
@pytest.mark.parametrize("foreach", [False, True])
def test_state_dicts_interchange(device, name, direction, foreach):
    options = ROWS[name].full
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
    options = ROWS[name].full
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
    optimizer.param_groups[0].update(ROWS[name].full)
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


@pytest.mark.parametrize(("name", "other"), [("Adam", "AdamW"), ("AdamW", "Adam")])
def test_the_state_and_group_of_adam_with_the_other_decay_are_refused(name, other):
    params = parameters([(3,)], torch.float32)
    set_gradients((params,), 0)
    foreign = getattr(torch.optim, other)(params, lr=0.7)
    foreign.step()
    optimizer = getattr(fastgan.optim, name)(params)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(fastgan.ConfigError, match="decoupled_weight_decay"):
        optimizer.load_state_dict(foreign.state_dict())
    assert_same_state_dict(optimizer.state_dict(), before)
    with pytest.raises(fastgan.ConfigError, match="decoupled_weight_decay"):
        optimizer.add_param_group(
            {"params": [torch.zeros(2)], "decoupled_weight_decay": other == "AdamW"}
        )
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
