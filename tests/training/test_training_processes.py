"""Two processes train as one: the same gradients, the same run, and one failure ends both."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from fastgan.errors import ConfigError
from fastgan.training import Processes, TrainConfig, Trainer
from fastgan.training.checkpoint import list_checkpoints, load_checkpoint
from fastgan.training.sync_batch_norm import SynchronizedBatchNorm, _merge, synchronize_batch_norm

sys.path.insert(0, str(Path(__file__).parent))
import two_processes

SMALL = {"nz": 4, "ngf": 4, "ndf": 4, "batch_size": 8, "n_critic": 1, "log_every": 1}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_two(*arguments: str) -> list[subprocess.CompletedProcess[str]]:
    """Runs ``python arguments`` twice, as torchrun would."""
    port = str(free_port())
    started = []
    for rank in ("0", "1"):
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    results = []
    try:
        for process in started:
            printed, errors = process.communicate(timeout=120)
            results.append(
                subprocess.CompletedProcess(process.args, process.returncode, printed, errors)
            )
    finally:
        for process in started:
            process.kill()
    return results


def train_with_two(out: Path, *arguments: str) -> list[subprocess.CompletedProcess[str]]:
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    command = ["-m", "fastgan", "train", "--out", str(out), *small, "--device", "cpu", *arguments]
    return start_two(*command)


@pytest.fixture(scope="module")
def updates(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    out = tmp_path_factory.mktemp("updates")
    for done in start_two(two_processes.__file__, "update", str(out)):
        assert done.returncode == 0, done.stderr
    return [torch.load(out / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("case", two_processes.CASES)
def test_two_processes_take_the_steps_of_one_with_the_whole_batch(
    case: str, updates: list[dict[str, dict[str, torch.Tensor]]]
) -> None:
    alone = two_processes.updated(case, Processes())
    first, second = (each[case] for each in updates)
    assert alone.keys() == first.keys() == second.keys()
    for name, expected in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(
            first[name], expected, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_run_of_two_is_that_of_one_and_each_goes_on_with_the_other_s(tmp_path: Path) -> None:
    options = {"model": "dcgan", "optimizer": "sgd", "lr": 0.05, "sync_batch_norm": True}
    alone, together = tmp_path / "alone", tmp_path / "together"
    Trainer(TrainConfig(out=str(alone), steps=4, **SMALL, **options)).run()
    flags = ["--model=dcgan", "--optimizer=sgd", "--lr=0.05", "--sync-batch-norm"]
    first, second = train_with_two(together, *flags, "--steps=2")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "done: 2 steps" in first.stdout
    assert (second.stdout, second.stderr) == ("", "")  # the first alone speaks
    assert len(load_checkpoint(list_checkpoints(together)[-1])["random"]["others"]) == 1
    asked = TrainConfig(out=str(together), steps=3)
    Trainer(asked, resume=True, explicit=frozenset({"steps"})).run()
    first, second = train_with_two(together, *flags, "--steps=4", "--resume")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert sorted(path.name for path in together.iterdir()) == sorted(
        {path.name for path in alone.iterdir()}
        | {f"checkpoint-000000{n}.pt" for n in (3, 4)}
        | {f"samples-000000{n}.png" for n in (2, 3, 4)}
    )
    ours, theirs = (load_checkpoint(list_checkpoints(run)[-1]) for run in (together, alone))
    for network in ("generator", "discriminator", "ema_generator"):
        for name, value in theirs[network].items():
            torch.testing.assert_close(ours[network][name], value, rtol=1e-2, atol=1e-4)


def test_data_that_fail_in_one_process_end_both_with_its_words_and_saved(tmp_path: Path) -> None:
    # More files than are read at the start would be slow to make; the same by a set of its own.
    folder, out = tmp_path / "images", tmp_path / "run"
    folder.mkdir()
    for index in range(16):
        Image.new("L", (16, 16), 10 * index).save(folder / f"{index:02}.png")
    script = tmp_path / "train.py"
    script.write_text(
        f"""
from pathlib import Path
from fastgan.cli import main
from fastgan.data import folder
folder.VERIFIED_FILES = 4  # as if it were a large folder: read as it is needed
from fastgan.training import Callback, TrainConfig, Trainer, joined_processes

class Spoil(Callback):
    def on_step(self, trainer):
        # The same file for both, but only the second process comes to it in its part of a batch.
        if trainer.step == 2 and trainer.processes.rank == 1:
            for path in Path({str(folder)!r}).iterdir():
                path.rename(path.with_suffix(".gone"))
            trainer.source.files = [path.with_suffix(".nowhere") for path in trainer.source.files]
        if trainer.step == 2 and trainer.processes.rank == 0:
            trainer.source.read = lambda indices: __import__("torch").zeros(len(indices), 1, 16, 16)

with joined_processes("cpu") as processes:
    config = TrainConfig(out={str(out)!r}, data="folder:{folder}", image_size=16, workers=0,
        steps=50, nz=4, ngf=4, ndf=4, batch_size=4)
    Trainer(config, callbacks=[Spoil()], processes=processes).run()
"""
    )
    first, second = start_two(str(script))
    assert first.returncode == second.returncode == 1
    last_lines = [done.stderr.strip().splitlines()[-1] for done in (first, second)]
    assert "process 1 failed" in last_lines[0], first.stderr
    assert ".nowhere" in last_lines[0]
    assert ".nowhere" in last_lines[1]
    (saved,) = list_checkpoints(out)
    assert load_checkpoint(saved)["step"] in (2, 3)


def test_one_process_s_failure_stops_the_other_with_its_message(tmp_path: Path) -> None:
    began = time.monotonic()
    first, second = start_two(two_processes.__file__, "fail", str(tmp_path))
    assert time.monotonic() - began < 60
    assert first.returncode == second.returncode == 1
    assert "process 1 failed: the disk of this machine is on fire" in first.stderr
    assert "the disk of this machine is on fire" in second.stderr


@pytest.mark.slow
def test_torchrun_trains(tmp_path: Path) -> None:
    out = tmp_path / "run"
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    command += ["-m", "fastgan", "train", "--out", str(out), "--steps=2", "--device=cpu", *small]
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: 2 steps") == 1
    assert load_checkpoint(list_checkpoints(out)[-1])["step"] == 2


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
