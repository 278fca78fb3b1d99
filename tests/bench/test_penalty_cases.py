"""The penalty's cases: all contenders compute the same, and the work is counted as derived."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from torch import Tensor, nn

from fastgan import FallbackWarning, reference
from fastgan.bench.cases import Setting
from fastgan.bench.suites import penalties
from fastgan.bench.suites.layers import critic_layers
from fastgan.bench.suites.penalties import OTHERS, Subject, contenders
from fastgan.bench.work import Work, products_work

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("subject", "op"),
    [pytest.param(subject, op, id=f"{op}, {subject.shape}") for subject, op, _ in OTHERS],
)
def test_contenders_agree_on_loss_and_gradients(
    subject: Subject, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = penalties.placed
    models: list[nn.Module] = []

    def watched(model: nn.Module, *arguments: object) -> nn.Module:
        models.append(placed(model, *arguments).double())
        return models[-1]

    monkeypatch.setattr(penalties, "placed", watched)
    # In float64: a float32's rounding puts a value next to 0 on either side of a ReLU's bend.
    monkeypatch.setattr(torch, "randn", functools.partial(torch.randn, dtype=torch.float64))
    monkeypatch.setattr(torch, "rand", functools.partial(torch.rand, dtype=torch.float64))
    batch = 4 if "stddev" in subject.shape else 2  # its groups are of 4
    calls = contenders(subject, op, "float32", batch, Setting(CPU, 2))
    assert list(calls) == ["fastgan", "eager", "eager, contiguous"]
    with warnings.catch_warnings():
        # On autograd's path there would be nothing to measure.
        warnings.simplefilter("error", FallbackWarning)
        losses = [call(1) for call in calls.values()]
    assert all(isinstance(loss, Tensor) for loss in losses)
    for loss in losses[1:]:
        torch.testing.assert_close(losses[0].detach(), loss.detach(), rtol=1e-9, atol=1e-12)
    ours, *peers = ([p.grad for p in model.parameters()] for model in models)
    # A bias before a norm, or of a softmax's keys, has the gradient zero, but for rounding.
    least = 1e-6 * max(float(grad.norm()) for grad in ours)
    for peer in peers:
        for mine, theirs in zip(ours, peer, strict=True):
            assert (mine - theirs).norm() < 1e-8 * theirs.norm().clamp(min=least)
    assert sum(float(grad.norm()) > least for grad in ours) > len(ours) / 2


def test_plain_critic_loss_is_the_references() -> None:
    torch.manual_seed(0)
    critic = reference.WGANCritic(ndf=8, image_size=16).double()
    real, fake = torch.randn(2, 3, 3, 16, 16, dtype=torch.float64)
    eps = torch.rand(3, 1, 1, 1, dtype=torch.float64)
    expected = reference.wgan_gp_critic_loss(critic, real, fake, eps=eps).loss
    torch.testing.assert_close(penalties._plain_loss(critic, real, fake, eps), expected)


@pytest.mark.parametrize(("op", "whole"), [("gradient penalty", False), ("critic loss", True)])
def test_work_is_that_of_the_layers_written_down(op: str, whole: bool) -> None:
    (case,) = (
        case
        for case in penalties.cases(CPU, quick=True)
        if (case.op, case.shape) == (op, "DCGAN-64 critic")
    )
    # Forward, input gradients, tangent and weight gradient over 16 points; of a whole loss all but
    # the tangent over 48 rows, in which the first layer's input gradient is asked for 16.
    rows, work = 48 if whole else 16, Work(())
    for number, layer in enumerate(critic_layers()):
        work += layer.work(rows, "float32", ["forward", "weight_gradient"])
        work += layer.work(rows if number else 16, "float32", ["input_gradient"])
        work += layer.work(16, "float32", ["forward"])
    assert (case.work.flops, case.work.bytes) == (work.flops, work.bytes)


def test_products_count_branches_groups_and_products_of_two_maps() -> None:
    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3, padding=1, groups=2)

        def forward(self, images: Tensor) -> Tensor:
            h = self.conv(images).flatten(2)
            return torch.bmm(h, h.transpose(1, 2)).mean()

    with torch.device("meta"):
        critic, images = Critic(), torch.empty(5, 4, 6, 6)
    conv, product = 2 * 5 * 36 * 8 * 2 * 9, 2 * 5 * 8 * 8 * 36
    # Forward and the weight's gradient; forward and the gradients in both factors.
    assert products_work(critic, images, "float32", gradients="of parameters").flops == (
        2 * conv + 3 * product
    )
    # Forward and the images' gradient; forward.
    assert products_work(critic, images, "float32", gradients="of images").flops == (
        2 * conv + product
    )
