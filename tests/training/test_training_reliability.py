"""Interrupted runs: killed at random moments, full disks, missing data. The newest checkpoint
always loads, and the resumed run ends with bitwise the same weights as an undisturbed one.
"""

from __future__ import annotations

import errno
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from forked import Forked, fastgan_process
from PIL import Image

from fastgan.cli import main
from fastgan.data import load_data
from fastgan.errors import DataError, FastganError, OutputError
from fastgan.training import Callback, TrainConfig, Trainer
from fastgan.training import checkpoint as checkpoint_module
from fastgan.training.checkpoint import list_checkpoints, load_checkpoint

SMALL = {"nz": 4, "ngf": 4, "ndf": 4, "batch_size": 4, "n_critic": 2, "log_every": 3}
SMALL |= {"precision": "fp32"}  # in the processes that tests start, too
STEPS = 100


def config(out: Path, **changes: object) -> TrainConfig:
    return TrainConfig(**{"out": str(out), "model": "wgan-gp", "steps": 8, **SMALL, **changes})


def resumed(out: Path, **changes: Any) -> Trainer:
    asked = TrainConfig(out=str(out), **changes)
    return Trainer(asked, resume=True, explicit=frozenset(changes))


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    saved = load_checkpoint(list_checkpoints(run)[-1])
    return {
        f"{network}.{name}": value
        for network in ("generator", "discriminator", "ema_generator")
        for name, value in saved[network].items()
    }


def assert_same_weights(ours: Path, theirs: Path) -> None:
    a, b = weights_of(ours), weights_of(theirs)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


# --- Killed ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def small_layers_are_torchs() -> Iterator[None]:
    """As in the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastgan.nn.stretch.LEAVE_TO_TORCH", True)
        yield


@pytest.fixture(scope="module")
def undisturbed(small_layers_are_torchs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    Trainer(config(out, steps=STEPS)).run()
    return out


def go_on(settings: TrainConfig) -> None:
    """Trains, or goes on after a kill."""
    # Killed before its settings were written, it left no run to resume.
    begun = (Path(settings.out) / "config.toml").exists()
    Trainer(settings, resume=begun).run()


def test_a_run_killed_at_random_moments_ends_as_one_that_never_was(
    undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    # Saving at each step makes most moments moments within a save.
    settings = config(out, steps=STEPS, checkpoint_every=1, keep_checkpoints=1)
    for _ in range(2):  # before there is anything
        process = Forked(go_on, settings, folder=tmp_path)
        time.sleep(random.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.ended() == -signal.SIGKILL
    for kills in (1, 2, 3, 4):
        before = newest(out)
        process = Forked(go_on, settings, folder=tmp_path)
        process.wait_for(partial(is_newer, out, before))
        time.sleep(random.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.ended() == -signal.SIGKILL, kills
        load_checkpoint(list_checkpoints(out)[-1])
    assert Forked(go_on, settings, folder=tmp_path).ended() == 0
    assert_same_weights(out, undisturbed)
    # What the kills left half-written is gone.
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def newest(out: Path) -> str:
    """The newest checkpoint's name, or nothing."""
    return max((path.name for path in out.glob("checkpoint-*.pt")), default="")


def is_newer(out: Path, name: str) -> bool:
    """Whether there is a newer one."""
    return newest(out) > name


def test_sigterm_saves_and_the_run_goes_on_to_the_same_end(
    undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    (tmp_path / "settings.toml").write_text(config(out, steps=STEPS).to_toml())
    process = fastgan_process("train", "--config", tmp_path / "settings.toml", folder=tmp_path)
    metrics = out / "metrics.csv"
    process.wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 2)
    process.send_signal(signal.SIGTERM)
    assert process.ended() == 143, process.errors
    assert "stopped by SIGTERM" in process.printed
    assert 0 < load_checkpoint(list_checkpoints(out)[-1])["step"] < STEPS
    resumed(out).run()
    assert_same_weights(out, undisturbed)


# --- Full disks -----------------------------------------------------------------------------------


class _FullDisk:
    """A file on a disk that has room for so many more bytes."""

    def __init__(self, file: IO[bytes], room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if size > self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._room -= size
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 20_000], ids=["nothing fits", "half fits"])
def test_a_disk_full_at_a_checkpoint_ends_the_run_and_loses_nothing_that_was_saved(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "run", tmp_path / "whole"
    Trainer(config(whole)).run()
    save = torch.save

    def full(content: Any, file: IO[bytes]) -> None:
        save(content, file if content["step"] < 6 else _FullDisk(file, room))

    monkeypatch.setattr(checkpoint_module.torch, "save", full)
    with pytest.raises(OutputError, match=r"checkpoint-0000006\.pt: can't be written"):
        Trainer(config(out, checkpoint_every=2)).run()
    monkeypatch.undo()
    assert [path.name for path in list_checkpoints(out)] == [
        "checkpoint-0000002.pt",
        "checkpoint-0000004.pt",
    ]
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    resumed(out).run()
    assert_same_weights(out, whole)


def train_with_small_files(out: str) -> int:
    """The kernel's own limit on a file's size, in place of a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32768, 32768))  # a checkpoint is larger
    options = ["--nz=4", "--ngf=8", "--ndf=8", "--batch-size=4", "--steps=2"]
    return main(["train", "--out", out, *options])


def test_a_file_too_large_for_its_disk_is_one_clear_line(tmp_path: Path) -> None:
    process = Forked(train_with_small_files, str(tmp_path / "run"), folder=tmp_path)
    assert process.ended() == 2, process.errors
    assert "Traceback" not in process.errors
    assert "can't be written" in process.errors.splitlines()[-1]
    assert list(tmp_path.glob("run/*.pt")) == []


# --- Data that goes away, and other errors between two steps --------------------------------------


def make_folder(folder: Path) -> None:
    folder.mkdir()
    for index in range(24):
        Image.new("L", (16, 16), 10 * index).save(folder / f"{index:02}.png")


def vanish(folder: Path) -> Callable[[], None]:
    folder.rename(folder.parent / "away")
    return lambda: (folder.parent / "away").rename(folder) and None


def corrupt(folder: Path) -> Callable[[], None]:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for path in before:
        path.write_bytes(before[path][:30])
    return lambda: [path.write_bytes(content) for path, content in before.items()] and None


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("spoil", [vanish, corrupt])
def test_data_that_goes_away_ends_the_run_saved_and_it_goes_on_when_they_are_back(
    spoil: Callable[[Path], Callable[[], None]], workers: int, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    make_folder(folder)
    data = f"folder:{folder}"

    def source() -> Any:
        return load_data(data, image_size=16, in_memory=False)

    settings = {"data": data, "image_size": 16, "workers": workers, "steps": 10}
    Trainer(config(tmp_path / "whole", **settings), source=source()).run()
    restore: list[Callable[[], None]] = []
    warnings: list[str] = []

    class Spoil(Callback):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == 3:
                restore.append(spoil(folder))

        def on_warning(self, trainer: Trainer, text: str) -> None:
            warnings.append(text)

    out = tmp_path / "run"
    with pytest.raises(DataError, match=r"\d\d\.png"):
        Trainer(config(out, **settings), source=source(), callbacks=[Spoil()]).run()
    saved = load_checkpoint(list_checkpoints(out)[-1])["step"]
    assert 3 <= saved < 10  # workers had read some batches ahead
    assert any("cut short" in text and f"checkpoint-{saved:07}" in text for text in warnings)
    restore[0]()
    Trainer(TrainConfig(out=str(out)), source=source(), resume=True).run()
    assert_same_weights(out, tmp_path / "whole")


@pytest.mark.parametrize("event", ["on_step", "on_metrics"])
def test_an_error_in_a_callback_loses_no_step(event: str, tmp_path: Path) -> None:
    Trainer(config(tmp_path / "whole")).run()

    class Broken(Callback):
        pass

    def fail(self: Callback, trainer: Trainer, *rest: object) -> None:
        if trainer.step == 6:
            raise LookupError("the user's own mistake")

    setattr(Broken, event, fail)
    out = tmp_path / "run"
    with pytest.raises(LookupError, match="own mistake"):
        Trainer(config(out), callbacks=[Broken()]).run()
    assert load_checkpoint(list_checkpoints(out)[-1])["step"] == 6
    resumed(out).run()
    assert_same_weights(out, tmp_path / "whole")


def test_an_error_in_the_middle_of_a_step_saves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(config(tmp_path / "run", checkpoint_every=2))
    update = trainer.updater.update_generator

    def fail(**options: bool) -> dict[str, torch.Tensor]:
        if trainer.step == 5:
            raise FastganError("out of something")
        return update(**options)

    monkeypatch.setattr(trainer.updater, "update_generator", fail)
    with pytest.raises(FastganError, match="out of something"):
        trainer.run()
    assert [load_checkpoint(path)["step"] for path in list_checkpoints(tmp_path / "run")] == [2, 4]
