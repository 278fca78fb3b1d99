"""Settings as TOML: round trips, and errors for mistakes."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgan.cli import main
from fastgan.errors import ConfigError
from fastgan.training import TrainConfig, Trainer
from fastgan.training.checkpoint import list_checkpoints
from fastgan.training.config import MODELS
from fastgan.training.config_files import format_settings, parse_settings
from fastgan.training.model_kinds import MODEL_KINDS

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PLAIN = TEXT | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
SMALL = {"nz": 4, "ngf": 4, "ndf": 4, "batch_size": 4, "n_critic": 1}


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), PLAIN))
def test_plain_values_round_trip(settings: dict[str, object]) -> None:
    found = parse_settings(format_settings(settings))
    assert found == settings
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in settings.items()
    }


@pytest.mark.parametrize("model", MODELS)
def test_configurations_round_trip_given_and_resolved(model: str) -> None:
    conditional = not MODEL_KINDS[model].pairs
    config = TrainConfig(model=model, out='a "b"\\c\n', max_minutes=1e-7, conditional=conditional)
    assert TrainConfig.from_toml(config.to_toml()) == config
    assert TrainConfig.from_toml(config.resolved().to_toml()) == config.resolved()


def test_floats_keep_every_bit() -> None:
    value = math.nextafter(0.1, 1)
    assert TrainConfig.from_toml(TrainConfig(out="x", lr=value).to_toml()).lr == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps = ", "expected TOML"),
        ("no_such = 1", "no_such"),
        ('steps = "many"', "steps"),
        ("[steps]", "steps"),
        ("steps = 1979-05-27", "steps"),
        ("\xff", "UTF-8"),
        (None, "can't be read"),
    ],
)
def test_a_bad_settings_file_is_one_line_that_names_it(
    text: str | None, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "settings.toml"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    assert main(["train", "--config", str(path), "--out", str(tmp_path / "run")]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert str(path) in errors
    assert expected in errors
    assert not (tmp_path / "run").exists()


def test_flags_go_before_the_file_and_the_file_before_the_paper(tmp_path: Path) -> None:
    out = tmp_path / "run"
    path = tmp_path / "settings.toml"
    settings = {**SMALL, "out": str(out), "model": "wgan", "steps": 5, "conditional": True}
    path.write_text("# a comment\n" + format_settings(settings))
    assert main(["train", "--config", str(path), "--steps", "1", "--no-conditional"]) == 0
    saved = TrainConfig.from_toml((out / "config.toml").read_text())
    assert (saved.model, saved.steps, saved.conditional) == ("wgan", 1, False)
    assert saved.optimizer == "rmsprop"


def test_the_file_that_a_run_leaves_starts_the_same_run(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    assert main(["train", "--out", str(first), "--steps", "1", "--seed", "9", *arguments]) == 0
    saved = str(first / "config.toml")
    assert main(["train", "--config", saved, "--out", str(second)]) == 0
    ours, theirs = (
        TrainConfig.from_toml((run / "config.toml").read_text()) for run in (first, second)
    )
    assert dataclasses.replace(ours, out="") == dataclasses.replace(theirs, out="")
    # And, as nothing in it contradicts the run, it may be given when the run goes on.
    assert main(["train", "--config", saved, "--resume", "--steps", "2"]) == 0


def test_no_folder_in_flags_or_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--model", "wgan"]) == 2
    assert "out" in capsys.readouterr().err


def test_a_run_described_in_json_by_an_older_release_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    Trainer(TrainConfig(out=str(out), steps=2, seed=3, **SMALL)).run()
    for path in list_checkpoints(out):
        path.unlink()
    description = TrainConfig.from_toml((out / "config.toml").read_text())
    (out / "config.toml").unlink()
    (out / "config.json").write_text(json.dumps(description.to_dict()))
    trainer = Trainer(TrainConfig(out=str(out)), resume=True)
    assert trainer.resumed_from is None
    assert (trainer.config.seed, trainer.config.batch_size) == (3, 4)
    with pytest.raises(OSError, match="already holds a run"):
        Trainer(TrainConfig(out=str(out)))


def test_a_folder_whose_name_no_file_can_hold_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="out"):
        TrainConfig(out="caf\udce9").to_toml()


def test_the_example_of_the_docs_runs(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text()
    block, of_own_networks, of_a_trained_run = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    assert len([line for line in block.splitlines() if line]) <= 10
    small = block.replace("steps=2000", "steps=1, ngf=4, ndf=4, batch_size=4")
    exec(compile(small.replace("runs/digits", str(tmp_path / "run")), "training.md", "exec"), {})
    assert (tmp_path / "run" / "samples.png").exists()
    own = of_own_networks.replace("runs/own", str(tmp_path / "own"))
    exec(compile(own, "training.md", "exec"), {})
    # Without classes, which the first example's run doesn't have.
    unlabelled = of_a_trained_run.replace(', classes="7"', "")
    assert unlabelled.count("classes") == 0
    names: dict[str, Any] = {}
    code = unlabelled.replace("runs/digits", str(tmp_path / "run"))
    exec(compile(code, "training.md", "exec"), names)
    assert names["images"].shape == (16, 1, 16, 16)
