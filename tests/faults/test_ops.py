"""Arguments that once took a process down, or made a wrong gradient; one of a kind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastgan.ops  # noqa: F401 - defines them
from fastgan.nn import fuse


@pytest.mark.parametrize("op", ["forward", "project", "curvature"])
def test_norms_of_no_channels_are_refused(op: str) -> None:
    empty, invstd = torch.empty(4, 0, 3), torch.empty(8)
    arguments = {
        "forward": (empty, None, None, 2, 1e-5, empty.clone(), invstd, empty.clone()),
        "project": (empty, empty.clone(), invstd, None, 2, False, empty.clone()),
        "curvature": (empty, empty.clone(), empty.clone(), invstd, None, 2, empty.clone()),
    }[op]
    with pytest.raises(RuntimeError, match="groups is 2; expected a divisor of 0 channels"):
        getattr(torch.ops.fastgan, f"penalty_norm_{op}_")(*arguments)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e30])
def test_an_infinity_in_evaluation_leaves_the_gradients_of_others_alone(value: float) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 2, 3, 1, 1), nn.BatchNorm2d(2), nn.Tanh()).eval()
    images = torch.randn(1, 1, 6, 6)
    images[0, 0, 2, 3] = value
    gradients = []
    for net in (plain, fuse(plain)):
        leaf = images.clone().requires_grad_()
        net(leaf).sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    expected, found = gradients
    assert bool(expected.isfinite().all())
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_statistics_that_would_be_written_in_one_place_are_refused_in_words() -> None:
    images, mean, variance = torch.randn(4, 3, 5, 5), torch.zeros(1).expand(3), torch.ones(3)
    with pytest.raises(RuntimeError, match="running_mean is expanded: more than one"):
        torch.ops.fastgan.batch_norm_statistics(images, None, mean, variance, 0.1, 1e-5)
