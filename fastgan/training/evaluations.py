"""Evaluations during a run, and the best checkpoint."""

from __future__ import annotations

import json
import math
import shutil
from typing import TYPE_CHECKING, Any

from fastgan._util.files import atomic_write
from fastgan._util.reading import parsing, read_text
from fastgan.data.sampling import images_to_compare
from fastgan.errors import OutputError
from fastgan.evaluation.classifier import ClassifierReport, check_labels, train_classifier
from fastgan.evaluation.features import FeatureSpace, feature_space_named
from fastgan.evaluation.report import evaluate_samples
from fastgan.training.callbacks import Callback

if TYPE_CHECKING:
    from torch import Tensor

    from fastgan.training.outputs import SampleWriter
    from fastgan.training.trainer import Trainer

EVALUATIONS = "evaluations.json"
BEST = "best.pt"
SAMPLES = 1000


class Evaluator(Callback):
    """Saves and evaluates every ``evaluate_every`` steps; copies the best checkpoint to best.pt.

    ``evaluations.json`` has the steps and the results of
    :func:`fastgan.evaluation.evaluate_samples` for 1,000 samples, with the same noise each time.
    Real images are those of ``fastgan evaluate``; of models that translate both ways, "b2a" has the
    other direction's results. The best has the smallest Fréchet distance, or mean of both.

    Args:
        samples: draws the samples; None in processes that don't write.
    """

    def __init__(self, samples: SampleWriter | None) -> None:
        self._samples = samples
        self._real: tuple[Tensor, Tensor | None] | None = None
        self._evaluations: list[dict[str, Any]] = []
        self._best = math.inf
        self._space: FeatureSpace | None = None
        self._classifier: ClassifierReport | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Loads the extractor and reads the evaluations of the steps before this one."""
        features = trainer.config.evaluate_features
        if self._samples is not None and features is not None:
            self._space = feature_space_named(features, trainer.device)
        path = trainer.out / EVALUATIONS
        if self._samples is not None and path.exists():
            text = read_text(path, OutputError)
            with parsing(f"{path}: isn't what a run writes", OutputError):
                self._evaluations = [
                    evaluation
                    for evaluation in json.loads(text)
                    if evaluation["step"] <= trainer.step
                ]
                self._best = min(map(_distance, self._evaluations), default=math.inf)

    def on_step_end(self, trainer: Trainer) -> None:
        """Saves and evaluates, if it is time."""
        if trainer.step % trainer.config.evaluate_every:
            return
        checkpoint = trainer.save()
        if self._samples is None:
            return
        if self._real is None:
            self._real = images_to_compare(trainer.source)
        images, labels = self._real
        if labels is not None and self._classifier is None:
            count = check_labels(labels, len(images), trainer.source.num_classes)
            self._classifier = train_classifier(images, labels, num_classes=count)
        reports = {
            direction: evaluate_samples(
                generated,
                real,
                labels=labels,
                num_classes=trainer.source.num_classes,
                class_names=trainer.source.class_names,
                feature_space=self._space,
                classifier=self._classifier,
            ).to_dict()
            for direction, (generated, real) in self._samples.compared(
                trainer.state, images, SAMPLES
            ).items()
        }
        evaluation = {"step": trainer.step, **reports.pop("a2b"), **reports}
        self._evaluations.append(evaluation)
        if _distance(evaluation) < self._best:
            self._best = _distance(evaluation)
            with atomic_write(trainer.out / BEST) as file, checkpoint.open("rb") as saved:
                shutil.copyfileobj(saved, file)
        with atomic_write(trainer.out / EVALUATIONS) as file:
            file.write(json.dumps(self._evaluations, indent=2).encode() + b"\n")


def _distance(evaluation: dict[str, Any]) -> float:
    """The Fréchet distance, of a translator the mean of both directions'."""
    reports = [evaluation, evaluation["b2a"]] if "b2a" in evaluation else [evaluation]
    return sum(float(report["frechet_distance"]) for report in reports) / len(reports)
