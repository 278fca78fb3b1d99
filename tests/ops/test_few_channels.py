"""The backend for few channels: what it takes, and how chains run it.

Here its op runs as plain PyTorch; tests/native/test_few_channels_on_host.py runs its kernels.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgan
from fastgan.kernels.fusion import ActivationGradient
from fastgan.ops import chain, op_path, op_paths
from fastgan.ops.backends import ATEN, PASSES, Backend, Pass, Problem, few_channels
from fastgan.ops.backends.fixed_table import fixed_choice
from fastgan.ops.registration import FOR_GPUS_ALONE
from fastgan.ops.stages import Stage

HALVING = Stage("conv2d", (2, 2), (1, 1))
DOUBLING = Stage("conv_transpose2d", (2, 2), (1, 1), output_padding=(1, 0))
FEW = few_channels.FewChannels()


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with an H100 and a build for it."""
    monkeypatch.setattr(few_channels, "cuda_obstacle", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def problem(
    stage: Stage = HALVING,
    weight: tuple[int, ...] = (64, 3, 4, 4),
    *,
    which: Pass = "forward",
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cuda",
) -> Problem:
    like = torch.empty(weight, device="meta")
    return Problem.of(which, stage, None, like, dtype=dtype, device=torch.device(device))


def test_it_takes_images_and_scores_on_gpus(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for which in PASSES:
        assert FEW.unsupported_reason(problem(which=which)) is None
        for size, expected in ((64, FEW), (8, ATEN)):
            sized = problem(which=which)._replace(input_shape=(8, 3, size, size))
            assert fixed_choice(sized, [FEW, ATEN]) is expected
    for stage, weight in ((DOUBLING, (64, 3, 4, 4)), (Stage("conv2d"), (1, 512, 4, 4))):
        assert FEW.unsupported_reason(problem(stage, weight)) is None
    scores = problem(Stage("conv2d"), (1, 512, 4, 4), which="weight_gradient")
    assert FEW.unsupported_reason(scores) is None
    assert FEW.unsupported_reason(problem(device="cpu")) == "made for GPUs"
    for reason, refused in {
        "a linear layer": problem(Stage("linear"), (4, 7)),
        "more than 4 channels on both sides": problem(weight=(64, 5, 4, 4)),
        "the smaller map's": problem(weight=(1, 64, 4, 4), which="weight_gradient"),
        "groups or dilation": problem(Stage("conv2d", dilation=(2, 2))),
        "more than 7x7 taps, or a stride above 2": problem(Stage("conv2d", (3, 3))),
        "more than 5x5 taps, or": problem(weight=(64, 3, 7, 7), dtype=torch.float64),
        "torch.complex64": problem(dtype=torch.complex64),
    }.items():
        assert reason in (FEW.unsupported_reason(refused) or ""), reason
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "tensor cores" in (FEW.unsupported_reason(problem()) or "")
    assert FEW.unsupported_reason(problem(dtype=torch.float32)) is None
    monkeypatch.setattr(few_channels, "cuda_obstacle", lambda: "no code for it")
    assert FEW.unsupported_reason(problem()) == "no code for it"


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("stage", [HALVING, DOUBLING], ids=["halving", "doubling"])
def test_its_passes_are_torchs(stage: Stage, last: bool, device: torch.device) -> None:
    few, many = (2, 3, 9, 12), (2, 6, 9, 12)
    shape = few if stage is HALVING else many
    input = torch.randn(shape, dtype=torch.float64, device=device)
    input = input.contiguous(memory_format=torch.channels_last) if last else input
    weight = torch.randn(6, 3, 4, 4, dtype=torch.float64, device=device)
    bias = torch.randn(9 - shape[1], dtype=torch.float64, device=device)
    output = ATEN.forward(stage, input, weight, bias)
    mask = ActivationGradient(torch.randn_like(input), "leaky_relu", 0.2)

    def passes(backend: Backend) -> list[Tensor]:
        rest = output, input, weight
        return [
            backend.forward(stage, input, weight, bias),
            backend.activated_forward(
                Stage(*(getattr(stage, name) for name in _GEOMETRY), activation="tanh"),
                *(input, weight, bias),
            ),
            backend.input_gradient(stage, *rest),
            backend.masked_input_gradient(stage, *rest, mask),
            *gradients(backend),
        ]

    def gradients(backend: Backend) -> list[Tensor]:
        found = backend.weight_gradient(stage, output, input, weight, True)
        return [each for each in found if each is not None]

    for found, expected in zip(passes(FEW), passes(ATEN), strict=True):
        torch.testing.assert_close(found, expected)
        if found.shape == weight.shape:
            assert found.is_contiguous()
        else:
            assert found.stride() == expected.stride()


@pytest.mark.gpu
def test_it_runs_in_the_current_stream_and_in_cuda_graphs(cuda: torch.device) -> None:
    input = torch.randn(4, 3, 32, 32, device=cuda, dtype=torch.bfloat16)
    weight = torch.randn(64, 3, 4, 4, device=cuda, dtype=torch.bfloat16)

    def passes() -> list[Tensor]:
        output = FEW.forward(HALVING, input, weight, None)
        grad_weight, _ = FEW.weight_gradient(HALVING, output, input, weight, False)
        return [output, FEW.input_gradient(HALVING, output, input, weight), grad_weight]

    expected = passes()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = passes()
    graph.replay()
    torch.cuda.synchronize()
    for ours, right in zip(found, expected, strict=True):
        assert torch.equal(ours, right)


_GEOMETRY = ("kind", "stride", "padding", "dilation", "output_padding")


class Watched(few_channels.FewChannels):
    """Notes which pass ran."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.endswith(("forward", "gradient")):
            self.calls.append(name)
        return super().__getattribute__(name)


def test_chains_activate_in_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()

    def select(which: Pass, stage: Stage, input: Tensor, weight: Tensor, around: Any) -> Backend:
        return watched

    monkeypatch.setattr(chain, "select_backend", select)
    layers = (
        *(nn.Conv2d(3, 4, 4, 2, 1), nn.LeakyReLU(0.2)),
        *(nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Tanh()),
    )
    plain = nn.Sequential(*layers).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    wanted = [x, *plain.parameters()]
    expected = torch.autograd.grad(plain(x).square().sum(), wanted)
    found = torch.autograd.grad(fastgan.fuse(plain)(x).square().sum(), wanted)
    torch.testing.assert_close(found, expected)
    assert watched.calls == [
        *("activated_forward", "activated_forward"),
        *("weight_gradient", "masked_input_gradient", "weight_gradient", "input_gradient"),
    ]


def test_arguments_that_do_not_belong_together_are_refused() -> None:
    op = torch.ops.fastgan.few_channels_gather
    image, weight = torch.ones(2, 3, 8, 8), torch.ones(5, 3, 4, 4)

    def call(
        image: Tensor = image,
        weight: Tensor = weight,
        bias: Tensor | None = None,
        kept: Tensor | None = None,
        size: tuple[int, int] = (4, 4),
        stride: tuple[int, ...] = (2, 2),
    ) -> Tensor:
        result: Tensor = op(
            image, weight, bias, kept, False, stride, (1, 1), size, 0, 0.0, channels_last=False
        )
        return result

    assert call().shape == (2, 5, 4, 4)
    for part, arguments in {
        "four dimensions": {"image": image[0]},
        "dtypes": {"weight": weight.double()},
        "channels to match": {"weight": weight[:, :2]},
        "do not belong together": {"size": (5, 4)},
        "two numbers": {"stride": (2,)},
        "1, 0 and 1 or more": {"stride": (2, 0)},
        "bias has shape": {"bias": torch.ones(3)},
        "kept has shape": {"kept": torch.ones(2, 5, 4, 3)},
        "and no bias": {"kept": torch.ones(2, 5, 4, 4), "bias": torch.ones(5)},
    }.items():
        with pytest.raises(RuntimeError, match=part):
            call(**arguments)  # type: ignore[arg-type]


def test_maps_of_a_weight_gradient_that_do_not_belong_together_are_refused() -> None:
    op = torch.ops.fastgan.few_channels_weight_gradient
    small, wide, geometry = torch.ones(2, 5, 4, 4), torch.ones(2, 3, 8, 8), ([2, 2], [1, 1])
    assert op(small, wide, [4, 4], *geometry, channels_last=False).shape == (5, 3, 4, 4)
    for part, maps, taps in (
        ("one N", (small[:1], wide), [4, 4]),
        ("dtypes", (small.double(), wide), [4, 4]),
        ("do not belong together", (small, wide), [6, 6]),
        ("two numbers", (small, wide), [4]),
        ("5 channels and wide 6", (small, torch.ones(2, 6, 8, 8)), [4, 4]),
        ("small's at stride 1", (small[:, :1], torch.ones(2, 6, 8, 8)), [4, 4]),
    ):
        with pytest.raises(RuntimeError, match=part):
            op(*maps, taps, *geometry, channels_last=False)


def test_doctor_looks_for_it_on_gpus_alone() -> None:
    found = {row.op: row.device for row in op_paths() if row.op.startswith("few_channels_")}
    assert set(found.values()) == {"cuda"}
    if fastgan.build_info().native:
        assert op_path("few_channels_gather", "cpu").reason == FOR_GPUS_ALONE
