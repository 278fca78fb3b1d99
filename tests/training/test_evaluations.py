"""Evaluations during a run, and the best checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastgan import load_generator
from fastgan.data.sampling import images_to_compare
from fastgan.errors import ConfigError, DataError, OutputError
from fastgan.evaluation import classifier, evaluate_samples, report, train_classifier
from fastgan.training import Callback, TrainConfig, Trainer, evaluations
from fastgan.training.outputs import SampleWriter

IMAGES = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def trainer(out: Path, callbacks: list[Callback], **more: Any) -> Trainer:
    small: dict[str, Any] = {"model": "gan", "nz": 4, "batch_size": 4}
    config = TrainConfig(out=str(out), steps=4, evaluate_every=2, keep_checkpoints=1, **small)
    return Trainer(config, source=IMAGES, callbacks=callbacks, **more)


class StopAtTwo(Callback):
    def on_step_end(self, trainer: Trainer) -> None:
        if trainer.step == 2:
            trainer.request_stop("test")


def test_the_best_checkpoint_is_kept_and_a_continued_run_finds_the_same(tmp_path: Path) -> None:
    trainer(tmp_path / "whole", []).run()
    found = json.loads((tmp_path / "whole" / "evaluations.json").read_text())
    assert [each["step"] for each in found] == [2, 4]
    assert len({each["frechet_distance"] for each in found}) == 2
    best = min(found, key=lambda each: each["frechet_distance"])["step"]
    assert load_generator(tmp_path / "whole" / "best.pt").step == best

    parts = tmp_path / "parts"
    trainer(parts, [StopAtTwo()]).run()
    # What a run that was killed after its checkpoint may have left.
    later = [*json.loads((parts / "evaluations.json").read_text()), {"step": 4}]
    (parts / "evaluations.json").write_text(json.dumps(later))
    trainer(parts, [], resume=True).run()
    assert json.loads((parts / "evaluations.json").read_text()) == found
    assert load_generator(parts / "best.pt").step == best


def test_evaluations_measure_in_a_network_of_ones_own(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 8, 8), torch.nn.Flatten()).eval()
    path = tmp_path / "network.pt"
    torch.jit.save(torch.jit.trace(network, IMAGES[:2]), path)
    small = {"model": "gan", "nz": 4, "batch_size": 4, "steps": 2, "evaluate_every": 1}
    config = TrainConfig(
        out=str(tmp_path / "run"), evaluate_features=f"torchscript:{path}", **small
    )
    Trainer(config, source=IMAGES).run()
    found = json.loads((tmp_path / "run" / "evaluations.json").read_text())
    assert [each["feature_space"][:23] for each in found] == 2 * ["torchscript:network.pt:"]
    missing = dataclasses.replace(
        config, out=str(tmp_path / "none"), evaluate_features="inception:x"
    )
    with pytest.raises(DataError, match="x: no such file of Inception weights"):
        Trainer(missing, source=IMAGES).run()
    assert not (tmp_path / "none").exists()
    unused = TrainConfig(evaluate_features="random-conv")
    assert unused.ignored(["evaluate_features"]) == ["evaluate_features"]


def test_a_run_trains_one_classifier_and_finds_what_one_report_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = []

    def counted(*arguments: Any, **options: Any) -> Any:
        reports.append(train_classifier(*arguments, **options))
        return reports[-1]

    monkeypatch.setattr(classifier, "STEPS", (10, 10))
    monkeypatch.setattr(evaluations, "train_classifier", counted)
    monkeypatch.setattr(report, "train_classifier", None)
    config = TrainConfig(
        model="gan", out=str(tmp_path), nz=4, batch_size=4, steps=2, evaluate_every=1
    )
    labelled = torch.utils.data.TensorDataset(IMAGES, torch.arange(40) % 2)
    run = Trainer(config, source=labelled)
    run.run()
    assert len(reports) == 1
    monkeypatch.setattr(report, "train_classifier", train_classifier)
    (writer,) = (each for each in run.callbacks if isinstance(each, SampleWriter))
    of_command = load_generator(tmp_path).evaluate(labelled, n=20)
    real, labels = images_to_compare(run.source)
    expected = evaluate_samples(writer.sample(run.state, 1000), real, labels=labels, num_classes=2)
    found = json.loads((tmp_path / "evaluations.json").read_text())[-1]
    for name in ("frechet_distance", "frechet_distance_real", "classifier_accuracy"):
        assert found[name] == pytest.approx(getattr(expected, name))
    # It is of the real images and their split alone.
    assert found["frechet_distance_real"] == pytest.approx(of_command.frechet_distance_real)


@pytest.mark.parametrize("text", ["[", "[" * 100_000, "7", "[7]", '[{"step": 1}]', '{"step": 1}'])
def test_evaluations_that_no_run_has_written_are_refused(tmp_path: Path, text: str) -> None:
    trainer(tmp_path, [StopAtTwo()]).run()
    (tmp_path / "evaluations.json").write_text(text)
    with pytest.raises(OutputError, match=r"evaluations.json: isn't what a run writes"):
        trainer(tmp_path, [], resume=True).run()


def test_a_run_without_evaluations_writes_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="evaluate_every: expected at least 0"):
        TrainConfig(evaluate_every=-1, out=str(tmp_path)).resolved()
    assert TrainConfig(out="x").resolved().evaluate_every == 0
