"""``explain`` for a critic's penalty, and its number of convolutions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from penalty_critics import (
    Inquisitive,
    images,
    make,
    spectral,
)
from torch import nn

import fastgan
from fastgan.models import WGANCritic

CONVOLUTIONS = {
    "aten::_convolution",
    "aten::convolution_backward",
    "fastgan::matrix_forward",
    "fastgan::matrix_input_gradient",
    "fastgan::matrix_weight_gradient",
    "fastgan::patch_scatter",
    "fastgan::winograd_gather",
    "fastgan::winograd_scatter",
    "fastgan::winograd_weight_gradient",
}


@pytest.mark.parametrize("whole", [False, True], ids=["penalty", "critic loss"])
@pytest.mark.parametrize("width", [4, 32])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_at_most_four_convolutions_a_layer_and_none_dilated(
    norm: str, width: int, whole: bool
) -> None:
    # Smooth ops take two more for the second gradient, and fakes and reals come by themselves.
    limit = 4 if norm == "none" else 9 if whole else 6
    critic = WGANCritic(3, width, 64, norm=norm)
    layers = sum(isinstance(m, nn.Conv2d) for m in critic.modules())
    real, fake, _ = images((3, 64, 64), 2, dtype=torch.float32)
    function: Any = fastgan.wgan_gp_critic_loss if whole else fastgan.gradient_penalty
    calls = {}
    for path in ("fused", "autograd"):
        for _ in range(2):  # the first call traces the critic, on tensors without memory
            with torch.profiler.profile(record_shapes=True) as profile:
                result = function(critic, real, fake, path=path)
                (result.loss if whole else result).backward()
        calls[path] = [
            (event.name, event.input_shapes[1] if event.input_shapes else [])
            for event in profile.events()
            if event.name in CONVOLUTIONS
        ]
    assert 0 < len(calls["fused"]) <= limit * layers
    # Double backward convolves with a map as the filter, dilated by the stride.
    assert max(largest_filter(calls["autograd"])) > 4
    assert max(largest_filter(calls["fused"])) == 4


def test_a_large_critic_loss_takes_four_convolutions_a_layer() -> None:
    critic = nn.Sequential(nn.Conv2d(3, 96, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(96, 1, 32))
    real, fake, _ = images((3, 64, 64), 16, dtype=torch.float32)
    for _ in range(2):
        with torch.profiler.profile() as profile:
            fastgan.wgan_gp_critic_loss(critic, real, fake).loss.backward()
    assert 0 < sum(event.name in CONVOLUTIONS for event in profile.events()) <= 4 * 2


def largest_filter(calls: list[tuple[str, list[int]]]) -> list[int]:
    return [max(shape[2:]) for name, shape in calls if name == "aten::_convolution"]


def test_explain_names_every_layer_of_a_fused_critic() -> None:
    critic = WGANCritic(3, 4, 32, num_classes=2)
    report = fastgan.explain(critic)
    assert [row.op for row in report.rows[:2]] == ["gradient_penalty", "discriminator_loss"]
    assert {row.path for row in report.rows if not row.op.startswith("penalty_")} == {"aten"}
    named = {row.layer for row in report.rows}
    assert {f"main.{i}" for i in range(len(critic.main))} <= named
    assert str(report).splitlines()[0].split() == ["layer", "op", "path", "reason"]


def path_of_kernels(device: torch.device) -> str:
    info = fastgan.build_info()
    return device.type if info.native and (device.type == "cpu" or info.cuda) else "aten"


@pytest.mark.parametrize("norm", ["layer", "instance"])
def test_explain_says_who_computes_a_fused_critics_norms(norm: str, device: torch.device) -> None:
    report = fastgan.explain(WGANCritic(3, 4, 32, norm=norm).to(device))
    norms = [row for row in report.rows if "second derivative" in row.reason]
    assert [row.layer for row in norms] == ["main.3", "main.6"]
    # Instance norm is group norm with a group for each channel.
    assert {row.op for row in norms} == {"group_norm"}
    assert {row.path for row in norms} == {path_of_kernels(device)}
    said = {"cpu": "; C++, ", "cuda": "; CUDA ", "aten": "; this "}[path_of_kernels(device)]
    assert all(said in row.reason for row in norms)


def test_explain_says_who_computes_a_layer_norm(device: torch.device) -> None:
    critic = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 1)).to(device)
    (norm,) = (row for row in fastgan.explain(critic).rows if row.op == "layer_norm")
    assert (norm.layer, norm.path) == ("1", path_of_kernels(device))


def test_explain_says_who_mixes_and_who_takes_the_tangent(device: torch.device) -> None:
    name, path = "WGANCritic", path_of_kernels(device)
    report = fastgan.explain(WGANCritic(1, 4, 16).to(device))
    beside = [row for row in report.rows if row.op.startswith("penalty_")]
    assert [(row.layer, row.op, row.path) for row in beside] == [
        (name, "penalty_tangent_", path),
        (name, "penalty_mix_", path),
    ]
    moving = fastgan.explain(spectral(WGANCritic(1, 4, 16)).to(device))
    assert "penalty_mix_" not in {row.op for row in moving.rows}


def test_explain_gives_the_reason_for_autograds_path() -> None:
    report = fastgan.explain(Inquisitive())
    assert {row.path for row in report.rows[:2]} == {"autograd"}
    assert "torch.autograd.grad" in report.rows[0].reason
    assert "torch.autograd.grad" in str(report)


def test_explain_names_the_ops_that_autograd_is_asked_for() -> None:
    critic = nn.Sequential(nn.Linear(5, 3), nn.CELU(), nn.Linear(3, 1))
    (row,) = (row for row in fastgan.explain(critic).rows if row.op == "celu")
    assert (row.layer, row.path) == ("1", "autograd")
    assert "for this op only" in row.reason
    function = fastgan.explain(lambda x: F.celu(x).sum(1), torch.ones(2, 5))
    assert [row.op for row in function.rows if row.path == "autograd"] == ["celu"]
    with pytest.raises(fastgan.ConfigError, match="input is None"):
        fastgan.explain(lambda x: x)


def test_explain_says_why_batches_are_not_joined() -> None:
    for critic, words in (
        (spectral(WGANCritic(1, 4, 16)), "changes the critic's state in place"),
        (WGANCritic(1, 2, 16, norm="batch"), "changes the critic's state in place"),
        (nn.Sequential(nn.Linear(5, 1), nn.Dropout()), "draws random numbers"),
    ):
        report = fastgan.explain(critic)
        assert report.rows[0].path == "aten"
        assert words in report.rows[1].reason


def test_explain_leaves_the_critic_as_it_was() -> None:
    critic = spectral(WGANCritic(1, 2, 16, norm="batch"))
    before = copy.deepcopy(critic.state_dict())
    random = torch.get_rng_state()
    for input in (None, torch.zeros(2, 1, 16, 16)):
        fastgan.explain(critic, input)
    assert all(torch.equal(value, before[name]) for name, value in critic.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_explain_leaves_the_penalty_out_where_it_finds_no_input() -> None:
    assert [row.op for row in fastgan.explain(nn.Flatten()).rows] == ["Flatten"]
    with pytest.raises(fastgan.ConfigError, match="module_or_critic is int"):
        fastgan.explain(3)
    critic, shape = make("residual")
    assert fastgan.explain(critic, images(shape, 2)[0]).rows[0].path == "aten"
    assert {row.op for row in fastgan.explain().rows} >= {"adam_step_"}
