"""Passes that share their weights' casts, and discriminators that take 16-bit images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastgan.models import DCGANDiscriminator, WGANCritic
from fastgan.nn import FusedSequential
from fastgan.ops.chain import weights_cast_once


def stack() -> FusedSequential:
    torch.manual_seed(0)
    layers = FusedSequential(
        *(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(4, 3, 3), nn.ReLU()),
    )
    nn.init.normal_(layers[1].bias)
    return layers


@pytest.mark.parametrize("written", ["weight", "norm's bias", "nothing"])
def test_a_later_pass_has_what_was_written_since_the_first(written: str) -> None:
    images = torch.randn(2, 5, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    outcomes: list[list[Tensor]] = []
    for shared in (False, True):
        network = stack()
        found = []
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if shared:
                with weights_cast_once():
                    found = passes(network, images, written)
            else:
                found = passes(network, images, written)
        if written != "weight":  # which the first pass's gradients read: torch refuses them
            total = torch.stack([score.float().square().mean() for score in found]).sum()
            found += torch.autograd.grad(total, list(network.parameters()))
        outcomes.append(found)
    for apart, together in zip(*outcomes, strict=True):
        assert torch.equal(apart, together)


def passes(network: FusedSequential, images: Tensor, written: str) -> list[Tensor]:
    first = network(images[0])
    with torch.no_grad():
        if written == "weight":
            network[3].weight.mul_(2)
        elif written == "norm's bias":
            network[1].bias.add_(1)
    return [first, network(images[1])]


def test_sixteen_bit_images_have_the_scores_of_the_same_images_in_float32() -> None:
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    labels = torch.arange(4)
    for build in (DCGANDiscriminator, WGANCritic):
        for classes in (None, 4):
            critic = build(nc=3, ndf=4, image_size=16, norm="batch", num_classes=classes)
            assert critic.is_plain
            given = () if classes is None else (labels,)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.equal(critic(images, *given), critic(images.float(), *given))


class Halves(WGANCritic):
    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return super().forward(images * 0.3, labels)


def test_a_subclass_may_do_anything_first() -> None:
    assert not Halves(nc=3, ndf=4, image_size=16).is_plain
