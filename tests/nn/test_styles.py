"""Other people's networks, fused: the same results, and hardly a layer that is not covered."""

from __future__ import annotations

import copy
import zlib

import pytest
import torch
from torch import nn

import fastgan
from fastgan.bench.styles import STYLES
from fastgan.nn import calls, stretch
from fastgan.nn.placement import placements

NETWORKS = pytest.mark.parametrize("network", STYLES, ids=lambda kind: kind.__name__)


@NETWORKS
def test_layers_are_fused_or_their_own_backend_is_chosen(network: type[nn.Module]) -> None:
    """At least nine of ten convolutions and linear layers; the reasons name the rest."""
    torch.manual_seed(0)
    module = network(16)  # type: ignore[call-arg]
    rows = placements(fastgan.fuse(copy.deepcopy(module)), torch.randn(2, *STYLES[network]))
    layers = {
        name
        for name, each in module.named_modules()
        if isinstance(each, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    }
    found = [row for row in rows if row.layer in layers]
    assert len(found) == len(layers)
    left = [row for row in found if row.reason in calls.NOT_CHOSEN or "not" in row.reason[:20]]
    assert len(left) <= 0.1 * len(layers), left


@NETWORKS
@pytest.mark.parametrize("leave", [False, True])
def test_results_are_those_of_the_plain_network(
    network: type[nn.Module], leave: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stretch, "LEAVE_TO_TORCH", leave)
    monkeypatch.setattr(stretch, "PRODUCTS_A_SECOND", 0)
    monkeypatch.setattr(stretch, "FEWEST_VALUES", 0)
    monkeypatch.setattr(stretch, "runs_in_one_pass", lambda *_, **__: True)
    torch.manual_seed(zlib.crc32(network.__name__.encode()))
    plain = network(16).double()  # type: ignore[call-arg]
    fused = fastgan.fuse(copy.deepcopy(plain))
    x = torch.randn(2, *STYLES[network], dtype=torch.float64)
    results = []
    for each in (plain, fused):
        input = x.clone().requires_grad_()
        output = each(input)
        grads = torch.autograd.grad(output.square().sum(), [input, *each.parameters()])
        results.append((output.stride(), input.shape, [output.detach(), *grads, *each.buffers()]))
    assert results[0][:2] == results[1][:2]
    # That of a bias before a norm is zero: errors are of the size of the others'.
    scale = max(float(each.abs().max()) for each in results[0][2])
    for mine, theirs in zip(results[1][2], results[0][2], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12 * scale)
