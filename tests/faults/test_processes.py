"""Runs with failing surroundings: no shared memory, no reader, a missing rank, a second run."""

from __future__ import annotations

import ctypes
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Forked, fastgan_process
from PIL import Image
from torch import nn

import fastgan
from fastgan.cli import main
from fastgan.data import load_data, open_stream, streaming
from fastgan.data.streaming import StreamInterrupted
from fastgan.errors import DataError, OutputError
from fastgan.nn import FusedSequential
from fastgan.training import TrainConfig, Trainer, interrupt
from fastgan.training.checkpoint import list_checkpoints, load_checkpoint
from fastgan.training.run_lock import run_lock

FASTGAN = (sys.executable, "-m", "fastgan")
SMALL = ["--nz=4", "--ngf=4", "--ndf=4", "--batch-size=4", "--n-critic=1", "--precision=fp32"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def train(out: Path, *arguments: str, **options: Any) -> Forked:
    """``fastgan train``, in a process of its own."""
    return fastgan_process("train", f"--out={out}", *SMALL, *arguments, **options)


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


def test_workers_that_cannot_be_started_are_an_error_in_words(
    source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", read_only)
    with pytest.raises(DataError, match=r"can't be started \(.*Read-only file system.*/dev/shm"):
        open_with_workers(source)


def test_workers_that_hang_are_waited_for_so_long_and_no_longer(
    source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(source), "read", lambda *_: time.sleep(2.5))
    monkeypatch.setattr(streaming, "_POLL", 0.1)
    monkeypatch.setattr(streaming, "PATIENCE", 0.6)
    with (
        pytest.raises(DataError, match="no batch came from 1 data worker processes in 1 s"),
        open_with_workers(source) as stream,
    ):
        next(stream)


def test_a_wait_for_workers_is_called_off_and_goes_on_with_the_same_batch(
    source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_POLL", 0.1)
    with open_with_workers(source) as plain:
        expected = next(plain)[0]
    slow = type(source).read

    class Slow(type(source)):  # type: ignore[misc]
        def read(self, indices: Any) -> torch.Tensor:
            time.sleep(0.3)
            return slow(self, indices)

    source.__class__ = Slow
    calls = [True]
    with open_with_workers(source, stopping=lambda: bool(calls and calls.pop())) as stream:
        with pytest.raises(StreamInterrupted):
            next(stream)
        assert torch.equal(next(stream)[0], expected)


# --- Standard streams -----------------------------------------------------------------------------


def test_a_run_whose_readers_go_away_goes_on_to_its_end(tmp_path: Path) -> None:
    out = tmp_path / "run"
    streams = {}
    for name in ("stdout", "stderr"):
        os.mkfifo(tmp_path / name)
        streams[name] = str(tmp_path / name)
    readers = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) for path in streams.values()]
    process = train(out, "--steps=60", "--log-every=1", folder=tmp_path, **streams)
    process.wait_for((out / "config.toml").exists)
    for reader in readers:
        os.close(reader)  # both pipes break under it
    assert process.ended() == 0
    assert load_checkpoint(list_checkpoints(out)[-1])["step"] == 60


@pytest.mark.parametrize("how", ["/dev/full", "closed", "broken and closed"])
def test_a_run_without_standard_streams_goes_on_to_its_end(how: str, tmp_path: Path) -> None:
    redirected = {
        "/dev/full": ">/dev/full 2>/dev/full",
        "closed": ">&- 2>&-",
        "broken and closed": "2>&-",  # its reader has gone
    }[how]
    out = tmp_path / "run"
    words = " ".join([*FASTGAN, "train", f"--out={out}", *SMALL, "--steps=3", "--log-every=1"])
    script = f"({words} {redirected}; echo $? >{tmp_path}/code) | true"
    subprocess.run(["sh", "-c", script], env=ENVIRONMENT, check=True)
    assert (tmp_path / "code").read_text() == "0\n"
    assert load_checkpoint(list_checkpoints(out)[-1])["step"] == 3
    lines = (out / "metrics.csv").read_text().splitlines()
    assert lines[0].startswith("step,")  # and nothing that was meant for standard error
    assert len(lines) == 4


def test_a_full_standard_output_is_one_line_for_what_was_to_be_printed_there(
    tmp_path: Path,
) -> None:
    process = fastgan_process("doctor", folder=tmp_path, stdout="/dev/full")
    assert process.ended() == 2
    assert process.errors == "fastgan: error: standard output: No space left on device\n"


def test_a_hangup_saves_and_stops(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = train(out, "--steps=100000", "--log-every=1", folder=tmp_path)
    process.wait_for((out / "metrics.csv").exists)
    process.send_signal(signal.SIGHUP)
    assert process.ended() == 128 + signal.SIGHUP
    assert "stopped by SIGHUP" in process.printed
    assert len(list_checkpoints(out)) == 1


@pytest.mark.parametrize("seconds", [0.1, 0.4, 0.8, 1.2, 1.8])
def test_an_interrupt_at_the_start_leaves_no_traceback(seconds: float, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*FASTGAN, "train", f"--out={tmp_path / 'run'}", *SMALL, "--steps=100000"],
        env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    # Python itself, before it has read a line of ours, has its own way.
    assert "Traceback" not in errors or "fastgan/" not in errors


INTERRUPTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPTED"]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(
    "module", ["fastgan._after_torch", "fastgan.explaining.report", "fastgan.cli"]
)
@pytest.mark.parametrize("how", ["-m", "script"])
def test_an_interrupt_at_any_import_leaves_no_traceback(
    module: str, how: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED)
    script = tmp_path / "fastgan"  # as the installer makes it
    script.write_text("import sys\nfrom fastgan.__main__ import main\nsys.exit(main())\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [*FASTGAN, "--help"] if how == "-m" else [sys.executable, str(script), "--help"],
        env={**ENVIRONMENT, "PYTHONPATH": path, "INTERRUPTED": module},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGINT
    assert done.stdout + done.stderr == ""


def wait_in_c(patience: float) -> None:
    """A lock that is taken twice is waited for without end, and no signal ends the wait."""
    interrupt.PATIENCE = patience
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    with interrupt.stop_on_signals(lambda name: None):
        libc.pthread_mutex_lock(mutex)
        print("waiting", flush=True)
        libc.pthread_mutex_lock(mutex)


@pytest.mark.parametrize("signals", [1, 2])
def test_a_wait_in_c_yields_to_a_second_signal_or_after_a_while(
    signals: int, tmp_path: Path
) -> None:
    process = Forked(wait_in_c, 0.3 if signals == 1 else 600.0, folder=tmp_path)
    process.wait_for(lambda: process.printed)
    for _ in range(signals):
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
    assert process.ended() == 128 + signal.SIGTERM
    after = "a second signal" if signals == 2 else "0 s of waiting"
    assert process.errors.startswith(f"fastgan: ended by SIGTERM after {after}")


class Gone(io.StringIO):
    """Standard output whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def fileno(self) -> int:
        return os.open(os.devnull, os.O_WRONLY)


def test_a_reader_that_leaves_early_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", Gone())
    assert main(["doctor"]) == 141
    small = {"nz": 4, "ngf": 4, "ndf": 4, "batch_size": 4}
    run = Trainer(TrainConfig(out=str(tmp_path / "run"), steps=1, **small)).run()
    report = types.SimpleNamespace(to_dict=lambda: {"fid": 1.0})
    monkeypatch.setattr("fastgan.evaluation.evaluate_samples", lambda *_, **__: report)
    out = tmp_path / "report.json"
    assert main(["evaluate", str(run.checkpoint), "--n=8", f"--json={out}"]) == 141
    figures = json.loads(out.read_text())
    assert figures["fid"] == 1.0
    # What was measured, so that it can be measured again.
    assert figures["checkpoint"] == str(run.checkpoint)
    assert (figures["step"], figures["data"], figures["n"], figures["seed"]) == (1, "digits", 8, 0)
    assert figures["fastgan"] == fastgan.__version__
    assert capsys.readouterr().err == ""


# --- Two runs, one folder -------------------------------------------------------------------------


def test_of_two_starts_in_one_folder_exactly_one_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    runs = [train(out, "--steps=40", f"--seed={seed}", folder=tmp_path) for seed in (1, 2)]
    codes = [run.ended() for run in runs]
    said = [run.errors for run in runs]
    assert sorted(codes) == [0, 2], said
    loser = codes.index(2)
    assert "writes there" in said[loser] or "already holds a run" in said[loser] or (
        "has written there meanwhile" in said[loser]
    )  # fmt: skip
    assert load_checkpoint(list_checkpoints(out)[-1])["config"]["seed"] == 2 - loser
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def hold(folder: Path) -> None:
    """Holds a folder until it is killed."""
    with run_lock(folder):
        print("held", flush=True)
        time.sleep(600)


def test_a_folder_says_who_holds_it_and_is_free_when_they_are_gone(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    holder = Forked(hold, out, folder=tmp_path)
    holder.wait_for(lambda: holder.printed)
    trainer = Trainer(TrainConfig(out=str(out), steps=1, nz=4, ngf=4, ndf=4, batch_size=4))
    with pytest.raises(OutputError, match=f"process {holder.pid} on {socket.gethostname()}, since"):
        trainer.run()
    holder.send_signal(signal.SIGKILL)
    assert holder.ended() == -signal.SIGKILL
    assert trainer.run().step == 1


def test_a_lock_outlives_an_attempt_of_the_same_process(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with run_lock(out):
        for _ in range(2):
            with pytest.raises(OutputError, match="another run of this process"), run_lock(out):
                pass
        other = Forked(hold, out, folder=tmp_path)
        assert other.ended() == 1
        assert f"process {os.getpid()} on" in other.errors
    assert list(out.iterdir()) == []


# --- Ranks ----------------------------------------------------------------------------------------


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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    out = tmp_path / "run"
    ranks = [
        train(out, "--steps=4", *arguments, folder=tmp_path,
              environment={**common, "RANK": rank, "LOCAL_RANK": rank})
        for rank, arguments in (("0", first), ("1", second))
    ]  # fmt: skip
    assert [rank.ended() for rank in ranks] == [2, 2], [rank.errors for rank in ranks]
    # Whichever is first says it for both.
    said = ranks[0].errors + ranks[1].errors
    assert said.count(f"fastgan: error: {name}: process 1 has other than process 0") == 1
    assert list_checkpoints(out) == []


# --- Fork and threads -----------------------------------------------------------------------------


def compute_and_fork() -> int:
    """Computes, forks, and computes the same in the child."""
    torch.manual_seed(0)
    net = FusedSequential(nn.Conv2d(3, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    images = torch.randn(4, 3, 16, 16)
    first = net(images)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(net(images), first) else 3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_process_forked_after_use_computes_the_same(tmp_path: Path) -> None:
    """What docs/reliability.md says of fork: with one thread, fastgan's ops go on in the child."""
    assert Forked(compute_and_fork, folder=tmp_path).ended() == 0


def test_weights_are_the_same_for_any_number_of_runs_with_one_thread_count(tmp_path: Path) -> None:
    found = []
    for number in range(2):
        out = tmp_path / f"{number}"
        settings: dict[str, Any] = {"nz": 4, "ngf": 4, "ndf": 4, "batch_size": 4, "steps": 3}
        Trainer(TrainConfig(out=str(out), **settings)).run()
        found.append(load_checkpoint(list_checkpoints(out)[-1])["generator"])
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name])
