"""The measuring core: turns, peaks, counts, floors and the work they are compared with."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F

from fastgan.bench.cases import Setting
from fastgan.bench.counting import OTHER, PYTHON, count
from fastgan.bench.floors import Floors, measure_floors
from fastgan.bench.memory import can_measure_memory
from fastgan.bench.suites.convolutions import PASSES, contenders
from fastgan.bench.suites.layers import Layer, critic_layers, generator_layers
from fastgan.bench.timing import Budget, measure_in_turns
from fastgan.bench.work import Step, Work, convolution_steps, elementwise
from fastgan.errors import ConfigError

CPU = torch.device("cpu")


# --- Turns ----------------------------------------------------------------------------------------


def test_contenders_take_turns_on_rotating_inputs_each_first_as_often() -> None:
    calls: list[tuple[str, int]] = []
    timing = measure_in_turns(
        {name: lambda n, name=name: calls.append((name, n)) for name in "abc"},
        device=CPU,
        copies=2,
        budget=Budget(fewest=6, most=6, warm_up=1),
    )
    assert timing.rounds == 6
    assert calls[:3] == [("a", 0), ("b", 0), ("c", 0)]  # warm-up
    rounds = [calls[3 + 3 * n : 6 + 3 * n] for n in range(6)]
    assert [{number for _, number in each} for each in rounds] == [{n % 2} for n in range(6)]
    assert [each[0][0] for each in rounds] == ["a", "b", "c"] * 2
    assert all({name for name, _ in each} == set("abc") for each in rounds)


def test_ratio_within_a_round_survives_a_machine_that_slows_down() -> None:
    begun = time.perf_counter()

    def sleep(seconds: float) -> None:
        # From the middle on, everything takes three times as long.
        time.sleep(seconds * (3 if time.perf_counter() - begun > 0.15 else 1))

    timing = measure_in_turns(
        {"ours": lambda _: sleep(0.004), "peer": lambda _: sleep(0.012)},
        device=CPU,
        budget=Budget(fewest=20, most=20, warm_up=0),
    )
    ratio, (low, high) = timing.times_faster("ours", "peer")
    assert low <= ratio <= high
    assert 2.0 < ratio < 4.0
    assert max(timing.seconds["ours"]) > 2 * min(timing.seconds["ours"])


def test_budget_ends_the_rounds_but_not_before_the_fewest() -> None:
    slow = {"a": lambda _: time.sleep(0.01)}
    few = measure_in_turns(slow, device=CPU, budget=Budget(0.001, fewest=4, most=50, warm_up=0))
    some = measure_in_turns(slow, device=CPU, budget=Budget(0.1, fewest=4, most=50, warm_up=0))
    assert few.rounds == 4
    assert 4 < some.rounds <= 10


@pytest.mark.parametrize("arguments", [{"calls": {}}, {"calls": {"a": print}, "copies": 0}])
def test_nothing_to_measure_is_an_error(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        measure_in_turns(device=CPU, **arguments)


# --- Memory ---------------------------------------------------------------------------------------

PEAKS = """
import sys, torch
from fastgan.bench.memory import MemoryMeter
torch.set_num_threads(1)
kept = []
def small_after_large():
    # What was freed before must not hide what is allocated after.
    torch.ones(3 << 20)
    torch.ones(1 << 20).add(1).add(1)
def convolution():
    torch.nn.functional.conv2d(torch.ones(8, 16, 64, 64), torch.ones(16, 16, 3, 3))
with MemoryMeter(torch.device("cpu")) as meter:
    print(*(round(meter.peak(call) / (1 << 20), 1) for call in (
        small_after_large, convolution, lambda: kept.append(torch.ones(1 << 20)), lambda: None)))
"""


def test_peak_is_what_a_call_needs_beyond_what_was_there() -> None:
    reason = can_measure_memory(CPU)
    if reason is not None:
        pytest.skip(reason)
    # In a process of its own: what it asks of malloc would slow this one's other tests.
    done = subprocess.run(
        [sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True, timeout=120
    )
    large, convolution, kept, nothing = map(float, done.stdout.split())
    assert large == pytest.approx(12, abs=0.5)
    assert 3.7 < convolution < 12  # input and output are 2 MiB each; oneDNN adds to it
    assert kept == pytest.approx(4, abs=0.5)
    assert nothing < 0.5


# --- Counts ---------------------------------------------------------------------------------------


def test_passes_are_counted_one_each_for_output_and_each_gradient() -> None:
    first, second = torch.nn.Conv2d(3, 4, 3), torch.nn.ConvTranspose2d(4, 2, 3)
    images = torch.randn(2, 3, 8, 8)

    def both() -> None:
        second(first(images).relu()).sum().backward()

    def frozen() -> None:
        with torch.no_grad():
            second(first(images))

    # The images need no gradient: that pass isn't done, and isn't counted.
    assert count(both, CPU).convolutions == 5
    assert count(frozen, CPU).convolutions == 2


def test_shares_name_where_the_time_goes_and_sum_to_one() -> None:
    layer = torch.nn.Conv2d(16, 32, 3)
    optimizer = torch.optim.Adam(layer.parameters(), foreach=False)
    images = torch.randn(8, 16, 32, 32)

    def iteration() -> None:
        optimizer.zero_grad()
        layer(images).sum().backward()
        optimizer.step()

    counts = count(iteration, CPU)
    assert sum(counts.shares.values()) == pytest.approx(1)
    assert counts.shares["convolutions"] > 0
    # Adam's own sqrt and addcdiv have no pattern: they count to the step that called them.
    assert counts.shares["optimiser and clip"] > 0
    assert counts.launches > 10
    normalised = count(lambda: F.batch_norm(images, None, None, training=True), CPU)
    assert normalised.shares["normalisation and activation"] > 0.3


class Slow(torch.autograd.Function):
    """Spends its time in Python."""

    @staticmethod
    def forward(ctx, input: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return input.clone()

    @staticmethod
    def backward(ctx, grad_output: torch.Tensor) -> torch.Tensor:
        return grad_output


def test_python_code_of_a_differentiable_function_is_no_operator() -> None:
    input = torch.randn(4, requires_grad=True)
    shares = max(
        (count(lambda: Slow.apply(input), CPU).shares for _ in range(5)),
        key=lambda shares: shares[PYTHON],
    )
    assert shares[PYTHON] > 0.8
    assert shares[OTHER] < 0.2


@pytest.mark.parametrize("each", PASSES)
@pytest.mark.parametrize("layer", [critic_layers()[1], generator_layers()[-1]])
def test_time_of_every_way_to_convolve_counts_as_convolutions(layer: Layer, each: str) -> None:
    call = contenders(layer, each, "float32", 4, Setting(CPU))["fastgan"]
    # The best of a few: on a busy machine a call may wait anywhere in it.
    assert max(count(lambda: call(0), CPU).shares["convolutions"] for _ in range(5)) > 0.5


# --- Work and floors ------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("batch", "channels_in", "channels_out", "kernel", "stride", "padding", "size"),
    [(2, 3, 8, 4, 2, 1, 16), (5, 7, 2, 3, 1, 0, 9), (1, 100, 16, 4, 1, 3, 8)],
)
def test_operations_are_those_that_torch_counts(
    batch: int,
    channels_in: int,
    channels_out: int,
    kernel: int,
    stride: int,
    padding: int,
    size: int,
    transposed: bool,
) -> None:
    kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    layer = kind(channels_in, channels_out, kernel, stride, padding, bias=False)
    images = torch.randn(batch, channels_in, size, size, requires_grad=True)
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        output = layer(images)
        output.sum().backward()
    work = convolution_steps(
        batch,
        (channels_in, size, size),
        tuple(output.shape[1:]),
        (kernel, kernel),
        transposed=transposed,
        dtype="float32",
    )
    assert work.flops == counter.get_total_flops()
    tensors = images.numel() + output.numel() + layer.weight.numel()
    assert work.bytes == 3 * 4 * tensors


def test_floor_takes_of_each_step_what_binds_it() -> None:
    floors = Floors(100.0, {"float32": 1000.0})
    arithmetic, memory = Work((Step(5000.0, 100.0),)), Work((Step(100.0, 300.0),))
    assert floors.seconds(arithmetic, "float32") == 5
    assert floors.seconds(memory, "float32") == 3
    assert floors.seconds(arithmetic + memory.times(2), "float32") == 11
    assert floors.bound(arithmetic + memory, "float32") == "arithmetic"
    assert floors.bound(arithmetic + memory.times(2), "float32") == "bandwidth"
    with pytest.raises(ConfigError, match="bfloat16"):
        floors.seconds(memory, "bfloat16")
    assert floors.best(Floors(200.0, {"float32": 10.0})) == Floors(200.0, {"float32": 1000.0})


def test_measured_floors_are_rates_that_a_computer_can_have(monkeypatch) -> None:
    monkeypatch.setattr("fastgan.bench.floors._MOST_COPY", 64 << 20)
    floors = measure_floors(CPU, dtypes=("float32", "bfloat16"), repeats=3, matrix=256)
    assert 1e8 < floors.bytes_per_second < 1e13
    assert all(1e7 < rate < 1e15 for rate in floors.flops_per_second.values())


def test_elementwise_work_counts_every_reading_and_writing() -> None:
    assert elementwise(6, reads=2, writes=1, dtype="bfloat16") == Work((Step(0.0, 36.0),))
