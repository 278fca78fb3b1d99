"""The command line: each command's output, and one line with exit code 2 for every mistake."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forked import fastgan_process
from PIL import Image
from rich.console import Console

import fastgan
from fastgan.cli import main
from fastgan.data import source_from_array
from fastgan.training import Callback, TrainConfig, Trainer
from fastgan.training.checkpoint import list_checkpoints, load_checkpoint
from fastgan.training.model_kinds import MODEL_KINDS
from fastgan.training.progress import TrainingDisplay

FASTGAN = (sys.executable, "-m", "fastgan")
SMALL = ["--nz", "4", "--ngf", "4", "--ndf", "4", "--batch-size", "4", "--n-critic", "1"]


def train(out: Path, *arguments: str) -> int:
    return main(["train", "--out", str(out), *SMALL, "--steps", "2", *arguments])


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "plain"
    assert train(out) == 0
    return out


@pytest.fixture(scope="module")
def conditional_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "conditional"
    assert train(out, "--model", "cgan") == 0
    return out


def complaint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr that a mistake ends in."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2, captured
    assert captured.out == ""
    assert re.fullmatch(r"fastgan[a-z ]*: error: [^\n]+\n", captured.err), captured.err
    return captured.err


def test_training_ends_with_one_line_that_says_where_everything_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train(out) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    for name in ("samples.png", "losses.png", "metrics.csv", "tensorboard"):
        assert str(out / name) in captured.out
        assert (out / name).exists()
    assert "\x1b" not in captured.err  # no terminal, no escape sequences
    assert "\r" not in captured.err
    assert "2/2" in captured.err


def test_without_matplotlib_and_tensorboard_a_run_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    missing = ("matplotlib", "tensorboard")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find_spec(name)
    )
    out = tmp_path / "run"
    assert train(out) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("; for plots and events: pip install matplotlib tensorboard\n")
    for name in ("losses.png", "tensorboard"):
        assert str(out / name) not in printed
        assert not (out / name).exists()
    assert (out / "samples.png").exists()


def test_a_terminal_shows_a_live_bar(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    process = fastgan_process(
        *("train", "--out", tmp_path / "run", *SMALL, "--steps", 3),
        folder=tmp_path,
        stderr=os.ttyname(follower),
        environment={"TERM": "xterm", "COLUMNS": "100"},
    )
    assert process.ended() == 0
    os.close(follower)
    seen = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side has closed
        while part := os.read(leader, 65536):
            seen += part
    os.close(leader)
    assert b"\x1b[" in seen
    assert b"3/3" in seen
    assert b"img/s" in seen


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_the_time_left_is_visible_at_every_width(columns: int) -> None:
    trainer = SimpleNamespace(
        config=TrainConfig(out="x", model="dcgan", steps=5000).resolved(),
        data=SimpleNamespace(name="digits", channels=1),
        source=source_from_array("digits", torch.zeros(1797, 1, 8, 8), image_size=8),
        device=torch.device("cpu"),
        step=0,
    )
    screen = io.StringIO()
    display = TrainingDisplay(
        Console(file=screen, force_terminal=True, width=columns, legacy_windows=False)
    )
    row = {"step": 50, "loss_d": 1.234, "loss_g": 2.345, "d_real": 0.71, "d_fake": 0.33}
    with display:
        display.on_start(trainer)
        for trainer.step in range(1, 60):
            display.on_step(trainer)
            time.sleep(0.002)
        display.on_metrics(trainer, {**row, "images_per_second": 1535.0})
        assert display._progress is not None
        display._progress.refresh()
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).replace("\r", "\n")
    last = [line for line in lines.splitlines() if "/5000" in line][-1]
    assert len(last) <= columns
    assert re.search(r"\d:\d\d left", last), last
    assert "D 1.234" in last


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_sample_writes_a_grid(plain_run: Path, tmp_path: Path, suffix: str) -> None:
    picture = tmp_path / f"grid{suffix}"
    checkpoint = next(plain_run.glob("*.pt"))
    assert main(["sample", str(checkpoint), "--out", str(picture), "--n", "9"]) == 0
    with Image.open(picture) as image:
        assert image.width == image.height
        assert np.asarray(image).std() > 0


def test_sample_depends_on_the_seed_and_on_nothing_else(plain_run: Path, tmp_path: Path) -> None:
    pictures = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        torch.rand(3)
        path = tmp_path / f"{name}.png"
        assert main(["sample", str(plain_run), "--out", str(path), "--seed", seed]) == 0
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[1]
    assert pictures[0] != pictures[2]


def test_truncation_makes_samples_more_alike(plain_run: Path, tmp_path: Path) -> None:
    spreads = {}
    for truncation in ("0.01", "0.9"):
        path = tmp_path / f"{truncation}.png"
        arguments = ["--n", "16", "--truncation", truncation]
        assert main(["sample", str(plain_run), "--out", str(path), *arguments]) == 0
        with Image.open(path) as image:
            pixels = np.asarray(image, dtype=np.float64)
        cell = pixels.shape[0] // 4
        cells = [
            pixels[r * cell : (r + 1) * cell, c * cell : (c + 1) * cell]
            for r in range(4)
            for c in range(4)
        ]
        spreads[truncation] = float(np.mean(np.std(np.stack(cells), axis=0)))
    assert spreads["0.01"] < spreads["0.9"] / 2


def test_class_choice(conditional_run: Path, tmp_path: Path) -> None:
    pictures = set()
    for label in ("0", "7"):
        path = tmp_path / f"{label}.png"
        assert main(["sample", str(conditional_run), "--out", str(path), "--class", label]) == 0
        pictures.add(path.read_bytes())
    assert len(pictures) == 2


def test_interpolate_writes_a_loop_and_a_strip(conditional_run: Path, tmp_path: Path) -> None:
    gif = tmp_path / "morph.gif"
    assert main(["interpolate", str(conditional_run), "--out", str(gif), "--stops", "3"]) == 0
    with Image.open(gif) as image:
        # Pillow shows equal neighbours as one frame for as long as both.
        milliseconds = sum(
            image.info["duration"] for frame in range(image.n_frames) if image.seek(frame) is None
        )
        assert milliseconds == 3 * 12 * 60
        assert image.info["loop"] == 0
    with Image.open(tmp_path / "morph-strip.png") as strip:
        assert strip.width > 5 * strip.height


def test_evaluate_reports_and_writes_json(
    conditional_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    arguments = ["evaluate", str(conditional_run), "--data", "digits", "--n", "200"]
    assert main([*arguments, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    figures = json.loads(path.read_text())
    for name in ("precision", "recall", "density", "coverage"):
        assert name in printed
        assert figures[name] >= 0
    assert figures["n_generated"] == 200
    (checkpoint,) = conditional_run.glob("*.pt")
    named = {"checkpoint": str(checkpoint), "step": 2, "data": "digits", "n": 200, "seed": 0}
    assert named.items() <= figures.items()
    assert (figures["fastgan"], figures["torch"]) == (fastgan.__version__, torch.__version__)
    assert sum(figures["class_histogram"]) == pytest.approx(1)
    assert figures["classifier_accuracy"] > 0.97


def test_doctor_finds_this_machine_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert torch.__version__ in printed
    assert "adam_step_" in printed
    assert "FAILED" not in printed


def test_tune_measures_what_a_model_needs_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTGAN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("fastgan.ops.backends.measurement._EXHAUSTIVE_TURNS", (1, 1))
    table = tmp_path / "table.json"
    small = ["--image-size", "16", "--ngf", "32", "--ndf", "32", "--nz", "4", "--batch-size", "4"]
    assert main(["tune", "--model", "wgan-gp", *small, "--table", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "weight_gradient of 4x4x1x1" in printed
    (kept,) = (tmp_path / "cache" / "backends").glob("cpu-*.json")
    assert str(kept) in printed
    (of_table,) = json.loads(table.read_text())["choices"].values()
    (of_cache,) = json.loads(kept.read_text())["choices"].values()
    assert of_table == of_cache
    assert all(choice["exhaustive"] for choice in of_table.values())
    passes = {problem.partition(": ")[2].partition(" ")[0] for problem in of_table}
    assert passes == {"forward", "input_gradient", "weight_gradient"}
    assert main(["doctor"]) == 0
    assert str(kept.parent) in capsys.readouterr().out.replace("\n", "").replace(" ", "")


def test_tune_checks_its_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--table", str(tmp_path / "no" / "table.json")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["tune", "--image-size", "17"]) == 2
    assert "image_size" in capsys.readouterr().err


def test_doctor_notices_a_wrong_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastgan.ops import paths

    def off(device: object) -> None:
        raise RuntimeError("values are off")

    monkeypatch.setitem(paths._CHECKS, "adam_step_", off)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED" in printed
    assert "values are off" in printed


def test_options_without_effect_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "--model", "gan", "--clip", "0.5", "--beta2", "0.9") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    named = {line.split()[1] for line in warnings if line.endswith("has no effect on gan")}
    assert named == {"--beta2", "--clip", "--ndf", "--ngf"}


def test_batch_norm_under_a_penalty_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "--model", "wgan-gp", "--critic-norm", "batch") == 0
    assert "couples the samples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--image-size", "48"], "power of two"),
        (["--lr", "-0.1"], "lr"),
        (["--lr", "fast"], "lr"),
        (["--batch-size", "1", "--model", "dcgan"], "batch"),
        (["--model", "stylegan"], "stylegan"),
        (["--data", "imagenet"], "imagenet"),
        (["--data", "folder:/nowhere/at/all"], "/nowhere/at/all"),
        (["--data", "npz:/nowhere.npz"], "/nowhere.npz"),
        (["--channels", "2"], "channels"),
        (["--steps", "0"], "steps"),
        (["--precision", "fp8"], "fp8"),
        (["--no-such-flag"], "no-such-flag"),
        (["--noise", "pink"], "pink"),
        (["--ema-decay", "2"], "ema_decay"),
        (["--step", "3"], "--step"),  # no abbreviations
    ],
)
def test_bad_training_input_is_one_line_and_writes_nothing(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    text = complaint(["train", "--out", str(out), *arguments], capsys)
    assert expected in text
    assert list(tmp_path.iterdir()) == []


def test_corrupt_image_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (20, 20), (200, 10, 10)).save(folder / "good.png")
    whole = (folder / "good.png").read_bytes()
    (folder / "bad.png").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "run"
    text = complaint(["train", "--out", str(out), "--data", f"folder:{folder}"], capsys)
    assert "bad.png" in text
    assert not out.exists()


def test_wrong_channel_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "five.npz", images=np.zeros((10, 5, 16, 16), np.uint8))
    text = complaint(
        ["train", "--out", str(tmp_path / "run"), "--data", f"npz:{tmp_path / 'five.npz'}"], capsys
    )
    assert "channel" in text


def test_a_finished_run_is_not_overwritten(
    plain_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--resume" in complaint(["train", "--out", str(plain_run)], capsys)


def test_unwritable_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "file" in complaint(["train", "--out", str(tmp_path / "file" / "run"), *SMALL], capsys)
    assert "file" in complaint(["train", "--out", str(tmp_path / "file"), *SMALL], capsys)


@pytest.mark.parametrize("command", ["sample", "interpolate"])
def test_unwritable_picture(
    command: str, plain_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suffix = ".gif" if command == "interpolate" else ".png"
    place = tmp_path / "missing" / f"a{suffix}"
    assert "missing" in complaint([command, str(plain_run), "--out", str(place)], capsys)
    place = tmp_path / "a.xyz"
    assert ".xyz" in complaint([command, str(plain_run), "--out", str(place)], capsys)
    assert list(tmp_path.iterdir()) == []


def test_interpolate_writes_both_files_or_none(
    plain_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a-strip.png").mkdir()
    out = str(tmp_path / "a.gif")
    assert "a-strip.png" in complaint(["interpolate", str(plain_run), "--out", out], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["a-strip.png"]


def test_evaluate_checks_where_it_will_write_before_the_work(
    plain_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(plain_run), "--json", "/nowhere/at/all.json"]
    assert "/nowhere/at" in complaint(arguments, capsys)


def test_evaluate_takes_one_extractor(
    plain_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = f"--inception={tmp_path / 'weights.pth'}"
    assert main(["evaluate", str(plain_run), missing]) == 2
    assert "weights.pth: no such file of Inception weights" in capsys.readouterr().err
    assert main(["evaluate", str(plain_run), missing, "--features=extractor.pt"]) == 2
    assert "expected --features or --inception, got both" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sample", "interpolate", "evaluate"])
def test_bad_checkpoints(
    command: str, plain_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = {"sample": ["--out", "a.png"], "interpolate": ["--out", "a.gif"], "evaluate": []}[command]
    assert "no such" in complaint([command, str(tmp_path / "none.pt"), *out], capsys)
    whole = next(plain_run.glob("*.pt")).read_bytes()
    (tmp_path / "short.pt").write_bytes(whole[:-100])
    assert "truncated" in complaint([command, str(tmp_path / "short.pt"), *out], capsys)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    assert "not a fastgan checkpoint" in complaint(
        [command, str(tmp_path / "other.pt"), *out], capsys
    )


def test_resuming_from_a_truncated_checkpoint(
    plain_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = next(plain_run.glob("*.pt")).read_bytes()
    (tmp_path / "checkpoint-0000002.pt").write_bytes(whole[:5000])
    before = sorted(tmp_path.iterdir())
    assert "truncated" in complaint(["train", "--out", str(tmp_path), "--resume"], capsys)
    assert sorted(tmp_path.iterdir()) == before


def test_class_of_an_unconditional_or_unknown_kind(
    plain_run: Path, conditional_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--out", "never.png", "--class"]
    assert "not conditional" in complaint(["sample", str(plain_run), *arguments, "0"], capsys)
    assert "0 to 9" in complaint(["sample", str(conditional_run), *arguments, "10"], capsys)
    assert not Path("never.png").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--truncation", "0"], "truncation"),
        (["--truncation", "nan"], "truncation"),
        (["--n", "0"], "--n"),
        (["--n", "many"], "whole number"),
        (["--seed", "-1"], "seed"),
    ],
)
def test_bad_sampling_input(
    arguments: list[str],
    expected: str,
    plain_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = str(tmp_path / "a.png")
    assert expected in complaint(["sample", str(plain_run), "--out", out, *arguments], capsys)


def test_evaluating_against_data_of_other_channels(
    plain_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "colour.npz", images=images)
    text = complaint(
        ["evaluate", str(plain_run), "--data", f"npz:{tmp_path / 'colour.npz'}"], capsys
    )
    assert "channel" in text


def test_files_that_are_skipped_are_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        Image.new("L", (16, 16), 50 * number).save(images / f"{number}.tiff")
    (images / "5.heic").write_bytes(b"not read")
    data = ["--data", f"folder:{images}", "--image-size", "16"]
    assert train(tmp_path / "run", *data) == 0
    (said,) = (line for line in capsys.readouterr().err.splitlines() if ": skipped " in line)
    assert said.startswith(f"fastgan: warning: '{images}': skipped 1 of 5 files")
    assert said.endswith(": 1 .heic")


@pytest.mark.parametrize("holds", ["nothing, not even itself", "nothing", "something else"])
def test_a_folder_without_a_run_cannot_be_resumed(
    holds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "typo"
    if holds != "nothing, not even itself":
        out.mkdir()
    if holds == "something else":
        (out / "config.toml").write_text("colour = 3\n")
        (out / "checkpoint.pt").write_bytes(b"another program's")
    before = sorted(tmp_path.rglob("*"))
    for arguments in ([], ["--model", "wgan-gp", "--steps", "1"]):
        complaint(["train", "--resume", "--out", str(out), *arguments], capsys)
        assert sorted(tmp_path.rglob("*")) == before
    if holds != "something else":
        said = complaint(["train", "--resume", "--out", str(out)], capsys)
        assert "typo: holds no run to resume" in said


def test_a_settings_file_of_another_program_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text("# nothing in it\n")
    said = complaint(["train", "--resume", "--out", str(tmp_path)], capsys)
    assert "names no model" in said


def test_resume_says_when_a_run_has_no_checkpoint_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "--seed", "7") == 0
    for path in list_checkpoints(tmp_path / "run"):
        path.unlink()
    capsys.readouterr()
    assert main(["train", "--resume", "--out", str(tmp_path / "run")]) == 0
    assert "starting from the beginning" in capsys.readouterr().err
    assert "seed = 7" in (tmp_path / "run" / "config.toml").read_text()
    assert train(tmp_path / "run", "--resume", "--steps", "3") == 0
    assert "resuming from" in capsys.readouterr().err


def test_a_finished_run_has_nothing_to_do(
    plain_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", "--out", str(plain_run)]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = fastgan_process(
        "train", "--out", out, *SMALL, "--steps=1000000", "--log-every=1", folder=tmp_path
    )
    metrics = out / "metrics.csv"
    process.wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
    process.send_signal(signal.SIGINT)
    assert process.ended() == 130, process.errors
    assert "Traceback" not in process.errors
    assert f"fastgan train --resume --out {out}" in process.printed
    saved = load_checkpoint(next(out.glob("*.pt")))
    assert f"step {saved['step']} of" in process.printed
    resumed = ["train", "--resume", "--out", str(out), "--steps", str(saved["step"] + 1)]
    assert main(resumed) == 0


def test_a_killed_run_leaves_a_checkpoint_to_resume_from(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = fastgan_process(
        "train", "--out", out, *SMALL, "--steps=1000000", "--checkpoint-every=1", folder=tmp_path
    )
    process.wait_for(lambda: len(list(out.glob("*.pt"))) == 2)
    process.send_signal(signal.SIGKILL)
    process.ended()
    newest = max(out.glob("checkpoint-*.pt"))
    step = load_checkpoint(newest)["step"]
    assert main(["train", "--resume", "--out", str(out), "--steps", str(step + 1)]) == 0


def test_module_and_script_are_the_same_command() -> None:
    done = subprocess.run(
        [*FASTGAN, "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"fastgan {fastgan.__version__}\n"
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="fastgan")
    assert script.load() is importlib.import_module("fastgan.__main__").main


def test_output_into_a_closed_pipe_is_no_crash() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m fastgan doctor | head -1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in done.stderr


def test_a_slow_run_away_from_a_terminal_says_something_every_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("fastgan.training.progress.time.monotonic", lambda: now[0])
    screen = io.StringIO()

    class Slow(Callback):
        def on_step(self, trainer: Trainer) -> None:
            now[0] += 8.0

    config = TrainConfig(out=str(tmp_path), steps=9, nz=4, ngf=4, ndf=4, batch_size=4)
    Trainer(config, callbacks=[Slow(), TrainingDisplay(Console(file=screen))]).run()
    steps = [line for line in screen.getvalue().splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["2/9", "4/9", "6/9", "8/9", "9/9"]
    assert steps[0].endswith("0:56 left")


def test_help_has_every_default_and_doctor_a_line_for_what_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "seed of weights, noise and data order (default 0)" in text
    # The commonest of the papers' defaults, and those that differ.
    (batch,) = re.findall(r"images per batch \(default (\d+(?:, [\w-]+ \d+)+)\)", text)
    common, *others = batch.split(", ")
    told = dict(each.split() for each in others)
    for model, kind in MODEL_KINDS.items():
        assert int(told.get(model, common)) == kind.defaults["batch_size"]
    assert "(default on)" in text
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("has no CUDA kernels") <= 1
    assert printed.count("C++, ") <= 1
