"""FusedSequential gives nn.Sequential's results, for any children.

The reference is always a plain ``nn.Sequential`` with deep copies of the children.
"""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastgan.explaining import fallback
from fastgan.explaining.fallback import FallbackWarning
from fastgan.nn import FusedSequential, fuse
from fastgan.ops.chain import weights_left_out
from fastgan.ops.stages import Stage, StageTensors, is_folding_faster


def generator_block(channels: int = 6) -> list[nn.Module]:
    return [
        nn.ConvTranspose2d(5, channels, 4, 1, 0, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(channels, 4, 4, 2, 1),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(4, 3, 4, 2, 1, bias=False),
        nn.Tanh(),
    ]


def critic_block() -> list[nn.Module]:
    return [
        nn.Conv2d(3, 4, 4, 2, 1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(4, 6, 4, 2, 1, bias=False),
        nn.BatchNorm2d(6),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(6, 1, 2, bias=False),
        nn.Sigmoid(),
    ]


def pair(layers: list[nn.Module], dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """The same layers plain and fused."""
    plain = nn.Sequential(*layers).to(dtype)
    for layer in plain:
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.affine:
            # Not 0: a channel that is constant would come to lie on an activation's kink.
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    for buffer in plain.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return plain, fuse(copy.deepcopy(plain))


def chains_in(output: Tensor) -> int:
    """How many chains' nodes the graph of a tensor has: that something ran fused at all."""
    found, seen, open_nodes = 0, set(), [output.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found += "Chain" in node.name()
        open_nodes += [following for following, _ in node.next_functions]
    return found


def agree(
    plain: nn.Module,
    fused: nn.Module,
    input: Tensor,
    *,
    chains: int | None = 1,
    tolerance: float = 1e-10,
) -> None:
    """Outputs, gradients of first and second order, and buffers are the same."""
    ours, theirs = input.clone().requires_grad_(), input.clone().requires_grad_()
    expected, found = plain(theirs), fused(ours)
    if chains is not None:
        assert chains_in(found) == chains
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    weights = torch.randn_like(expected)
    close = {"rtol": tolerance, "atol": tolerance}
    parameters = [p for p in plain.parameters() if p.requires_grad]
    own = [p for p in fused.parameters() if p.requires_grad]
    once = torch.autograd.grad(found, [ours, *own], weights, retain_graph=True)
    wanted = torch.autograd.grad(expected, [theirs, *parameters], weights, create_graph=True)
    for mine, reference in zip(once, wanted, strict=True):
        torch.testing.assert_close(mine, reference, **close)
    recorded = torch.autograd.grad(found, [ours, *own], weights, create_graph=True)
    twice = [
        torch.autograd.grad(sum(grad.square().sum() for grad in grads), leaves, allow_unused=True)
        for grads, leaves in ((recorded, [ours, *own]), (wanted, [theirs, *parameters]))
    ]
    # Where batch norm's input is constant, all of second order is but rounding of what cancels.
    sizes = [grad.detach().abs().max() for grad in (*wanted, *twice[1]) if grad is not None]
    scale = float(max(sizes))
    for mine, reference in zip(*twice, strict=True):
        if mine is None or reference is None:
            assert mine is None or not mine.any()
            assert reference is None or not reference.any()
            continue
        torch.testing.assert_close(mine, reference, rtol=tolerance, atol=tolerance * scale)
    for (name, buffer), (_, reference) in zip(
        fused.named_buffers(), plain.named_buffers(), strict=True
    ):
        torch.testing.assert_close(buffer, reference, **close, msg=lambda m, n=name: f"{n}: {m}")


# Random chains ------------------------------------------------------------------------------------


@st.composite
def random_layers(draw: st.DrawFn) -> tuple[list[nn.Module], tuple[int, ...]]:
    """Layers of all sorts, and an input's shape that they take."""
    size = draw(st.integers(1, 6))
    channels = draw(st.sampled_from([1, 2, 3, 4]))
    batch = draw(st.integers(2, 3))
    shape = (batch, channels, size, size + draw(st.integers(0, 2)))
    layers: list[nn.Module] = []
    rows, columns = shape[2:]
    for _ in range(draw(st.integers(1, 4))):
        kernel, stride, padding, dilation = (
            draw(st.integers(1, 4)),
            draw(st.integers(1, 3)),
            draw(st.integers(0, 2)),
            draw(st.integers(1, 2)),
        )
        wide = draw(st.sampled_from([1, 2, 3, 4]))
        groups = draw(st.sampled_from([g for g in (1, 2) if channels % g == 0 and wide % g == 0]))
        bias = draw(st.booleans())
        reach = dilation * (kernel - 1) + 1
        if draw(st.booleans()):
            extra = draw(st.integers(0, max(stride, dilation) - 1))
            grown = [(n - 1) * stride - 2 * padding + reach + extra for n in (rows, columns)]
            if min(grown) < 1 or max(grown) > 20:
                continue
            layers.append(
                nn.ConvTranspose2d(
                    channels, wide, kernel, stride, padding, extra, groups, bias, dilation
                )
            )
        else:
            grown = [(n + 2 * padding - reach) // stride + 1 for n in (rows, columns)]
            if min(n + 2 * padding - reach for n in (rows, columns)) < 0:
                continue
            layers.append(
                nn.Conv2d(channels, wide, kernel, stride, padding, dilation, groups, bias)
            )
        rows, columns = grown
        channels = wide
        if draw(st.booleans()):
            norm = nn.BatchNorm2d(
                channels,
                eps=draw(st.sampled_from([1e-5, 1e-2])),
                momentum=draw(st.sampled_from([None, 0.1, 0.7])),
                affine=draw(st.booleans()),
                track_running_stats=draw(st.booleans()),
            )
            norm.train(draw(st.booleans()))
            layers.append(norm)
        activation = draw(st.sampled_from([None, nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid]))
        if activation is not None:
            layers.append(activation())
    assume(layers)
    return layers, shape


# Batch norm's input is constant: the gradients of second order are 0 but for rounding.
@example(
    drawn=(
        [
            nn.Conv2d(1, 1, 1, padding=1, bias=False),
            nn.Conv2d(1, 2, 1, stride=2),
            nn.BatchNorm2d(2, momentum=None, track_running_stats=False),
        ],
        (2, 1, 1, 1),
    ),
    seed=0,
)
@given(random_layers(), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_random_chains_agree_to_second_order(
    drawn: tuple[list[nn.Module], tuple[int, ...]], seed: int
) -> None:
    layers, shape = drawn
    torch.manual_seed(seed)
    plain, fused = pair(layers)
    agree(plain, fused, torch.randn(shape, dtype=torch.float64), chains=None, tolerance=1e-8)


def test_running_statistics_without_momentum_are_means_over_all_batches() -> None:
    torch.manual_seed(0)
    plain, fused = pair([nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=None), nn.ReLU()])
    for _ in range(3):
        agree(plain, fused, torch.randn(4, 2, 5, 5, dtype=torch.float64))


def worst(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """The largest error of each, in units of the exact one's largest value."""
    return [
        float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for a, b in zip(found, exact, strict=True)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block", [generator_block, critic_block])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_errors_are_at_most_twice_those_of_eager(
    block: Callable[[], list[nn.Module]], dtype: torch.dtype, mean: float, device: torch.device
) -> None:
    """Against float64, over several draws, by the worst of each quantity."""
    if mean and dtype != torch.float32:
        mean = 10.0  # beyond 2^8 a bfloat16 holds no fraction, and the spread is 1
    largest: list[list[float]] = [[], []]
    for seed in range(4):
        torch.manual_seed(seed)
        exact = nn.Sequential(*block()).to(device, torch.float64)
        first = next(layer for layer in exact if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d))
        if first.bias is not None:
            nn.init.constant_(first.bias, mean)
        channels = first.in_channels
        size = 16 if isinstance(first, nn.Conv2d) else 2
        input = torch.randn(8, channels, size, size, device=device, dtype=torch.float64)
        # What all three are given is what the low precision holds.
        exact.to(dtype).to(torch.float64)
        input = input.to(dtype).double()
        results = []
        low = copy.deepcopy(exact).to(dtype)
        for network in (exact, low, fuse(copy.deepcopy(low))):
            x = input.to(next(network.parameters()).dtype).requires_grad_()
            output = network(x)
            torch.manual_seed(seed)
            weights = torch.randn(output.shape, dtype=torch.float64, device=device)
            grads = torch.autograd.grad(
                output, [x, *network.parameters()], weights.to(output.dtype)
            )
            running = [b for b in network.buffers() if b.is_floating_point()]
            results.append([output.detach(), *grads, *running])
        for errors, network_result in zip(largest, results[1:], strict=True):
            errors.append(worst(network_result, results[0]))
    eager, ours = (torch.tensor(errors).amax(0) for errors in largest)
    roundoff = torch.finfo(dtype).eps
    assert bool((ours <= 2 * eager + roundoff).all()), torch.stack([ours, eager])


# Arguments that depend on one another, hooks, writes in between ----------------------------------


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_chain_applied_to_its_own_output(create_graph: bool) -> None:
    plain, fused = pair([nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh()])
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    found = []
    for network in (plain, fused):
        loss = network(network(x)).square().sum()
        grads = torch.autograd.grad(loss, list(network.parameters()), create_graph=create_graph)
        if create_graph:
            sum(grad.square().sum() for grad in grads).backward()
            grads = [*grads, *(p.grad for p in network.parameters())]
        found.append([grad.detach() for grad in grads])
    torch.testing.assert_close(*found)


def test_a_layer_in_two_chains_differentiated_twice() -> None:
    shared = nn.Conv2d(3, 3, 3, padding=1).double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    found = []
    for kind in (nn.Sequential, FusedSequential):
        first, second = kind(shared, nn.Tanh()), kind(shared, nn.Sigmoid())
        loss = second(first(x).square()).sum()
        grads = torch.autograd.grad(loss, [shared.weight], create_graph=True)
        found.append([*grads, *torch.autograd.grad(grads[0].square().sum(), [shared.weight])])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("create_graph", [False, True])
def test_tensor_hooks_run_once(create_graph: bool) -> None:
    plain, fused = pair([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()])
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    for network in (plain, fused):
        network[0].weight.register_hook(lambda grad: grad * 0.5)
        network(x).square().sum().backward(create_graph=create_graph)
    torch.testing.assert_close(fused[0].weight.grad.detach(), plain[0].weight.grad.detach())


def test_vectors_written_between_forward_and_backward() -> None:
    """Eager's backward pass doesn't read them, so they may be; a recorded one does."""
    plain, fused = pair([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)])
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    for network in (plain, fused):
        out = network(x)
        with torch.no_grad():
            network[0].bias.add_(1)
            network[1].bias.data.add_(1)
        out.square().sum().backward()
    for mine, reference in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, reference.grad)
    out = fused(x)
    with torch.no_grad():
        fused[1].bias.add_(1)
    with pytest.raises(RuntimeError, match="the norm_bias of a fused layer"):
        out.sum().backward(create_graph=True)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [
            nn.Conv2d(3, 8, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(8, 5, 4),
            nn.ELU(inplace=True),
        ],
        lambda: [nn.ConvTranspose2d(3, 8, 4), nn.ReLU(), nn.Dropout(0.0, inplace=True)],
        lambda: [nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 2), nn.ELU(inplace=True)],
    ],
)
def test_what_follows_may_write_into_the_output(layers: Callable[[], list[nn.Module]]) -> None:
    plain, fused = pair(layers())
    size = 1 if isinstance(plain[0], nn.ConvTranspose2d) else 8
    agree(plain, fused, torch.randn(2, 3, size, size, dtype=torch.float64))


def test_a_parametrised_weight_is_computed_once_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "_seen", set())
    layer = nn.Conv2d(3, 4, 3)
    calls: list[int] = []

    class Counted(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            calls.append(1)
            return weight

    nn.utils.parametrize.register_parametrization(layer, "weight", Counted())
    network = FusedSequential(layer, nn.ReLU())
    calls.clear()
    network(torch.randn(2, 3, 5, 5))
    assert len(calls) == 1
    with pytest.warns(FallbackWarning, match="3 dimensions"):
        network(torch.randn(3, 5, 5))
    assert len(calls) == 2


def test_a_fallback_warns_once_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "_seen", set())
    _, fused = pair([nn.Conv2d(3, 4, 3), nn.ReLU()])
    with pytest.warns(FallbackWarning, match="one by one: its input has 3 dimensions, not 4"):
        fused(torch.randn(3, 6, 6).double())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused(torch.randn(3, 6, 6).double())


def test_settings_as_single_numbers_and_swapped_weights() -> None:
    plain, fused = pair([nn.Conv2d(3, 4, 3, padding="same"), nn.ReLU(), nn.Conv2d(4, 2, 3)])
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    for network in (plain, fused):
        network[2].stride = 2
    agree(plain, fused, x)
    for network in (plain, fused):
        network[0].weight = nn.Parameter(torch.ones(4, 3, 5, 5, dtype=torch.float64))
    agree(plain, fused, x, chains=None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_norm_of_another_dtype_is_refused_as_by_torch(dtype: torch.dtype) -> None:
    plain, fused = pair([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()], torch.float32)
    for network in (plain, fused):
        network[1].to(dtype)
        with pytest.raises(RuntimeError):
            network(torch.randn(2, 3, 6, 6))


def test_a_forward_replaced_on_the_class_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fused = pair([nn.Conv2d(3, 4, 3), nn.ReLU()])
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, input: torch.zeros_like(input))
    assert not fused(torch.randn(2, 3, 6, 6).double()).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_folding_in_16_bits_is_as_exact_as_eager(dtype: torch.dtype) -> None:
    """A tiny variance makes the scale large, and with it whatever is rounded before it."""
    errors: list[list[float]] = []
    for seed in range(4):
        torch.manual_seed(seed)
        exact = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)).eval().requires_grad_(False)
        exact[1].running_var.fill_(1e-6)
        exact[1].running_mean.normal_()
        low = exact.to(dtype)
        exact = copy.deepcopy(low).double()
        x = torch.randn(16, 8, 9, 9).to(dtype)
        truth = exact(x.double())
        errors.append(
            [float((n(x).double() - truth).abs().max()) for n in (low, fuse(copy.deepcopy(low)))]
        )
    eager, ours = torch.tensor(errors).amax(0)
    assert ours <= 2 * eager


# Modes, norms and modules of every kind ---------------------------------------------------------


@pytest.mark.parametrize("block", [generator_block, critic_block])
@pytest.mark.parametrize("training", [True, False])
def test_training_and_evaluation_agree(
    block: Callable[[], list[nn.Module]], training: bool
) -> None:
    plain, fused = pair(block())
    size = 16 if block is critic_block else 2
    channels = 3 if block is critic_block else 5
    agree(
        plain.train(training),
        fused.train(training),
        torch.randn(3, channels, size, size, dtype=torch.float64),
    )


@pytest.mark.parametrize("batch", [1, 64])
def test_evaluation_folds_norms_only_where_that_is_less_work(batch: int) -> None:
    """One image makes less than there are weights, 64 images make more."""
    plain, fused = pair([nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Sigmoid()])
    stage = Stage("conv2d", stride=(2, 2))
    tensors = StageTensors(plain[0].weight, plain[0].bias, plain[1].weight, plain[1].bias)
    # The norm's gradients would be inaccurate.
    assert not is_folding_faster(stage, tensors, batch, (5, 5))
    with torch.no_grad():
        assert is_folding_faster(stage, tensors, batch, (5, 5)) == (batch == 64)
    for network in (plain, fused):
        network[1].requires_grad_(False)
    assert is_folding_faster(stage, tensors, batch, (5, 5)) == (batch == 64)
    x = torch.randn(batch, 3, 5, 5, dtype=torch.float64)
    agree(plain.eval(), fused.eval(), x)
    (expected,) = torch.autograd.grad(fused(leaf := x.clone().requires_grad_()).sum(), leaf)
    out = fused(leaf)
    fused.train()(torch.randn(64, 3, 5, 5, dtype=torch.float64))  # writes the running statistics
    (found,) = torch.autograd.grad(out.sum(), leaf)
    torch.testing.assert_close(found, expected)


def test_a_switch_between_modes_takes_effect_at_once() -> None:
    plain, fused = pair(generator_block())
    x = torch.randn(2, 5, 1, 1, dtype=torch.float64)
    for training in (True, False, True):
        agree(plain.train(training), fused.train(training), x)


def test_a_frozen_norm_in_a_training_network_uses_its_running_statistics() -> None:
    plain, fused = pair(generator_block())
    for network in (plain, fused):
        network[1].eval()
        network[1].weight.requires_grad_(False)
    agree(plain, fused, torch.randn(2, 5, 1, 1, dtype=torch.float64))


def test_several_forward_passes_before_a_backward_pass() -> None:
    """As of a discriminator: reals, fakes, then one backward pass through both."""
    plain, fused = pair(critic_block())
    batches = [torch.randn(2, 3, 16, 16, dtype=torch.float64) for _ in range(2)]
    for network in (plain, fused):
        (network(batches[0]).mean() - network(batches[1]).mean()).backward()
    for mine, reference in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, reference.grad)


def test_channels_last_weights_of_one_channel_in_float64() -> None:
    plain, fused = pair(critic_block())
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    for network in (plain, fused):
        network.to(memory_format=torch.channels_last)
    agree(plain, fused, x)


def test_frozen_weights_get_no_gradient_and_cost_none() -> None:
    plain, fused = pair(generator_block())
    for network in (plain, fused):
        network[0].weight.requires_grad_(False)
        network[4].requires_grad_(False)
    agree(plain, fused, torch.randn(2, 5, 1, 1, dtype=torch.float64))
    out = fused(torch.randn(2, 5, 1, 1, dtype=torch.float64))
    out.sum().backward()
    assert fused[0].weight.grad is None


def weight_gradients(call: Callable[[], object]) -> int:
    with torch.profiler.profile(record_shapes=True) as profile:
        call()
    return sum(
        event.name == "aten::convolution_backward" and bool(event.concrete_inputs[-1][1])
        for event in profile.events()
    )


def test_weights_can_be_left_out_of_a_backward_pass() -> None:
    _, fused = pair(critic_block())
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    score = fused(x).square().sum()

    def gradient() -> Tensor:
        return torch.autograd.grad(score, x, retain_graph=True)[0]

    expected = gradient()
    assert weight_gradients(gradient) > 0
    with weights_left_out():
        assert torch.equal(gradient(), expected)
        assert weight_gradients(gradient) == 0
        fused(x.detach()).sum().backward()
        assert fused[0].weight.grad is None
    assert weight_gradients(gradient) > 0


def test_a_module_that_occurs_twice() -> None:
    activation, norm = nn.ReLU(inplace=True), nn.BatchNorm2d(4)
    convolution = nn.Conv2d(4, 4, 3, 1, 1)
    layers = [convolution, norm, activation, convolution, norm, activation]
    plain = nn.Sequential(*layers).double()
    fused = FusedSequential(*copy.deepcopy(plain))
    agree(plain, fused, torch.randn(2, 4, 5, 5, dtype=torch.float64))
    assert fused[1].num_batches_tracked == plain[1].num_batches_tracked


def test_linear_layers_with_batch_norm() -> None:
    layers = [nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2), nn.Tanh()]
    plain, fused = pair(layers)
    agree(plain, fused, torch.randn(4, 5, dtype=torch.float64))
    with_places = torch.randn(4, 6, 5, dtype=torch.float64)  # the norm's channels are another axis
    agree(plain[:2], fused[:2], with_places, chains=0)


def test_layers_between_stretches_run_as_ever() -> None:
    layers = [
        *critic_block()[:5],
        nn.Dropout2d(0.0),
        nn.Conv2d(6, 4, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 3),
        nn.Sigmoid(),
        nn.Softmax(1),
    ]
    plain, fused = pair(layers)
    agree(plain, fused, torch.randn(2, 3, 16, 16, dtype=torch.float64), chains=3)


@pytest.mark.parametrize(
    "spectral", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm]
)
def test_spectral_norm(spectral: Any) -> None:
    torch.manual_seed(0)
    layers = critic_block()
    for place in (0, 2, 5):
        layers[place] = spectral(layers[place])
    plain = nn.Sequential(*layers).double()
    fused = fuse(copy.deepcopy(plain))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    for training in (True, False):
        agree(plain.train(training), fused.train(training), x, chains=None)


def test_a_hook_on_a_child_sees_what_it_would_see() -> None:
    plain, fused = pair(generator_block())
    seen: dict[bool, list[Tensor]] = {False: [], True: []}
    for network, is_fused in ((plain, False), (fused, True)):
        network[1].register_forward_hook(
            lambda module, args, output, key=is_fused: seen[key].append(output.detach().clone())
        )
        network[5].register_full_backward_hook(
            lambda module, before, after, key=is_fused: seen[key].append(after[0].detach().clone())
        )
    x = torch.randn(2, 5, 1, 1, dtype=torch.float64)
    # An activation in place may not follow a module with a backward hook.
    plain[2].inplace = fused[2].inplace = False
    for network in (plain, fused):
        network(x).sum().backward()
    assert len(seen[True]) == len(seen[False]) == 2
    for mine, reference in zip(seen[True], seen[False], strict=True):
        torch.testing.assert_close(mine, reference)


def test_a_hook_may_change_the_output() -> None:
    plain, fused = pair(generator_block())
    handles = [n[3].register_forward_hook(lambda m, a, out: out * 2) for n in (plain, fused)]
    x = torch.randn(2, 5, 1, 1, dtype=torch.float64)
    agree(plain, fused, x, chains=None)
    for handle in handles:
        handle.remove()
    agree(plain, fused, x)


def test_a_hook_for_all_modules_is_called_for_each_child() -> None:
    _, fused = pair(critic_block())
    called: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: called.append(type(module).__name__)
    )
    try:
        fused(torch.randn(2, 3, 16, 16, dtype=torch.float64))
    finally:
        handle.remove()
    assert called == [type(layer).__name__ for layer in critic_block()] + ["FusedSequential"]


def test_children_changed_after_fusing() -> None:
    plain, fused = pair(critic_block())
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    agree(plain, fused, x)
    for network in (plain, fused):
        network[1] = nn.ELU()
        network[4].negative_slope = 0.5
        network[2].stride = (1, 1)
        network[2].padding = (0, 0)
    agree(plain, fused, x)
    for network in (plain, fused):
        network[3] = nn.Identity()
        del network[6]
    agree(plain, fused, x, chains=None)


def replaceable_layers() -> list[nn.Module]:
    return [
        nn.ConvTranspose2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.2),
        nn.Conv2d(4, 3, 3),
        nn.Sigmoid(),
    ]


REPLACEABLE = [
    ("ConvTranspose2d", "_output_padding"),
    ("BatchNorm2d", "_check_input_dim"),
    ("Conv2d", "_conv_forward"),
    *(
        (type(layer).__name__, name)
        for layer in replaceable_layers()
        for name in ("forward", "_call_impl", "_compiled_call_impl")
    ),
]


@pytest.mark.parametrize(
    ("layer", "name", "of_class"),
    [
        *((*each, False) for each in REPLACEABLE),
        *((*each, True) for each in REPLACEABLE),
        ("Conv2d", "__call__", True),  # Python looks it up on the class alone
    ],
)
def test_a_replaced_method_of_a_child_is_called(
    layer: str, name: str, of_class: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, fused = pair(replaceable_layers())
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    agree(plain, fused, x)
    called: list[nn.Module] = []

    def replaced(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        called.append(module)
        result = (original or nn.Module._call_impl)(module, *args, **kwargs)
        return 2 * result if isinstance(result, Tensor) else result

    for network in (plain, fused):
        (child,) = (each for each in network if type(each).__name__ == layer)
        original = getattr(type(child), name)
        if not of_class:
            monkeypatch.setattr(child, name, types.MethodType(replaced, child))
    if of_class:
        monkeypatch.setattr(type(child), name, replaced)
    found = fused(x)
    assert called == [child]
    torch.testing.assert_close(found, plain(x), rtol=1e-10, atol=1e-10)
    monkeypatch.undo()
    agree(plain, fused, x)


def test_a_replaced_forward_of_nn_sequential_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fused = pair(replaceable_layers())
    forward = nn.Sequential.forward
    monkeypatch.setattr(nn.Sequential, "forward", lambda self, input: 2 * forward(self, input))
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-10, atol=1e-10)


def test_a_method_replaced_before_fastgan_is_imported_is_called() -> None:
    program = """
import functools, torch
from torch import nn
original = nn.Conv2d._conv_forward
@functools.wraps(original)
def replaced(self, *args):
    return 2 * original(self, *args)
nn.Conv2d._conv_forward = replaced
import fastgan
plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
x = torch.randn(2, 3, 5, 5)
expected = plain(x)
torch.testing.assert_close(fastgan.fuse(plain)(x), expected)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.parametrize("padding_mode", ["reflect", "circular"])
def test_other_padding_modes(padding_mode: str) -> None:
    layers = [nn.Conv2d(3, 4, 3, padding=1, padding_mode=padding_mode), nn.ReLU()]
    plain, fused = pair(layers)
    agree(plain, fused, torch.randn(2, 3, 6, 6, dtype=torch.float64))


@pytest.mark.parametrize(("kernel", "chains"), [(3, 1), (4, 0)])
def test_padding_by_name(kernel: int, chains: int) -> None:
    plain, fused = pair([nn.Conv2d(3, 4, kernel, padding="same"), nn.BatchNorm2d(4), nn.ReLU()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about lopsided padding
        agree(plain, fused, torch.randn(2, 3, 6, 6, dtype=torch.float64), chains=chains)


def test_a_negative_slope_below_zero() -> None:
    plain, fused = pair([nn.Conv2d(3, 4, 3), nn.LeakyReLU(-0.3), nn.Conv2d(4, 2, 3), nn.Tanh()])
    agree(plain, fused, torch.randn(2, 3, 6, 6, dtype=torch.float64), chains=None)


# Inputs of every kind -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded", "transposed"])
def test_inputs_and_gradients_of_any_layout(layout: str) -> None:
    plain, fused = pair(critic_block())
    base = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    inputs = {
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "sliced": torch.randn(2, 5, 16, 33, dtype=torch.float64)[:, 1:4, :, 1::2],
        "expanded": base[:1, :1].expand(2, 3, 16, 16),
        "transposed": base.transpose(2, 3),
    }
    x = inputs[layout]
    ours, theirs = x.detach().requires_grad_(), x.detach().requires_grad_()
    found, expected = fused(ours), plain(theirs)
    torch.testing.assert_close(found, expected)
    # sum's gradient is one number, expanded
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_no_gradient_modes_and_repeated_backward() -> None:
    plain, fused = pair(generator_block())
    x = torch.randn(2, 5, 1, 1, dtype=torch.float64)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(fused(x), plain(x))
    out = fused(x)
    first = torch.autograd.grad(out.sum(), list(fused.parameters()), retain_graph=True)
    second = torch.autograd.grad(out.sum(), list(fused.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out.sum(), list(fused.parameters()))


def test_two_runs_are_the_same_to_the_bit() -> None:
    torch.manual_seed(0)
    _, fused = pair(generator_block(), torch.float32)
    x = torch.randn(4, 5, 3, 3)
    runs = []
    for _ in range(2):
        network = copy.deepcopy(fused)
        network(x).square().sum().backward()
        runs.append([p.grad for p in network.parameters()] + list(network.buffers()))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_weight_changed_before_backward_is_an_error() -> None:
    _, fused = pair(generator_block())
    out = fused(torch.randn(2, 5, 1, 1, dtype=torch.float64))
    with torch.no_grad():
        fused[3].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_output_written_after_a_leaky_relu_has_eagers_gradients(dtype: torch.dtype) -> None:
    """Eager's leaky ReLU reads its input in the backward pass."""
    layers = [
        *(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 2, 3), nn.LeakyReLU(0.2)),
    ]
    exact = dtype == torch.float64
    weights = torch.float64 if exact else torch.float32
    plain, fused = pair(layers, weights)
    x = torch.randn(2, 3, 7, 7, dtype=weights)
    for network in (plain, fused):
        with torch.autocast("cpu", torch.bfloat16, enabled=not exact):
            out = network(x)
        assert out.dtype == dtype
        out.mul_(-3).add_(1)
        out.to(weights).mean().backward()
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if exact else {"rtol": 0.1, "atol": 0.02}
    for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, **tolerance)
    for one, other in zip(plain.buffers(), fused.buffers(), strict=True):
        torch.testing.assert_close(other, one, **tolerance)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.randn(2, 4, 1, 1, dtype=torch.float64), RuntimeError, "channels"),
        (torch.randn(2, 5, 1, 1), RuntimeError, "same"),
        (torch.randn(1, 5, 1, dtype=torch.float64), RuntimeError, "channels"),
        (torch.zeros(2, 5, 1, 1, dtype=torch.int64), RuntimeError, "scalar type"),
    ],
    ids=["channels", "dtype", "dimensions", "integers"],
)
def test_what_torch_refuses_is_refused_in_its_words(
    x: Tensor, error: type[Exception], words: str
) -> None:
    plain, fused = pair(generator_block())
    messages = []
    for network in (plain, fused):
        with pytest.raises(error, match=words) as raised:
            network(x)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_one_value_a_channel_is_refused_in_training_as_by_torch() -> None:
    plain, fused = pair([nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()])
    x = torch.randn(1, 3, 1, 1, dtype=torch.float64)
    messages = []
    for network in (plain, fused):
        with pytest.raises(ValueError, match="more than 1 value per channel") as raised:
            network(x)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    agree(plain.eval(), fused.eval(), x)


def test_an_unbatched_image_and_an_empty_batch() -> None:
    plain, fused = pair([nn.Conv2d(3, 4, 3), nn.ReLU()])
    for x in (torch.randn(3, 6, 6), torch.randn(0, 3, 6, 6)):
        torch.testing.assert_close(fused(x.double()), plain(x.double()))


# Precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_autocast_casts_as_for_the_layers(
    dtype: torch.dtype, training: bool, device: torch.device
) -> None:
    torch.manual_seed(0)
    plain, fused = pair(critic_block(), torch.float32)
    plain, fused = plain.train(training).to(device), fused.train(training).to(device)
    x = torch.randn(4, 3, 16, 16, device=device)
    with torch.autocast(device.type, dtype):
        found, expected = fused(x), plain(x)
    assert found.dtype == expected.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.03)
    assert chains_in(found) == 1
    for network, out in ((plain, expected), (fused, found)):
        out.float().square().mean().backward()
        assert all(p.grad.dtype == p.dtype for p in network.parameters())
    for mine, reference in zip(fused.parameters(), plain.parameters(), strict=True):
        scale = float(reference.grad.abs().max())
        torch.testing.assert_close(mine.grad, reference.grad, rtol=0.1, atol=0.1 * scale)


def test_autocast_can_be_differentiated_twice() -> None:
    torch.manual_seed(0)
    plain, fused = pair(critic_block(), torch.float32)
    results = []
    for network in (plain, fused):
        x = torch.linspace(-1, 1, 2 * 3 * 256).view(2, 3, 16, 16).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = network(x)
        (grad,) = torch.autograd.grad(out.float().sum(), x, create_graph=True)
        grad.square().sum().backward()
        results.append(network[2].weight.grad)
    scale = float(results[0].abs().max())
    torch.testing.assert_close(results[1], results[0], rtol=0.1, atol=0.05 * scale)


@pytest.mark.parametrize("training", [True, False])
def test_norms_in_float32_beside_convolutions_in_bfloat16(training: bool) -> None:
    torch.manual_seed(0)
    plain, fused = pair(generator_block(), torch.bfloat16)
    for network in (plain, fused):
        for layer in network:
            if isinstance(layer, nn.BatchNorm2d):
                layer.float()
    x = torch.randn(4, 5, 2, 2).bfloat16()
    found, expected = fused.train(training)(x), plain.train(training)(x)
    assert chains_in(found) == 1
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


# What is done to modules ----------------------------------------------------------------------


def test_keys_copies_pickles_and_apply() -> None:
    plain, fused = pair(generator_block())
    assert list(fused.state_dict()) == list(plain.state_dict())
    fused.load_state_dict(plain.state_dict())
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(2, 5, 1, 1, dtype=torch.float64)
    fused(x).sum().backward()
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert type(twin) is FusedSequential
        torch.testing.assert_close(twin.eval()(x), fused.eval()(x))
    stream = io.BytesIO()
    torch.save(fused.state_dict(), stream)
    stream.seek(0)
    plain.load_state_dict(torch.load(stream, weights_only=True))
    names: list[str] = []
    fused.apply(lambda module: names.append(type(module).__name__))
    assert names == [type(layer).__name__ for layer in plain] + ["FusedSequential"]
    assert isinstance(fused[1:3], FusedSequential)


def test_a_moving_average_of_a_fused_generator() -> None:
    _, fused = pair(generator_block(), torch.float32)
    average = torch.optim.swa_utils.AveragedModel(
        fused, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5), use_buffers=True
    )
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.add_(1.0)
    average.update_parameters(fused)
    x = torch.randn(2, 5, 1, 1)
    torch.testing.assert_close(average.module.eval()(x), fused.eval()(x))


def test_fuse_keeps_the_objects_and_what_they_are_instances_of() -> None:
    class Own(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    module = nn.ModuleDict({"a": inner, "b": Own(nn.Linear(3, 3), nn.ReLU())})
    weight = inner[0].weight
    assert fuse(module) is module
    assert module["a"] is inner
    assert inner[0].weight is weight
    assert isinstance(inner, FusedSequential)
    assert isinstance(module["b"], Own)
    assert type(module["b"]).__name__ == "Own"
    with pytest.raises(ValueError, match="module is int; expected"):
        fuse(3)  # type: ignore[type-var]


# Under other machinery ----------------------------------------------------------------------------


def test_compiled_in_one_graph() -> None:
    plain, fused = pair(generator_block(), torch.float32)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 5, 2, 2)
    out = compiled(x)
    torch.testing.assert_close(out, plain(x))
    out.square().sum().backward()
    torch.testing.assert_close(fused[1].running_var, plain[1].running_var)


def test_traced_by_fx_and_by_jit() -> None:
    plain, fused = pair(generator_block(), torch.float32)
    x = torch.randn(2, 5, 2, 2)
    plain.eval()
    fused.eval()
    torch.testing.assert_close(torch.fx.symbolic_trace(fused)(x), plain(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(fused, x)
    torch.testing.assert_close(traced(x), plain(x))
    exported = torch.export.export(fused, (x,))
    torch.testing.assert_close(exported.module()(x), plain(x))


def test_torch_func_transforms() -> None:
    plain, fused = pair(critic_block())
    plain.eval()
    fused.eval()
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    for network in (plain, fused):
        network.requires_grad_(False)

    def gradients(network: nn.Module) -> Tensor:
        return torch.func.vmap(torch.func.grad(lambda image: network(image[None]).sum()))(x)

    torch.testing.assert_close(gradients(fused), gradients(plain))
    values, tangents = torch.func.jvp(fused, (x,), (torch.ones_like(x),))
    expected = torch.func.jvp(plain, (x,), (torch.ones_like(x),))
    torch.testing.assert_close((values, tangents), expected)
    parameters = {name: p * 2 for name, p in fused.named_parameters()}
    torch.testing.assert_close(
        torch.func.functional_call(fused, parameters, (x,)),
        torch.func.functional_call(plain, parameters, (x,)),
    )


def test_under_activation_checkpointing_and_saved_tensor_hooks() -> None:
    plain, fused = pair(critic_block())
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    for network in (plain, fused):
        network.eval()
    found = checkpoint(fused, x, use_reentrant=False)
    (mine,) = torch.autograd.grad(found.sum(), x)
    (reference,) = torch.autograd.grad(plain(x).sum(), x)
    torch.testing.assert_close(mine, reference)
    with torch.autograd.graph.save_on_cpu():
        found = fused(x)
    (mine,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(mine, reference)


def test_on_the_meta_device() -> None:
    _, fused = pair(generator_block(), torch.float32)
    assert fused.to("meta")(torch.empty(2, 5, 1, 1, device="meta")).shape == (2, 3, 16, 16)
