"""The classifier on unseen real digits, and its reproducibility."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastgan.data import load_data
from fastgan.errors import ConfigError, DataError, ImageSizeError
from fastgan.evaluation import ImageClassifier, train_classifier


def real_digits(image_size: int, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    digits = load_data("digits", image_size=8)
    images = F.interpolate(digits.images, size=image_size, mode="bilinear")
    return images.expand(-1, channels, -1, -1).contiguous(), digits.labels


@pytest.fixture(scope="module")
def trained():
    images, labels = real_digits(16)
    return images, labels, train_classifier(images, labels, num_classes=10)


def test_reads_over_97_percent_of_unseen_digits(trained):
    images, labels, report = trained
    assert report.accuracy > 0.97
    # The figures again, by hand.
    held_out = report.held_out_indices
    with torch.no_grad():
        logits = report.classifier(images[held_out])
    right = logits.argmax(dim=1) == labels[held_out]
    assert report.accuracy == pytest.approx(right.double().mean().item())
    top = logits.softmax(dim=1).amax(dim=1)
    assert report.mean_top_probability == pytest.approx(top.mean().item(), abs=1e-5)


def test_held_out_images_are_a_fifth_of_each_class_and_never_trained_on(trained):
    images, labels, report = trained
    train, held_out = report.train_indices, report.held_out_indices
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(len(images)))
    share = torch.bincount(labels[held_out], minlength=10) / torch.bincount(labels)
    assert ((share - 0.2).abs() < 0.01).all()


def test_confidence_tells_digits_from_noise(trained):
    _, _, report = trained
    noise = torch.rand(200, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    confidence = report.classifier.probabilities(noise).amax(dim=1).mean().item()
    assert confidence < 0.85 * report.mean_top_probability


def test_shuffled_labels_can_not_be_learnt():
    # The held-out figures are honest: with labels that mean nothing they are those of guessing.
    images, labels = real_digits(16)
    generator = torch.Generator().manual_seed(0)
    shuffled = labels[torch.randperm(len(labels), generator=generator)]
    report = train_classifier(images[:500], shuffled[:500], num_classes=10)
    assert report.accuracy < 0.25


@pytest.mark.slow
@pytest.mark.parametrize(("image_size", "channels"), [(8, 1), (28, 3)])
def test_other_sizes_and_colours_work_as_well(image_size, channels):
    images, labels = real_digits(image_size, channels)
    assert train_classifier(images, labels, num_classes=10, seed=1).accuracy > 0.97


def test_seed_decides_everything_and_global_randomness_is_untouched(monkeypatch):
    monkeypatch.setattr("fastgan.evaluation.classifier.STEPS", (20, 20))
    images, labels = real_digits(8)
    images, labels = images[:200], labels[:200]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = train_classifier(images, labels, num_classes=10, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    second = train_classifier(images, labels, num_classes=10, seed=3)
    other = train_classifier(images, labels, num_classes=10, seed=4)
    states = [report.classifier.state_dict() for report in (first, second, other)]
    for key, tensor in states[0].items():
        assert torch.equal(tensor, states[1][key]), key
    assert not torch.equal(states[0]["output.1.weight"], states[2]["output.1.weight"])
    assert first.accuracy == second.accuracy
    assert first.mean_top_probability == second.mean_top_probability


def test_training_works_inside_no_grad(monkeypatch):
    monkeypatch.setattr("fastgan.evaluation.classifier.STEPS", (60, 60))
    images, labels = real_digits(16)
    with torch.no_grad():
        report = train_classifier(images[:200], labels[:200], num_classes=10)
    assert report.accuracy > 0.5


def test_probabilities_do_not_depend_on_the_mode_or_on_batches():
    classifier = ImageClassifier(channels=1, image_size=16, num_classes=3)
    images = torch.rand(1000, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    classifier.train()
    probabilities = classifier.probabilities(images)
    assert classifier.training  # as it was found
    with torch.no_grad():
        torch.testing.assert_close(probabilities, classifier.eval()(images).softmax(dim=1))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(1000))


@pytest.mark.parametrize(
    ("images", "labels", "options", "error", "message"),
    [
        (torch.zeros(9, 2, 16, 16), torch.zeros(9).long(), {}, ImageSizeError, "C 1 or 3"),
        (torch.zeros(9, 1, 4, 4), torch.zeros(9).long(), {}, ImageSizeError, "at least 8x8"),
        (torch.zeros(9, 1, 16, 16).long(), torch.zeros(9).long(), {}, TypeError, "int64"),
        (
            torch.full((9, 1, 16, 16), torch.nan),
            torch.zeros(9).long(),
            {},
            DataError,
            "9 of 9 images hold NaN",
        ),
        (torch.zeros(9, 1, 16, 16), torch.zeros(9), {}, DataError, "expected int64"),
        (torch.zeros(9, 1, 16, 16), torch.zeros(8).long(), {}, DataError, r"shape \(9,\)"),
        (torch.zeros(9, 1, 16, 16), torch.full((9,), 2), {}, DataError, "expected 0 to 1"),
        (torch.zeros(9, 1, 16, 16), torch.full((9,), -1), {}, DataError, "got -1 to -1"),
        (
            torch.zeros(9, 1, 16, 16),
            torch.zeros(9).long(),
            {"num_classes": 1},
            ConfigError,
            "num_classes: expected at least 2",
        ),
        (
            torch.zeros(9, 1, 16, 16),
            torch.zeros(9).long(),
            {"held_out": 1.5},
            ConfigError,
            "held_out",
        ),
    ],
)
def test_unfit_data_is_refused(images, labels, options, error, message):
    with pytest.raises(error, match=message):
        train_classifier(images, labels, **{"num_classes": 2, **options})
