"""Runs on the caller's data: recorded correctly, and never replaced by other data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastgan.cli import main
from fastgan.data import load_data, source_from_array
from fastgan.errors import ConfigError, DataError
from fastgan.training import TrainConfig, Trainer, load_generator
from fastgan.training.config_files import read_settings

SMALL: dict[str, Any] = {"nz": 4, "ngf": 4, "ndf": 4, "batch_size": 4, "n_critic": 1}


def test_a_runs_settings_say_what_it_was_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = torch.randint(0, 256, (16, 1, 32, 32), dtype=torch.uint8)
    source = source_from_array("mynoise", pixels, image_size=32)
    out = tmp_path / "run"
    Trainer(TrainConfig(out=str(out), steps=1, **SMALL), source=source).run()
    settings = read_settings(out / "config.toml")
    assert (settings["data"], settings["image_size"]) == ("source:mynoise", 32)
    for words in (["evaluate", str(out)], ["train", "--resume", "--out", str(out), "--steps=2"]):
        assert main(words) == 2
        assert "was given to Trainer(source=...) in Python" in capsys.readouterr().err
    with pytest.raises(DataError, match="give it again"):
        Trainer(TrainConfig(out=str(out)), resume=True)
    again = TrainConfig(out=str(out), steps=2)
    assert Trainer(again, resume=True, explicit=frozenset({"steps"}), source=source).run().step == 2


def test_data_that_can_be_loaded_again_is_recorded_as_what_loads_it(tmp_path: Path) -> None:
    source = load_data("digits", image_size=32)
    trainer = Trainer(TrainConfig(out=str(tmp_path / "run"), **SMALL), source=source)
    assert (trainer.config.data, trainer.config.image_size) == ("digits", 32)
    with pytest.raises(ConfigError, match="image_size: 16, and the source's images have 32"):
        Trainer(TrainConfig(out=str(tmp_path), image_size=16, **SMALL), source=source)


def test_a_run_of_minutes_takes_the_steps_that_fit_and_their_whole_schedule(
    tmp_path: Path,
) -> None:
    config = TrainConfig(
        out=str(tmp_path / "run"), steps=10**6, minutes=0.03, lr_decay="linear", **SMALL
    )
    trainer = Trainer(config)
    result = trainer.run()
    steps = trainer.config.steps
    assert result.stopped_by is None
    assert result.step == steps < 10**6
    assert result.metrics["lr_g"] == 0.0  # the schedule came to its end
    assert read_settings(tmp_path / "run" / "config.toml")["steps"] == steps


def test_a_loaded_generators_weights_lie_as_safetensors_wants_them(tmp_path: Path) -> None:
    run = Trainer(TrainConfig(out=str(tmp_path), steps=1, **SMALL)).run()
    generator, _, _ = load_generator(run.checkpoint)
    assert all(value.is_contiguous() for value in generator.state_dict().values())
