"""Regression tests: files that crashed the process, were accepted, or controlled the terminal."""

from __future__ import annotations

import os
import resource
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Forked
from PIL import Image

from fastgan._util.devices import choose_device
from fastgan._util.files import atomic_write
from fastgan.bench.schema import read_result
from fastgan.cli import main
from fastgan.data import load_data
from fastgan.errors import CheckpointError, ConfigError, DataError, FastganError
from fastgan.training import Callback, TrainConfig, Trainer, joined_processes, load_generator
from fastgan.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from fastgan.training.config_files import read_settings
from fastgan.training.recorder import read_metrics

SMALL: dict[str, Any] = {"nz": 4, "ngf": 4, "ndf": 4, "batch_size": 4, "n_critic": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hostile") / "run"
    return Trainer(TrainConfig(out=str(out), steps=2, checkpoint_every=1, **SMALL)).run().checkpoint


# --- Checkpoints ----------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_checkpoint_is_found(checkpoint: Path, tmp_path: Path) -> None:
    whole = checkpoint.read_bytes()
    path = tmp_path / "flipped.pt"
    for place in {*range(0, len(whole), len(whole) // 200), *range(len(whole) - 120, len(whole))}:
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"flipped\.pt: "):
            load_checkpoint(path)


def test_a_checkpoint_of_torch_itself_still_reads_it(checkpoint: Path) -> None:
    ours, torchs = load_checkpoint(checkpoint), torch.load(checkpoint, weights_only=True)
    assert ours.keys() == torchs.keys()
    for name, value in torchs["generator"].items():
        assert torch.equal(ours["generator"][name], value)
        assert ours["generator"][name].stride() == value.stride()
    assert ours["config"] == torchs["config"]


def test_a_run_goes_on_from_its_newest_good_checkpoint_and_keeps_the_bad(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newest = tmp_path / "checkpoint-0000002.pt", tmp_path / "checkpoint-0000007.pt"
    older.write_bytes(checkpoint.read_bytes())
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 16
    newest.write_bytes(content)
    assert main(["check", str(tmp_path)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{older}: good"
    assert said[1].startswith(f"{newest}: damaged")
    with pytest.warns(UserWarning, match="checkpoint-0000007.pt: damaged"):
        load_generator(tmp_path)

    texts: list[str] = []

    class Listener(Callback):
        def on_warning(self, trainer: Trainer, text: str) -> None:
            texts.append(text)

    asked = TrainConfig(out=str(tmp_path), steps=3, keep_checkpoints=1)
    names = frozenset({"steps", "keep_checkpoints"})
    trainer = Trainer(asked, resume=True, explicit=names, callbacks=[Listener()])
    assert trainer.step == 2
    assert f"going on from {older}" in texts[0]
    trainer.run()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-0000003.pt"]
    assert (tmp_path / "checkpoint-0000007.pt.damaged").read_bytes() == bytes(content)
    assert main(["check", str(tmp_path)]) == 0


def archive_with(path: Path, pickled: bytes, *, deflated: bool = False, data: bytes = b"") -> Path:
    kind = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", data)
    return path


def nested(depth: int) -> bytes:
    """Lists in lists."""
    return b"]" * depth + b"a" * (depth - 1)


def doubling(levels: int) -> bytes:
    """A list that holds the one before it twice, and so on: 2**levels values when it is printed."""
    return b"]q\0" + b"".join(b"](h%ch%ceq%c" % (k, k, k + 1) for k in range(levels))


def under(key: str, value: bytes) -> bytes:
    text = key.encode()
    return b"\x80\2}(X" + struct.pack("<I", len(text)) + text + value + b"u."


_BOMBS = {
    "deep": nested(500_000),
    "doubling": doubling(60),
    "tuple as a key": b"}(" + b")" + b"\x85" * 1_000_000 + b"K\1u",
    "doubling key": b"})q\0" + b"".join(b"h%ch%c\x86q%c" % (k, k, k + 1) for k in range(60))
    + b"K\1s",
    "copies": b"(X\0\0\x10\0" + b"a" * 2**20 + b"q\0"
    + b"c_codecs\nencode\n(h\0X\6\0\0\0latin1tR" * 4000 + b"l",
    "many lists": b"(" + b"]" * 500_000 + b"l",
    "digits": b"\x8b\0\0\x10\0" + b"\x7f" * 2**20,
}  # fmt: skip

# What a child may use beyond what it has when the file is read.
_MEMORY = 400 * 2**20


def read_all(files: list[Path]) -> None:
    """Reads checkpoints and CIFAR folders; says the seconds that each took, and its error."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY,) * 2)
    for path in files:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        try:
            if path.suffix == ".pt":
                load_generator(path)
            else:
                load_data(f"cifar10:{path}", image_size=32)
        except FastganError as error:
            seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
            print(int(seconds), error, flush=True)


def test_small_files_cannot_ask_for_hours_or_gigabytes(tmp_path: Path) -> None:
    files: list[Path] = []
    for number, (name, bomb) in enumerate(_BOMBS.items()):  # one reader has them all
        path, folder = tmp_path / f"{name}.pt", tmp_path / name
        if number % 2 == 0:
            files.append(archive_with(path, under("version", bomb)))
        if number % 2 == 1 or name == "deep":
            folder.mkdir()
            (folder / "data_batch_1").write_bytes(b"\x80\2" + bomb + b".")
            files.append(folder)
    deflated = archive_with(
        tmp_path / "deflated.pt", under("a", b"N"), deflated=True, data=bytes(2**27)
    )
    process = Forked(read_all, [*files, deflated], folder=tmp_path)
    assert process.ended(300) == 0, process.errors
    lines = process.printed.splitlines()
    assert len(lines) == len(files) + 1
    for line in lines:
        seconds, text = line.split(" ", 1)
        assert int(seconds) <= 10, line
        assert "memory" not in text
        assert any(word in text for word in ("refused", "corrupt", "not a fastgan", "expected a"))


@pytest.mark.parametrize("key", ["version", "config", "class_names"])
def test_values_that_print_without_end_are_refused(key: str, tmp_path: Path) -> None:
    content = under("format", b"X\x12\0\0\0fastgan-checkpoint")
    text = key.encode()
    content = content[:-2] + b"X" + struct.pack("<I", len(text)) + text + doubling(14) + b"u."
    path = archive_with(tmp_path / "a.pt", content)
    with pytest.raises(CheckpointError) as caught:
        load_generator(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "change",
    [
        {"exp_avg": torch.full((1,), float("nan"))},
        {"exp_avg": "text"},
        {"step": torch.tensor(-1.0)},
        {"step": torch.zeros(2)},
        {"exp_avg_sq": None},
        {"other": torch.zeros(1)},
    ],
    ids=str,
)
def test_optimiser_states_are_checked_before_they_are_used(
    change: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    content = load_checkpoint(checkpoint)
    state = content["optimizer_g"]["state"][0]
    for key, value in change.items():
        if isinstance(value, torch.Tensor) and value.shape == (1,) and key in state:
            value = value.expand(state[key].shape).contiguous()
        state[key] = value
        if value is None:
            del state[key]
    save_checkpoint(tmp_path / "checkpoint-0000002.pt", content)
    with pytest.raises(CheckpointError, match=r"0000002\.pt: can't be .*: its optimizer_g"):
        Trainer(TrainConfig(out=str(tmp_path)), resume=True)


@pytest.mark.parametrize("key", ["format", "version", "config", "data", "step", "random", "totals"])
def test_a_tensor_where_a_plain_value_belongs_is_refused(
    key: str, checkpoint: Path, tmp_path: Path
) -> None:
    content = {**load_checkpoint(checkpoint), "format": "fastgan-checkpoint", "version": 1}
    torch.save({**content, key: torch.zeros(3)}, tmp_path / "checkpoint-0000002.pt")
    with pytest.raises(CheckpointError, match=r"0000002\.pt: "):
        Trainer(TrainConfig(out=str(tmp_path)), resume=True)


@pytest.mark.parametrize("groups", [None, [], [[]], [{"lr": float("nan"), "params": [5]}]])
def test_an_optimisers_settings_come_from_the_configuration_alone(
    groups: object, checkpoint: Path, tmp_path: Path
) -> None:
    content = load_checkpoint(checkpoint)
    content["optimizer_d"]["param_groups"] = groups
    save_checkpoint(tmp_path / "checkpoint-0000002.pt", content)
    trainer = Trainer(TrainConfig(out=str(tmp_path)), resume=True)
    (group,) = trainer.updater.optimizer_d.param_groups
    assert group["betas"] == (0.5, 0.999)


# --- Headers, settings, results -------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        "{[]: 1}",
        "{'descr': '|u1', 1: 2, 'shape': (1,), 'fortran_order': False}",
        "{b'descr': '|u1', 'shape': (1,), 'fortran_order': False}",
        "{'descr': '|u1', 'shape': (True, 8, 8), 'fortran_order': False}",
        "{'descr': '|u1', 'shape': (2, 8, 8",
        "{'descr': '|u1', 'fortran_order': False, 'shape': " + "(" * 5000,
        "{'descr': '|u1', 'fortran_order': False, 'shape': " + str((1,) * 71) + "}",
        "{'descr': [[[]]], 'fortran_order': False, 'shape': (1,)}",
    ],
)
def test_npz_headers_of_any_text_end_in_one_line(header: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    text = header.encode() + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text)
    with pytest.raises(DataError, match=r"a\.npz.*array 'images'") as caught:
        load_data(f"npz:{path}", image_size=8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "steps = " + "9" * 5000,
        "steps = 0x" + "f" * 5000,
        'out = "a\\u0000b"',
        "steps = " + "9" * 40,
        "a" + ".b" * 50_000 + " = 1",
    ],
    ids=lambda text: text[:12],
)
def test_settings_of_any_text_end_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict(read_settings(path)).resolved()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("given", [{"steps": "10"}, {"seed": 1.5}, {"device": None}, {"lr": True}])
def test_a_setting_of_another_type_is_refused_by_its_name(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(ConfigError, match=f"^{name}: expected (int|str|float), got|^lr: expected "):
        TrainConfig(out="x", **given).resolved()


def test_a_folder_that_no_settings_file_can_name_is_not_made(tmp_path: Path) -> None:
    out = tmp_path / "b\udcfc"  # a byte that isn't UTF-8
    with pytest.raises(ConfigError, match="out: expected text that UTF-8 can hold"):
        Trainer(TrainConfig(out=str(out)))
    assert not out.exists()
    assert TrainConfig(out=tmp_path / "run").out == str(tmp_path / "run")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "rows",
    ['"abc"', "[1]", "[[]]", "{}", "1e999", "[" * 100_000, '[{"value": 1e999}]', "9" * 5000],
    ids=lambda text: text[:12],
)
def test_results_of_any_text_end_in_one_line(rows: str, tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(f'{{"schema": "{"x"}", "rows": {rows}}}'.replace('"x"', "1"))
    with pytest.raises(DataError, match=r"old\.json") as caught:
        read_result(path)
    assert len(str(caught.value)) < 1000


def test_metrics_of_any_text_are_numbers_or_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(
        'step,images,loss\ninf,1,2\nnan,1,2\n3,inf,2\n4,1,1e999\n5,1,x\n6,"' + "a" * 200_000
    )
    assert read_metrics(path) == [{"step": 4.0, "images": 1.0, "loss": float("inf")}]
    path.write_bytes(b"step\xff\n1\n")
    with pytest.raises(FastganError, match="is not UTF-8 text"):
        read_metrics(path)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:00", "cuda:128", "cpu\x1b", ""])
def test_a_name_of_no_device_is_refused_in_a_line(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^device: expected auto, cpu, cuda or cuda:N, got '"):
        TrainConfig(out="x", device=name).resolved()


@pytest.mark.parametrize(
    ("name", "found", "expected"),
    [
        ("cuda", 0, "device: cuda was asked for, but torch sees no CUDA device here"),
        ("cuda:0", 0, "device: cuda:0 was asked for, but torch sees no CUDA device here"),
        ("cuda:1", 1, "device: cuda:1 was asked for, but torch sees one CUDA device, cuda:0, here"),
        ("cuda:7", 4, "torch sees 4 CUDA devices, cuda:0 to cuda:3, here"),
        *(("auto", 2, "cuda"), ("cuda", 2, "cuda"), ("cuda:0", 1, "cuda:0")),
        *(("cuda:1", 2, "cuda:1"), ("cpu", 1, "cpu"), ("auto", 0, "cpu")),
    ],
)
def test_a_device_is_one_that_is_there(
    name: str, found: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    config = TrainConfig(out="x", device=name, precision="fp32").resolved()
    assert TrainConfig.from_toml(config.to_toml()).device == name
    if " " not in expected:
        assert choose_device(config.device) == torch.device(expected)
    else:
        with pytest.raises(ConfigError, match=expected):
            choose_device(config.device)


def test_the_command_line_takes_a_device_by_its_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["train", "--device=cuda:0", f"--out={tmp_path / 'run'}"]) == 2
    assert "device: cuda:0 was asked for, but torch sees no CUDA" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="device: each process of several"):
        joined_processes("cuda:0").__enter__()


@pytest.mark.gpu
def test_a_run_on_the_first_cuda_device_is_a_run_on_cuda(
    cuda: torch.device, tmp_path: Path
) -> None:
    weights = []
    for number, device in enumerate((cuda.type, "cuda:0")):
        config = TrainConfig(out=str(tmp_path / str(number)), steps=2, device=device, **SMALL)
        weights.append(load_checkpoint(Trainer(config).run().checkpoint)["generator"])
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name])


# --- What is shown --------------------------------------------------------------------------------

ESCAPE = "\x1b]0;owned\x07"


def test_nothing_from_outside_reaches_a_terminal_raw(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Class names of folders; a path; a checkpoint's fields; names in TOML and in npz files.
    for name in ("a", f"b{ESCAPE}"):
        folder = tmp_path / f"pictures{ESCAPE}" / name
        folder.mkdir(parents=True)
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    out = tmp_path / f"run{ESCAPE}"
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    data = f"folder:{tmp_path}/pictures{ESCAPE}"
    assert (
        main(["train", "--data", data, "--image-size=16", "--steps=1", f"--out={out}", *small]) == 0
    )
    assert main(["sample", str(out), "--n", "4", "--out", str(tmp_path / f"{ESCAPE}.png")]) == 0
    assert main(["evaluate", str(out), "--n", "8"]) == 0
    content = load_checkpoint(checkpoint)
    content["config"][ESCAPE] = ESCAPE
    save_checkpoint(tmp_path / "evil.pt", content)
    content["config"] = {**content["config"], "model": ESCAPE}
    del content["config"][ESCAPE]
    save_checkpoint(tmp_path / f"{ESCAPE}.pt", content)
    (tmp_path / "evil.toml").write_text('"\\u001b]0;owned" = 1')
    np.savez(tmp_path / "evil.npz", **{ESCAPE: np.zeros(3), "b": np.zeros(3)})
    for mistake in (
        ["sample", str(tmp_path / "evil.pt"), "--out", str(tmp_path / "a.png")],
        ["sample", str(tmp_path / f"{ESCAPE}.pt"), "--out", str(tmp_path / "a.png")],
        ["train", "--config", str(tmp_path / "evil.toml"), "--out", str(tmp_path / "x")],
        ["train", "--data", f"npz:{tmp_path / 'evil.npz'}", "--out", str(tmp_path / "x")],
        ["train", "--data", f"folder:{ESCAPE}", "--out", str(tmp_path / "x")],
        ["check", str(tmp_path / ESCAPE)],
    ):
        assert main(mistake) == 2
    for mistake in (["train", f"--{ESCAPE}"], [ESCAPE], ["sample", "x", f"--n={ESCAPE}"]):
        with pytest.raises(SystemExit, match="2"):
            main(mistake)
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert "\x07" not in said.out + said.err
    assert "\\x1b" in said.out


def test_ascii_standard_output_escapes_what_it_cannot_show(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "Bücher"
    for name in ("Äpfel", "Übung"):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    evaluate = [sys.executable, "-m", "fastgan", "evaluate", str(checkpoint), "--n", "8"]
    done = subprocess.run(
        [*evaluate, "--data", f"folder:{folder}"],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


# --- Files that are written and watched -----------------------------------------------------------


def test_a_file_takes_the_umask_without_touching_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0o027)
    real = os.umask
    try:
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask is the process's"))
        with atomic_write(tmp_path / "a") as file:
            file.write(b"x")
    finally:
        real(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_picture_replaced_in_mid_run_is_named(tmp_path: Path) -> None:
    for number in range(4):
        Image.fromarray(np.full((8, 8), 10 * number, np.uint8)).save(tmp_path / f"{number}.png")
    source = load_data(f"folder:{tmp_path}", image_size=8, in_memory=False)
    source.get([0, 1])
    Image.fromarray(np.full((8, 8), 99, np.uint8)).save(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"1\.png': replaced or written to since"):
        source.get([0, 1])


def test_metrics_removed_in_mid_run_are_written_anew_and_it_is_said(tmp_path: Path) -> None:
    out = tmp_path / "run"

    class Removes(Callback):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == 3:
                (out / "metrics.csv").unlink()

    config = TrainConfig(out=str(out), steps=5, log_every=1, **SMALL)
    with pytest.warns(UserWarning, match=r"metrics\.csv: was removed or replaced during the run"):
        Trainer(config, callbacks=[Removes()]).run()
    assert [row["step"] for row in read_metrics(out / "metrics.csv")] == [1, 2, 3, 4, 5]


def test_the_first_row_after_a_resume_is_the_mean_of_all_its_steps(tmp_path: Path) -> None:
    settings = {**SMALL, "log_every": 6, "checkpoint_every": 2}
    whole = tmp_path / "whole"

    class Logs(Callback):
        def on_step(self, trainer: Trainer) -> None:
            trainer.log("mine", float(trainer.step))

    Trainer(TrainConfig(out=str(whole), steps=6, **settings), callbacks=[Logs()]).run()
    parts = tmp_path / "parts"

    class Stops(Logs):
        def on_step(self, trainer: Trainer) -> None:
            super().on_step(trainer)
            trainer.request_stop("enough") if trainer.step == 4 else None

    Trainer(TrainConfig(out=str(parts), steps=6, **settings), callbacks=[Stops()]).run()
    Trainer(TrainConfig(out=str(parts)), resume=True, callbacks=[Logs()]).run()
    (ours,), (theirs,) = (read_metrics(each / "metrics.csv") for each in (parts, whole))
    assert ours["mine"] == 3.5
    for name in ("loss_d", "loss_g", "d_real", "d_fake"):
        assert ours[name] == theirs[name]


def test_tensorboards_thread_ends_without_a_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"

    class Removes(Callback):
        def on_metrics(self, trainer: Trainer, row: object) -> None:
            shutil.rmtree(out / "tensorboard", ignore_errors=True)

    config = TrainConfig(out=str(out), steps=30, log_every=1, sample_every=3, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FastganError, match="tensorboard"):
            Trainer(config, callbacks=[Removes()]).run()
    assert "Traceback" not in capfd.readouterr().err
