"""Runs whose surroundings fail: no shared memory, no reader, no other rank, another run beside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan.data import load_data, open_stream, streaming
from fastgan.data.streaming import StreamInterrupted
from fastgan.errors import DataError, OutputError
from fastgan.training import TrainConfig, Trainer
from fastgan.training.checkpoint import list_checkpoints, load_checkpoint
from fastgan.training.run_lock import run_lock

FASTGAN = (sys.executable, "-m", "fastgan")
SMALL = ["--nz=4", "--ngf=4", "--ndf=4", "--batch-size=4", "--n-critic=1", "--precision=fp32"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def train(out: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*FASTGAN, "train", f"--out={out}", *SMALL, *arguments],
        **{
            "stdout": subprocess.DEVNULL,
            "env": ENVIRONMENT,
            "text": True,
            "stderr": subprocess.PIPE,
            **options,
        },
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- Data workers ---------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Any:
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return load_data(f"folder:{tmp_path}", image_size=16, in_memory=False)


def open_with_workers(source: Any, **options: Any) -> streaming.ImageStream:
    return open_stream(source, batch_size=4, seed=0, device="cpu", workers=1, **options)


def test_a_batch_that_shared_memory_cannot_hold_is_an_error_in_words(
    source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to write to file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # workers are forked
    with (
        pytest.raises(DataError, match=r"No space left on device \(28\)\): make /dev/shm larger"),
        open_with_workers(source) as stream,
    ):
        next(stream)


def test_workers_that_hang_are_waited_for_so_long_and_no_longer(
    source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(source), "read", lambda *_: time.sleep(600))
    monkeypatch.setattr(streaming, "PATIENCE", 1.5)
    with (
        pytest.raises(DataError, match="no batch came from 1 data worker processes in 2 s"),
        open_with_workers(source) as stream,
    ):
        next(stream)


def test_a_wait_for_workers_is_called_off_and_goes_on_with_the_same_batch(source: Any) -> None:
    with open_with_workers(source) as plain:
        expected = next(plain)[0]
    slow = type(source).read

    class Slow(type(source)):  # type: ignore[misc]
        def read(self, indices: Any) -> torch.Tensor:
            time.sleep(1.7)
            return slow(self, indices)

    source.__class__ = Slow
    calls = [True, False, False, False, False]
    with open_with_workers(source, stopping=lambda: calls.pop(0)) as stream:
        with pytest.raises(StreamInterrupted):
            next(stream)
        assert torch.equal(next(stream)[0], expected)


# --- Standard streams -----------------------------------------------------------------------------


def test_a_run_whose_readers_go_away_goes_on_to_its_end(tmp_path: Path) -> None:
    process = train(tmp_path / "run", "--steps=60", "--log-every=1", stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()  # both pipes break under it
    assert process.wait(timeout=120) == 0
    newest = list_checkpoints(tmp_path / "run")[-1]
    assert load_checkpoint(newest)["step"] == 60


@pytest.mark.parametrize("how", ["/dev/full", "closed"])
def test_a_run_without_standard_streams_goes_on_to_its_end(how: str, tmp_path: Path) -> None:
    redirected = ">/dev/full 2>/dev/full" if how == "/dev/full" else ">&- 2>&-"
    words = " ".join([*FASTGAN, "train", f"--out={tmp_path / 'run'}", *SMALL, "--steps=3"])
    done = subprocess.run(["sh", "-c", f"{words} {redirected}"], env=ENVIRONMENT, check=False)
    assert done.returncode == 0
    assert load_checkpoint(list_checkpoints(tmp_path / "run")[-1])["step"] == 3
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert lines[0].startswith("step,")  # and nothing that was meant for standard error
    assert len(lines) == 2


def test_a_full_standard_output_is_one_line_for_what_was_to_be_printed_there(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m fastgan doctor >/dev/full"],
        env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "fastgan: error: standard output: No space left on device\n"


def test_a_hangup_saves_and_stops(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = train(out, "--steps=100000", "--log-every=1", stdout=subprocess.PIPE)
    wait_for(out / "metrics.csv", process)
    process.send_signal(signal.SIGHUP)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGHUP
    assert "stopped by SIGHUP" in said
    assert len(list_checkpoints(out)) == 1


@pytest.mark.parametrize("seconds", [0.1, 0.4, 0.8, 1.2, 1.8])
def test_an_interrupt_at_the_start_leaves_no_traceback(seconds: float, tmp_path: Path) -> None:
    process = train(tmp_path / "run", "--steps=100000", start_new_session=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    # Python itself, before it has read a line of ours, has its own way.
    assert "Traceback" not in errors or "fastgan/cli" not in errors


@pytest.mark.parametrize("signals", [1, 2])
def test_a_wait_in_c_yields_to_a_second_signal_or_after_a_while(signals: int) -> None:
    # A lock that is taken twice is waited for without end, and no signal ends the wait.
    code = """
import ctypes, sys
from fastgan.training import interrupt
interrupt.PATIENCE = 1.0 if sys.argv[1] == "1" else 600.0
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with interrupt.stop_on_signals(lambda name: None):
    libc.pthread_mutex_lock(mutex)
    print("waiting", flush=True)
    libc.pthread_mutex_lock(mutex)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(signals)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    for _ in range(signals):
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    after = "a second signal" if signals == 2 else "1 s of waiting"
    assert errors.startswith(f"fastgan: ended by SIGTERM after {after}")


# --- Two runs, one folder -------------------------------------------------------------------------


def test_of_two_starts_in_one_folder_exactly_one_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    runs = [train(out, "--steps=40", f"--seed={seed}", stdout=subprocess.PIPE) for seed in (1, 2)]
    said = [run.communicate(timeout=120)[1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 2], said
    loser = [run.returncode for run in runs].index(2)
    assert "writes there" in said[loser] or "already holds a run" in said[loser] or (
        "has written there meanwhile" in said[loser]
    )  # fmt: skip
    assert load_checkpoint(list_checkpoints(out)[-1])["config"]["seed"] == 2 - loser
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_a_folder_says_who_holds_it_and_is_free_when_they_are_gone(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, time\nfrom pathlib import Path\n"
         "from fastgan.training.run_lock import run_lock\n"
         f"with run_lock(Path({str(tmp_path)!r})):\n    print('held', flush=True)\n"
         "    time.sleep(600)"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    trainer = Trainer(TrainConfig(out=str(tmp_path), steps=1, nz=4, ngf=4, ndf=4, batch_size=4))
    with pytest.raises(OutputError, match=f"process {holder.pid} on {socket.gethostname()}, since"):
        trainer.run()
    holder.kill()
    holder.wait()
    assert trainer.run().step == 1


def test_a_lock_outlives_an_attempt_of_the_same_process(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        for _ in range(2):
            with (
                pytest.raises(OutputError, match="another run of this process"),
                run_lock(tmp_path),
            ):
                pass
        child = subprocess.run(
            [sys.executable, "-c", "import sys\nfrom pathlib import Path\n"
             "from fastgan.training.run_lock import run_lock\n"
             f"with run_lock(Path({str(tmp_path)!r})):\n    pass"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert f"process {os.getpid()} on" in child.stderr
    assert list(tmp_path.iterdir()) == []


# --- Ranks ----------------------------------------------------------------------------------------


def two_ranks(out: Path, first: list[str], second: list[str]) -> list[tuple[int, str]]:
    """How two processes of one run ended, each with arguments of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {**ENVIRONMENT, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        train(out, "--steps=4", *arguments, env={**common, "RANK": rank, "LOCAL_RANK": rank})
        for rank, arguments in (("0", first), ("1", second))
    ]
    return [(process.wait(timeout=90), process.communicate()[1]) for process in started]


@pytest.mark.parametrize("other", ["--lr=0.1", "--steps=9", "--n-critic=2", "data"])
def test_ranks_that_were_told_different_things_end_before_the_first_step(
    other: str, tmp_path: Path
) -> None:
    first, second = [], [other]
    name = other.strip("-").partition("=")[0].replace("-", "_")
    if other == "data":
        for rank, arguments in ((0, first), (1, second)):
            place = tmp_path / f"{rank}.npz"
            pixels = np.random.default_rng(rank).integers(0, 256, (8, 16, 16), dtype=np.uint8)
            np.savez(place, images=pixels)
            arguments[:] = [f"--data=npz:{place}", "--image-size=16"]
    ends = two_ranks(tmp_path / "run", first, second)
    assert [code for code, _ in ends] == [2, 2], ends
    # Whichever is first says it for both.
    said = ends[0][1] + ends[1][1]
    assert said.count(f"fastgan: error: {name}: process 1 has other than process 0") == 1
    assert list_checkpoints(tmp_path / "run") == []


# --- Fork and threads -----------------------------------------------------------------------------


def test_a_process_forked_after_use_computes_the_same(tmp_path: Path) -> None:
    """What docs/reliability.md says of fork: with one thread, fastgan's ops go on in the child."""
    code = """
import os, torch
torch.set_num_threads(1)
from fastgan.nn import FusedSequential
from torch import nn
torch.manual_seed(0)
net = FusedSequential(nn.Conv2d(3, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
x = torch.randn(4, 3, 16, 16)
first = net(x)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(net(x), first) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_weights_are_the_same_for_any_number_of_runs_with_one_thread_count(tmp_path: Path) -> None:
    found = []
    for number in range(2):
        out = tmp_path / f"{number}"
        settings: dict[str, Any] = {"nz": 4, "ngf": 4, "ndf": 4, "batch_size": 4, "steps": 3}
        Trainer(TrainConfig(out=str(out), **settings)).run()
        found.append(load_checkpoint(list_checkpoints(out)[-1])["generator"])
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name])
