"""Callbacks: the order of events, own metrics, errors in callbacks."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from fastgan.errors import ConfigError
from fastgan.training import Callback, TrainConfig, Trainer
from fastgan.training.checkpoint import load_checkpoint
from fastgan.training.recorder import read_metrics
from fastgan.training.result import TrainingResult

SMALL = {"nz": 4, "ngf": 4, "ndf": 4, "batch_size": 4, "n_critic": 1, "log_every": 2}


def config(out: Path, **changes: object) -> TrainConfig:
    return TrainConfig(**{"out": str(out), "steps": 4, **SMALL, **changes})


def test_events_come_in_their_order_and_a_checkpoint_is_whole_when_it_is_told(
    tmp_path: Path,
) -> None:
    heard: list[str] = []

    class Listener(Callback):
        def on_start(self, trainer: Trainer) -> None:
            heard.append(f"start {trainer.step}")

        def on_step(self, trainer: Trainer) -> None:
            heard.append(f"step {trainer.step}")

        def on_samples(self, trainer: Trainer, images: torch.Tensor) -> None:
            heard.append(f"samples {tuple(images.shape)}")

        def on_metrics(self, trainer: Trainer, row: Mapping[str, float]) -> None:
            heard.append(f"row {row['step']:.0f}")

        def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
            heard.append(f"checkpoint {load_checkpoint(path)['step']}")

        def on_end(self, trainer: Trainer, result: TrainingResult) -> None:
            heard.append(f"end {result.step}")

    Trainer(config(tmp_path / "run", checkpoint_every=2), callbacks=[Listener()]).run()
    assert heard == [
        *("start 0", "step 1", "step 2", "row 2", "checkpoint 2"),
        *("step 3", "samples (64, 1, 16, 16)", "step 4", "row 4", "checkpoint 4", "end 4"),
    ]


def test_own_metrics_are_averaged_into_columns_that_may_come_late(tmp_path: Path) -> None:
    class Own(Callback):
        def on_step(self, trainer: Trainer) -> None:
            trainer.log("twice", 2 * trainer.step)
            if trainer.step >= 3:
                trainer.log("late, with a comma", torch.tensor([0.5]))

    out = tmp_path / "run"
    result = Trainer(config(out), callbacks=[Own()]).run()
    rows = read_metrics(out / "metrics.csv")
    assert [row["twice"] for row in rows] == [3, 7]
    assert "late, with a comma" not in rows[0]
    assert rows[1]["late, with a comma"] == 0.5
    assert result.metrics["twice"] == 7
    with (out / "metrics.csv").open(newline="") as file:
        header = next(csv.reader(file))
    assert header[-2:] == ["twice", "late, with a comma"]
    # A resumed run keeps the columns that it has.
    asked = TrainConfig(out=str(out), steps=6)
    Trainer(asked, resume=True, explicit=frozenset({"steps"})).run()
    assert [row.get("twice") for row in read_metrics(out / "metrics.csv")] == [3, 7, None]


@pytest.mark.parametrize("name", ["", "loss_d", "a\nb"])
def test_a_metric_needs_a_name_of_its_own(name: str, tmp_path: Path) -> None:
    trainer = Trainer(config(tmp_path / "run"))
    with pytest.raises(ConfigError, match="name"):
        trainer.log(name, 1.0)
    with pytest.raises(ConfigError, match=r"shape \(2,\)"):
        trainer.log("pair", torch.zeros(2))


@pytest.mark.parametrize("event", ["on_start", "on_step", "on_metrics", "on_checkpoint", "on_end"])
def test_an_error_in_a_callback_surfaces(event: str, tmp_path: Path) -> None:
    class Broken(Callback):
        pass

    def fail(self: Callback, *arguments: object) -> None:
        raise LookupError("the user's own mistake")

    setattr(Broken, event, fail)
    with pytest.raises(LookupError, match="the user's own mistake"):
        Trainer(config(tmp_path / "run", checkpoint_every=2), callbacks=[Broken()]).run()
