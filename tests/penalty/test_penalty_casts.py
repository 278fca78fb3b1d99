"""A recorded critic's parameters are cast together, each as it is when its turn comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgan
from fastgan.penalty.casts import Casts


def write_counted(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.mul_(-1)


def write_uncounted(weight: nn.Parameter) -> None:
    weight.data.mul_(-1)


def assign(weight: nn.Parameter) -> None:
    weight.data = -weight.data


def leave(weight: nn.Parameter) -> None:
    pass


class Turning(nn.Module):
    """Changes its last weight once the first has been cast."""

    def __init__(self, change: Callable[[nn.Parameter], None]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 5, 3), nn.Linear(5 * 16, 1)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.leaky_relu(self.first(x), 0.2)
        self.change(self.last.weight)
        score: Tensor = self.last(x.flatten(1))
        return score


@pytest.mark.parametrize("change", [write_counted, write_uncounted, assign, leave])
def test_a_parameter_changed_after_the_first_cast_is_cast_anew(
    change: Callable[[nn.Parameter], None],
) -> None:
    real, fake = torch.randn(2, 4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    eps = torch.rand(4, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    found: dict[str, list[Tensor]] = {}
    for path in ("fused", "autograd"):
        torch.manual_seed(2)
        critic, chosen = Turning(change), path
        found[path] = []
        for _ in range(4):
            # Autocast's own cache would return the weight's first cast.
            with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
                given: Any = {"eps": eps, "path": chosen}
                loss = fastgan.wgan_gp_critic_loss(critic, real, fake, **given).loss
            gradients = torch.autograd.grad(loss, list(critic.parameters()))
            found[path] += [loss.detach(), *gradients, critic.last.weight.detach().clone()]
    for ours, theirs in zip(*found.values(), strict=True):
        error = (ours - theirs).abs().max()
        assert error <= 0.04 * max(0.1, float(theirs.abs().max()))


def test_only_what_was_cast_before_is_cast_together() -> None:
    first, second, third = (nn.Parameter(torch.full((2,), value)) for value in (1.0, 2.0, 3.0))
    before = Casts([])
    for parameter in (first, second):
        before.cast(parameter, torch.bfloat16)
    casts = Casts(before.made)
    assert casts.cast(first, torch.bfloat16).tolist() == [1, 1]
    copies = [casts.cast(p, torch.bfloat16) for p in (second, second, third)]
    assert [copy[0].item() for copy in copies] == [2, 2, 3]
    assert copies[0].data_ptr() != copies[1].data_ptr()
    assert casts.cast(first, torch.float16).dtype == torch.float16
