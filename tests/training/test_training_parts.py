"""The trainer's smaller parts: moving average, metrics files, atomic files, drawing in batches."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from fastgan._util.files import atomic_write
from fastgan.errors import OutputError
from fastgan.models import DCGANGenerator
from fastgan.sampling.batches import generate_images
from fastgan.training.ema import ExponentialMovingAverage
from fastgan.training.recorder import COLUMNS, MetricsRecorder, read_metrics


def test_the_average_follows_its_recursion() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = ExponentialMovingAverage(module, decay=0.9)
    expected = [p.detach().double().clone() for p in module.parameters()]
    for step in range(1, 60):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        module(torch.randn(4, 3))
        average.update(module)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = [
            decay * e + (1 - decay) * p.detach().double()
            for e, p in zip(expected, module.parameters(), strict=True)
        ]
    for ours, theirs in zip(average.module.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(average.module.buffers(), module.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert not average.module.training


def row(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "images": 64 * step, "seconds": 0.5 * step, "loss_d": 1.5, **values}


def test_metrics_survive_the_file(tmp_path: Path) -> None:
    recorder = MetricsRecorder(tmp_path)
    recorder.record(row(1, penalty=0.25))
    recorder.record(row(2, diversity=0.75))
    recorder.close()
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    assert read_metrics(tmp_path / "metrics.csv") == [
        row(1, penalty=0.25),
        row(2, diversity=0.75),
    ]


def test_tensorboard_has_groups_of_curves_and_a_runs_settings(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorder = MetricsRecorder(tmp_path)
    recorder.record(row(1, penalty=0.25, mine=1.0, **{"my/own": 2.0}))
    recorder.record_settings({"model": "wgan", "steps": 3, "lr": None}, row(1, loss_g=0.5))
    recorder.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    scalars = {"loss/loss_d", "loss/loss_g", "penalties/penalty", "progress/images"}
    assert scalars | {"own/mine", "my/own"} <= set(tags["scalars"])
    assert events.Scalars("penalties/penalty")[0].value == 0.25
    settings = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"wgan" in settings


def test_resuming_drops_rows_of_steps_that_will_be_done_again(tmp_path: Path) -> None:
    recorder = MetricsRecorder(tmp_path)
    for step in range(1, 6):
        recorder.record(row(step))
    recorder.close()
    recorder = MetricsRecorder(tmp_path, start_step=3)
    recorder.record(row(4, loss_g=9.0))
    recorder.close()
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [each["step"] for each in rows] == [1, 2, 3, 4]
    assert rows[-1]["loss_g"] == 9.0


def test_a_torn_last_row_is_left_out(tmp_path: Path) -> None:
    recorder = MetricsRecorder(tmp_path)
    recorder.record(row(1))
    recorder.close()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("2,128,1.0,garb")
    assert [each["step"] for each in read_metrics(tmp_path / "metrics.csv")] == [1]


def test_an_atomic_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail_halfway() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            raise ArithmeticError("halfway")

    with pytest.raises(ArithmeticError, match="halfway"):
        fail_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("durable", [False, True])
def test_an_atomic_write_gives_an_ordinary_file(durable: bool, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a.txt", durable=durable) as file:
            file.write(b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_an_atomic_write_into_nowhere_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"), atomic_write(tmp_path / "nowhere" / "a"):
        pass


@pytest.mark.parametrize("training", [False, True])
def test_drawing_in_batches_equals_drawing_at_once(training: bool, device: torch.device) -> None:
    torch.manual_seed(0)
    generator = DCGANGenerator(nz=5, ngf=4, nc=3, image_size=16, num_classes=4).to(device)
    generator.train(training)
    state = {name: value.clone() for name, value in generator.state_dict().items()}
    z, labels = torch.randn(11, 5, 1, 1), torch.arange(11) % 4
    images = generate_images(generator, z, labels, batch_size=4)
    assert generator.training == training
    assert all(torch.equal(state[name], v) for name, v in generator.state_dict().items())
    with torch.no_grad():
        expected = generator.eval()(z.to(device), labels.to(device)).cpu()
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)
