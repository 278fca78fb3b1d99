"""Batch norms' statistics for the sampled noise."""

from __future__ import annotations

import pytest
import torch

from fastgan.models import BigGANGenerator
from fastgan.sampling.batches import STANDING_BATCH, standing_statistics_


def test_standing_statistics_are_the_means_over_batches_and_of_nothing_else() -> None:
    torch.manual_seed(0)
    generator = BigGANGenerator(nz=4, ngf=2, nc=1, image_size=16, num_classes=2).double().eval()
    norm = generator.blocks[0].norm1.norm  # which sees a linear map of z's first part
    norm.running_mean.fill_(9)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    z = torch.randn(2 * STANDING_BATCH, 4, 1, 1, dtype=torch.float64).clamp(-0.5, 0.5)
    labels = torch.arange(len(z)) % 2
    standing_statistics_(generator, z, labels)

    first = z.flatten(1).tensor_split(3, dim=1)[0]
    batches = generator.linear(first).view(2, STANDING_BATCH, -1, 16)
    means = batches.mean((1, 3)).mean(0)
    variances = batches.transpose(1, 2).flatten(2).var(2).mean(0)
    torch.testing.assert_close(norm.running_mean, means, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(norm.running_var, variances, rtol=1e-9, atol=1e-12)
    assert norm.momentum == 0.1
    assert not any(each.training for each in generator.modules())
    for name, value in generator.state_dict().items():
        moved = name.rsplit(".", 1)[-1] in ("running_mean", "running_var", "num_batches_tracked")
        assert moved != torch.equal(value, before[name]), name


def test_a_norm_without_statistics_and_a_failed_pass_leave_modes_as_they_were() -> None:
    norms = torch.nn.Sequential(
        torch.nn.BatchNorm2d(2, track_running_stats=False), torch.nn.BatchNorm2d(2, momentum=0.3)
    ).eval()
    with pytest.raises((RuntimeError, ValueError)):
        standing_statistics_(norms, torch.zeros(3, 5, 1, 1))
    assert norms[1].momentum == 0.3
    assert not any(each.training for each in norms)
