"""Two processes train as one: the same gradients, the same run, and one failure ends both."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked
from PIL import Image
from torch import nn

from fastgan.cli import main
from fastgan.errors import ConfigError
from fastgan.training import Processes, TrainConfig, Trainer
from fastgan.training.checkpoint import list_checkpoints, load_checkpoint
from fastgan.training.recorder import read_metrics
from fastgan.training.sync_batch_norm import SynchronizedBatchNorm, _merge, synchronize_batch_norm

sys.path.insert(0, str(Path(__file__).parent))
import two_processes


@dataclass
class Two:
    """Two processes that have ended: the folder that they wrote into, and how they ended."""

    out: Path
    done: list[Forked]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_two(folder: Path, function: Callable[..., int | None], *arguments: Any) -> list[Forked]:
    """Calls the function in two processes, with torchrun's environment, and waits for both."""
    port = str(free_port())
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        Forked(
            function,
            *arguments,
            folder=folder,
            environment={**common, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    for process in started:
        process.ended(120)
    return started


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    """What became of two processes that did all there is in two_processes.py."""
    out = tmp_path_factory.mktemp("two")
    (out / "images").mkdir()
    for index in range(24):
        Image.new("L", (16, 16), 10 * index).save(out / "images" / f"{index:02}.png")
    return Two(out, start_two(out, two_processes.main, out))


@pytest.mark.parametrize("case", two_processes.CASES)
def test_two_processes_take_the_steps_of_one_with_the_whole_batch(case: str, two: Two) -> None:
    alone = two_processes.updated(case, Processes())
    first, second = (torch.load(two.out / f"updates-{rank}.pt")[case] for rank in (0, 1))
    assert alone.keys() == first.keys() == second.keys()
    for name, expected in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(
            first[name], expected, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("case", two_processes.OWN_DRAWS)
def test_two_processes_with_draws_of_their_own_have_the_same_weights(case: str, two: Two) -> None:
    first, second = (torch.load(two.out / f"updates-{rank}.pt")[case] for rank in (0, 1))
    assert float(first["StyleGAN2Generator path_length_mean 1"]) > 0
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize(
    ("case", "of_the_whole"),
    [
        ("styles", "StyleGAN2Generator mapping.w_avg"),
        # Of the first map, which doesn't lie behind another batch norm.
        ("batch norm", "DCGANGenerator main.1.running_mean"),
    ],
)
def test_running_statistics_are_averaged_over_processes(
    case: str, of_the_whole: str, two: Two
) -> None:
    first, second = (torch.load(two.out / f"statistics-{rank}.pt")[case] for rank in (0, 1))
    assert {name for name, value in first.items() if not torch.equal(value, second[name])} == set()
    expected = two_processes.passed(case, Processes())[of_the_whole]
    assert expected.count_nonzero() == len(expected)
    torch.testing.assert_close(first[of_the_whole], expected)


def test_data_that_fail_in_one_process_end_both_with_its_words_and_saved(two: Two) -> None:
    first, second = ((two.out / f"error-{rank}.txt").read_text() for rank in (0, 1))
    assert second.startswith("DataError: ")
    assert ".gone" in second
    assert first == "ProcessFailedError: process 1 failed: " + second.removeprefix("DataError: ")
    (saved,) = list_checkpoints(two.out / "without data")
    assert 2 <= load_checkpoint(saved)["step"] < 50


def test_one_process_s_failure_stops_the_other_with_its_message(two: Two) -> None:
    first, second = two.done
    assert (first.ended(), second.ended()) == (1, 1), first.errors + second.errors
    assert first.errors.strip().endswith("process 1 failed: the disk of this machine is on fire")
    assert second.errors.strip().endswith("the disk of this machine is on fire")


def test_skipped_files_are_said_once(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(8):
        Image.new("L", (16, 16), 30 * number).save(tmp_path / "images" / f"{number}.gif")
    (tmp_path / "images" / "8.heic").write_bytes(b"not read")
    options = ["train", "--out", str(tmp_path / "run"), "--device=cpu", "--steps=1", "--nz=4"]
    options += [f"--data=folder:{tmp_path / 'images'}", "--image-size=16", "--ngf=4", "--ndf=4"]
    done = start_two(tmp_path, main, [*options, "--batch-size=8", "--sync-batch-norm"])
    assert [each.ended() for each in done] == [0, 0], [each.errors for each in done]
    said = [line for each in done for line in each.errors.splitlines() if ": skipped " in line]
    assert len(said) == 1


def test_a_bad_setting_is_named_once(tmp_path: Path) -> None:
    options = ["train", "--out", str(tmp_path / "never"), "--device=cpu", "--batch-size=3"]
    done = start_two(tmp_path, main, options)
    assert [each.ended() for each in done] == [2, 2]
    said = [line for each in done for line in each.errors.splitlines() if "batch_size" in line]
    (line,) = said
    assert line.startswith("fastgan: error: batch_size: expected a multiple of 2")
    assert not (tmp_path / "never").exists()


def test_torchrun_goes_on_with_a_run_of_one_and_one_with_a_run_of_two(tmp_path: Path) -> None:
    small = {"nz": 4, "ngf": 4, "ndf": 4, "batch_size": 8, "log_every": 1}
    options = {"model": "dcgan", "optimizer": "sgd", "lr": 0.05, "sync_batch_norm": True}
    alone, together = tmp_path / "alone", tmp_path / "together"
    Trainer(TrainConfig(out=str(alone), steps=5, **small, **options)).run()
    Trainer(TrainConfig(out=str(together), steps=2, **small, **options)).run()
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    command += ["-m", "fastgan", "train", "--out", str(together), "--resume", "--steps=4"]
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: 4 steps") == 1  # the first process alone speaks
    assert len(load_checkpoint(list_checkpoints(together)[-1])["random"]["others"]) == 1
    asked = TrainConfig(out=str(together), steps=5)
    Trainer(asked, resume=True, explicit=frozenset({"steps"})).run()
    assert len(read_metrics(together / "metrics.csv")) == 5
    ours, theirs = (load_checkpoint(list_checkpoints(run)[-1]) for run in (together, alone))
    for network in ("generator", "discriminator", "ema_generator"):
        for name, value in theirs[network].items():
            torch.testing.assert_close(ours[network][name], value, rtol=1e-2, atol=1e-4)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    three = Processes(0, 3)
    with pytest.raises(ConfigError, match="batch_size: expected a multiple of 3"):
        Trainer(TrainConfig(out="never", batch_size=8), processes=three)
    with pytest.raises(ConfigError, match="batch_size"):
        Trainer(TrainConfig(out="never", batch_size=3), processes=three)
    assert not Path("never").exists()


@pytest.mark.parametrize("seed", range(3))
def test_merged_statistics_are_those_of_the_whole(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    # A mean far from zero, where the difference of two squares would cancel.
    whole = torch.randn(600, 5, generator=random) + 1000
    rows = []
    for part in whole.split([1, 99, 500]):
        mean = part.mean(0)
        rows.append(
            torch.cat([torch.tensor([float(len(part))]), mean, ((part - mean) ** 2).sum(0)])
        )
    count, mean, squares = _merge(torch.stack(rows), 5)
    assert count.item() == 600
    exact = whole.double()
    torch.testing.assert_close(mean.double(), exact.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        (squares / 600).double(), exact.var(0, correction=0), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_synchronised_batch_norm_alone_is_batch_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.BatchNorm2d(3)).to(dtype)
    nn.init.normal_(theirs[0].weight)
    ours = nn.Sequential(nn.BatchNorm2d(3)).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    parameters = list(ours.parameters())
    synchronize_batch_norm(ours, Processes())
    assert isinstance(ours[0], SynchronizedBatchNorm)
    assert all(a is b for a, b in zip(ours.parameters(), parameters, strict=True))
    x = torch.randn(4, 3, 5, 5, dtype=dtype) * 2 + 1
    results = []
    for network in (ours, theirs):
        input = x.clone().requires_grad_()
        output = network(input)
        output.square().sum().backward()
        results.append([output, input.grad, *(p.grad for p in network.parameters())])
        results[-1] += list(network.buffers())
        results[-1].append(network.eval()(x))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_synchronised_batch_norm_says_that_it_has_no_second_derivative() -> None:
    norm = nn.Sequential(nn.BatchNorm2d(2))
    synchronize_batch_norm(norm, Processes())
    x = torch.randn(3, 2, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
