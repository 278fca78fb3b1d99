"""Checkpoints: atomic, and never executed."""

from __future__ import annotations

import contextlib
import os
import pickle
import stat
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgan.errors import CheckpointError, OutputError
from fastgan.training import TrainConfig, Trainer, load_generator
from fastgan.training.checkpoint import load_checkpoint, remove_leftovers, save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoint") / "run"
    config = TrainConfig(out=str(out), steps=1, nz=4, ngf=4, ndf=4, batch_size=4)
    return Trainer(config).run().checkpoint


class RunsCode:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.target}",))


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_generator(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_hidden_code_is_refused_and_does_not_run(form: str, tmp_path: Path) -> None:
    path, evidence = tmp_path / "evil.pt", tmp_path / "evidence"
    content = {"format": "fastgan-checkpoint", "version": 1, "config": RunsCode(evidence)}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    text = refused(path)
    assert not evidence.exists()
    assert "could run code" in text if form == "zip" else "not a fastgan checkpoint" in text
    # The same file does run code when it is unpickled the careless way, so it is a real attack.
    torch.load(path, weights_only=False) if form != "bare pickle" else pickle.loads(
        path.read_bytes()
    )
    assert evidence.exists()


def test_code_hidden_among_good_weights_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["generator"]["main.0.weight"] = RunsCode(tmp_path / "evidence")
    torch.save(content, tmp_path / "evil.pt")
    assert "could run code" in refused(tmp_path / "evil.pt")
    assert not (tmp_path / "evidence").exists()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(fraction=st.floats(0, 0.999))
def test_a_truncated_checkpoint_is_refused(
    fraction: float, checkpoint: Path, tmp_path: Path
) -> None:
    whole = checkpoint.read_bytes()
    path = tmp_path / "truncated.pt"
    path.write_bytes(whole[: int(len(whole) * fraction)])
    assert "truncated" in refused(path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_checkpoint_raises_nothing_but_checkpoint_errors(
    data: st.DataObject, checkpoint: Path, tmp_path: Path
) -> None:
    content = bytearray(checkpoint.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.pt"
    path.write_bytes(bytes(content))
    # A flipped bit in a weight is another weight, and no error.
    with contextlib.suppress(CheckpointError):
        load_generator(path)


def test_missing_files_and_empty_folders_are_named(tmp_path: Path) -> None:
    assert "no such checkpoint" in refused(tmp_path / "none.pt")
    assert "no checkpoint" in refused(tmp_path)


@pytest.mark.parametrize(
    "content", [{"a": 1}, [1, 2], torch.zeros(3), {"format": "fastgan-checkpoint", "version": 99}]
)
def test_other_torch_files_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    refused(tmp_path / "other.pt")


def test_an_ordinary_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ngf", 10**9),  # would need 10**19 bytes if it were built before it is compared
        ("ngf", 8),
        ("nz", 5),
        ("model", "gan"),
        ("model", "no-such-model"),
        ("image_size", 32),
        ("conditional", True),
        ("ngf", "four"),
    ],
)
def test_weights_of_another_model_are_refused(
    key: str, value: object, checkpoint: Path, tmp_path: Path
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["config"][key] = value
    if key == "image_size":
        content["data"][key] = value
    torch.save(content, tmp_path / "other.pt")
    refused(tmp_path / "other.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"generator": None, "ema_generator": None},
        {"generator": {"main.0.weight": 3}, "ema_generator": None},
        {"config": None},
        {"config": {}},
        {"config": {"steps": -1}},
        {"data": {}},
        {"data": {"name": "x", "channels": 2, "image_size": 16}},
        {"data": {"name": "x", "channels": 1, "image_size": 17}},
        {"data": {"name": "x", "channels": 1, "image_size": 16, "num_classes": 10**12}},
    ],
)
def test_incomplete_checkpoints_are_refused(
    change: dict[str, object], checkpoint: Path, tmp_path: Path
) -> None:
    content = {**torch.load(checkpoint, weights_only=True), **change}
    torch.save(content, tmp_path / "other.pt")
    if change == {"config": {}}:  # all defaults: a DCGAN 64 channels wide, which this is not
        assert "another model" in refused(tmp_path / "other.pt")
    else:
        refused(tmp_path / "other.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer_g": {}},
        {"optimizer_d": None},
        {"random": {}},
        {"random": {"torch": torch.zeros(3), "players": torch.zeros(3), "device": "cpu"}},
        {"step": "three"},
        {"step": None},
        {"discriminator": {}},
        {"ema_generator": None},
        {"step": -5},
        {"batches": -1},
        "moments of another shape",
        "moments left out",
        "sparse weights",
        "double weights",
        "complex weights",
    ],
    ids=str,
)
def test_resuming_from_an_incomplete_checkpoint_is_refused(
    change: dict[str, object] | str, checkpoint: Path, tmp_path: Path
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    weight = content["generator"]["main.0.weight"]
    moments = content["optimizer_d"]["state"]
    if change == "moments of another shape":
        moments[0]["exp_avg"] = torch.zeros(3)
    elif change == "moments left out":
        moments.clear()
    elif change == "sparse weights":
        content["generator"]["main.0.weight"] = weight.to_sparse()
    elif change == "double weights":
        content["generator"]["main.0.weight"] = weight.double()
    elif change == "complex weights":
        content["generator"]["main.0.weight"] = torch.complex(weight, weight)
    else:
        content.update(change)
    torch.save(content, tmp_path / "checkpoint-0000001.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint-0000001\.pt"):
        Trainer(TrainConfig(out=str(tmp_path)), resume=True)


def test_a_failed_save_leaves_the_old_checkpoint(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint-0000001.pt"
    save_checkpoint(path, {"step": 1})
    before = path.read_bytes()

    def full_disk(content: object, file: object) -> None:
        file.write(b"half of it")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        save_checkpoint(path, {"step": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoints_are_ordinary_files(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-0000001.pt"
    before = os.umask(0o022)
    try:
        save_checkpoint(path, {"step": 1})
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert load_checkpoint(path)["step"] == 1


def test_the_moving_average_is_what_is_drawn_from(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    averaged, _, _ = load_generator(checkpoint)
    last, _, _ = load_generator(checkpoint, ema=False)
    for name, value in averaged.state_dict().items():
        assert torch.equal(value, content["ema_generator"][name])
    for name, value in last.state_dict().items():
        assert torch.equal(value, content["generator"][name])


@pytest.mark.parametrize(
    "name",
    [
        *("checkpoint-0000001.pt", "best.pt", "samples.png", "samples-0000001.png", "losses.png"),
        *("metrics.csv", "config.toml", "index.html", "evaluations.json", "backends-1.json"),
    ],
)
def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path, name: str) -> None:
    mine = tmp_path / f".my-{name}.0123"
    for path in (tmp_path / name, tmp_path / f".{name}.0123456789abcdef", mine):
        path.touch()
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {tmp_path / name, mine}
