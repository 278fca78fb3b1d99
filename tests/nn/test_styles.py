"""Third-party networks, fused: the same results, with nearly all layers covered."""

from __future__ import annotations

import copy
import zlib
from typing import Any

import pytest
import torch
from torch import nn

import fastgan
from fastgan.bench.coverage import coverage
from fastgan.bench.styles import STYLES
from fastgan.nn import stretch
from fastgan.ops import norm_choice
from fastgan.ops.backends import fixed_table, measuring_nothing

NETWORKS = pytest.mark.parametrize("name", STYLES)


def test_nine_of_ten_layers_are_fused_or_their_own_backend_is_chosen() -> None:
    layers, left = 0, []
    for network, shape in STYLES.values():
        with measuring_nothing():
            found = coverage(network(16), torch.randn(2, *shape))
        layers += found.layers
        left += found.left
    assert layers > 60
    assert len(left) <= 0.1 * layers, left


def test_a_layer_that_is_left_is_named() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 4, 1))
    layers, (row,) = coverage(network, torch.randn(2, 3, 4, 4))
    assert (layers, row.layer) == (2, "2")
    assert row.reason == "Conv3d is not one of the layers that are fused"


@NETWORKS
@pytest.mark.parametrize("leave", [False, True])
def test_results_are_those_of_the_plain_network(
    name: str, leave: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stretch, "LEAVE_TO_TORCH", leave)
    monkeypatch.setattr(fixed_table, "FEWEST_PRODUCTS", 0)
    for each in ("in_place_savings", "one_pass_savings"):
        monkeypatch.setattr(norm_choice, each, lambda *_, **__: True)
    torch.manual_seed(zlib.crc32(name.encode()))
    network, shape = STYLES[name]
    # DcganCritic takes views of contiguous maps.
    last = leave and name != "DcganCritic"
    layout: Any = torch.channels_last if last else torch.contiguous_format
    plain = network(16).to(dtype=torch.float64, memory_format=layout)
    fused = fastgan.fuse(copy.deepcopy(plain))
    x = torch.randn(2, *shape, dtype=torch.float64)
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
