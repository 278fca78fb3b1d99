"""The whole evaluation: figures agree with its parts; the table is readable."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from fastgan.data import load_data
from fastgan.errors import ConfigError, DataError, ImageSizeError
from fastgan.evaluation import (
    ClassifierReport,
    EvaluationReport,
    RandomConvolutionFeatures,
    evaluate_samples,
    frechet_distance,
    neighbour_metrics,
    train_classifier,
)


def real_digits() -> tuple[torch.Tensor, torch.Tensor]:
    digits = load_data("digits", image_size=8)
    return F.interpolate(digits.images, size=16, mode="bilinear"), digits.labels


def random_images(count: int, channels: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, 16, 16, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def judged() -> tuple[EvaluationReport, ClassifierReport, torch.Tensor]:
    """A report, the classifier that was trained for it, and the generated images."""
    images, labels = real_digits()
    noise = torch.randn(600, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    generated = (images[:600] + 0.3 * noise).clamp(-1, 1)
    trained = []

    def watched(*arguments: Any, **settings: Any) -> ClassifierReport:
        trained.append(train_classifier(*arguments, **settings))
        return trained[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastgan.evaluation.report.train_classifier", watched)
        report = evaluate_samples(generated, images, labels=labels)
    (one,) = trained
    return report, one, generated


@pytest.fixture(scope="module")
def labelled(judged) -> EvaluationReport:
    return judged[0]


def test_labelled_figures_are_those_of_the_classifier(judged):
    labelled, trained, generated = judged
    images, _ = real_digits()
    probabilities = trained.classifier.probabilities(generated)
    top = probabilities.amax(dim=1).mean().item()
    assert labelled.classifier_accuracy == trained.accuracy > 0.97
    assert labelled.classifier_confidence_real == trained.mean_top_probability
    assert labelled.classifier_confidence == pytest.approx(top)
    assert labelled.confidence_ratio == pytest.approx(top / trained.mean_top_probability)
    chosen = probabilities.argmax(dim=1).tolist()
    assert labelled.class_histogram == [chosen.count(number) / 600 for number in range(10)]
    with torch.no_grad():
        features = [trained.classifier.features(part) for part in (images, generated)]
    distance = frechet_distance(*features)
    assert labelled.frechet_distance == pytest.approx(distance, rel=1e-4)
    assert labelled.feature_space.startswith("classifier-128-")


def test_unlabelled_figures_are_those_of_the_metrics():
    real, generated = random_images(150, seed=0), random_images(140, seed=1) * 0.9
    report = evaluate_samples(generated, real, k=3)
    space = RandomConvolutionFeatures()
    features = space.extract(real), space.extract(generated)
    want = neighbour_metrics(*features, k=3)
    assert (report.precision, report.recall) == (want.precision, want.recall)
    assert (report.density, report.coverage) == (want.density, want.coverage)
    assert report.frechet_distance == frechet_distance(*features)
    assert report.feature_space == "random-conv-128"
    assert (report.n_generated, report.n_real, report.k) == (140, 150, 3)
    assert report.class_histogram is report.classifier_accuracy is report.confidence_ratio is None


def test_worse_images_get_worse_figures():
    images, _ = real_digits()
    noise = torch.randn(images[::2].shape, generator=torch.Generator().manual_seed(0))
    reports = [
        evaluate_samples((images[::2] + level * noise).clamp(-1, 1), images[1::2])
        for level in (0.0, 0.2, 0.5)
    ]
    assert reports[0].frechet_distance < reports[1].frechet_distance < reports[2].frechet_distance
    assert reports[0].density > reports[1].density > reports[2].density
    assert reports[0].coverage > reports[1].coverage > reports[2].coverage


def test_real_against_real_is_far_below_noise():
    images, _ = real_digits()
    report = evaluate_samples(random_images(500), images)
    assert report.frechet_distance_real < 0.05 * report.frechet_distance


def test_seed_makes_the_report_repeatable(monkeypatch):
    monkeypatch.setattr("fastgan.evaluation.classifier.STEPS", (20, 20))
    images, labels = real_digits()
    images, labels = images[:300], labels[:300]
    torch.manual_seed(0)
    first = evaluate_samples(images[:50], images, labels=labels, seed=2)
    torch.manual_seed(1)
    assert evaluate_samples(images[:50], images, labels=labels, seed=2) == first
    assert evaluate_samples(images[:50], images, labels=labels, seed=3) != first


def test_report_goes_through_json(labelled):
    back = json.loads(json.dumps(labelled.to_dict(), allow_nan=False))
    assert EvaluationReport(**back) == labelled


def test_table_fits_80_columns_and_names_what_matters(labelled):
    text = str(labelled)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    for word in ("precision", "recall", "density", "coverage", "Fréchet", "class 9", "confidence"):
        assert word in text
    assert labelled.feature_space in text
    assert f"{labelled.precision:.3f}" in text
    assert "600 generated against 1797 real images" in text


def test_console_prints_the_same_table(labelled):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(labelled)
    printed = [line.rstrip() for line in console.export_text().rstrip().splitlines()]
    assert printed == str(labelled).splitlines()


def test_brackets_in_names_are_printed_as_they_are(labelled):
    named = EvaluationReport(
        **{
            **labelled.to_dict(),
            "class_names": [f"[red]{n}" for n in range(10)],
            "feature_space": "torchscript:[bold].pt:0",
        }
    )
    assert "class [red]7" in str(named)
    assert "torchscript:[bold].pt:0" in str(named)


def test_many_classes_are_summed_up(labelled):
    histogram = [0.0, 0.5] + [0.5 / 98] * 98
    many = EvaluationReport(
        **{**labelled.to_dict(), "class_histogram": histogram, "class_names": None}
    )
    text = str(many)
    assert "rarest class" in text
    assert "50.0%" in text
    assert "0, of 100" in text
    assert "class 57" not in text
    text.encode("cp1252")


def test_too_few_images_for_the_features_are_noted():
    report = evaluate_samples(random_images(40), random_images(200, seed=1))
    assert any("40 images for 128 features" in note for note in report.notes)
    assert "biased upwards" in str(report)
    str(report).encode("cp1252")  # as Windows writes into a pipe
    assert not evaluate_samples(random_images(700), random_images(700, seed=1)).notes


def test_poor_classifier_is_noted(monkeypatch):
    monkeypatch.setattr("fastgan.evaluation.classifier.STEPS", (20, 20))
    labels = torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(0))
    report = evaluate_samples(random_images(200), random_images(200, seed=1), labels=labels)
    assert any("of held-out real images" in note for note in report.notes)


def test_chosen_feature_spaces(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("fastgan.evaluation.classifier.STEPS", (20, 20))
    images, labels = real_digits()
    images, labels = images[:300], labels[:300]
    by_name = evaluate_samples(images[:50], images, labels=labels, feature_space="random-conv")
    assert by_name.feature_space == "random-conv-128"
    assert by_name.class_histogram is not None  # the classifier's figures come all the same

    class RowMeans:
        name = "row-means"

        def extract(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(1, 3))

    own = evaluate_samples(images[:50], images, feature_space=RowMeans())
    assert own.feature_space == "row-means"
    assert own.frechet_distance == pytest.approx(
        frechet_distance(images.mean(dim=(1, 3)), images[:50].mean(dim=(1, 3)))
    )
    with pytest.raises(DataError, match="no such feature extractor file"):
        evaluate_samples(images, images, feature_space=f"torchscript:{tmp_path / 'none.pt'}")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"feature_space": "inception"}, ConfigError, "feature_space: 'inception'; expected"),
        ({"feature_space": "classifier"}, ConfigError, "needs labelled data"),
        ({"k": 50}, ConfigError, "generated: k = 50 .* at least 51 images, got 20"),
        ({"k": 0}, ConfigError, "k: expected a whole number"),
        ({"held_out": 0.0}, ConfigError, "held_out"),
        ({"real": random_images(40, channels=3)}, ImageSizeError, "like the real images"),
        ({"generated": random_images(20) * torch.nan}, DataError, "generated: 20 of 20"),
        ({"real": random_images(40) / 0}, DataError, "real: 40 of 40"),
        ({"labels": torch.zeros(7).long()}, DataError, "labels: expected int64"),
        (
            {"labels": torch.arange(40) % 4, "class_names": ["a"]},
            ConfigError,
            "class_names: expected 4, one a class, got 1",
        ),
    ],
)
def test_unfit_arguments_are_refused(options, error, message):
    arguments = {"generated": random_images(20), "real": random_images(40, seed=1), **options}
    with pytest.raises(error, match=message):
        evaluate_samples(arguments.pop("generated"), arguments.pop("real"), **arguments)
