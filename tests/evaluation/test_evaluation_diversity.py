"""Diversity: against loops over pairs, and on collapsed samples."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastgan.data import load_data
from fastgan.errors import ConfigError, DataError, ImageSizeError
from fastgan.evaluation import SampleDiversity


def real_digits(image_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    digits = load_data("digits", image_size=8)
    images = F.interpolate(digits.images, size=image_size, mode="bilinear")
    return images, digits.labels


def random_images(count: int, channels: int, size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, size, size, generator=generator) * 2 - 1


def loop_spread(images: torch.Tensor) -> tuple[float, float]:
    values = images.double().numpy()
    count, channels, size, _ = values.shape
    cell = size // 8
    small = values.reshape(count, channels, 8, cell, 8, cell).mean(axis=(3, 5)).reshape(count, -1)
    pairwise, nearest = [], []
    for i in range(count):
        distances = [np.sqrt(((small[i] - small[j]) ** 2).sum()) for j in range(count) if j != i]
        pairwise.extend(distances)
        nearest.append(min(distances))
    return float(np.mean(pairwise)), float(np.mean(nearest))


@pytest.mark.parametrize(("channels", "size"), [(1, 16), (3, 32)])
def test_ratios_match_loops_over_pairs(channels, size):
    real = random_images(40, channels, size, 0)
    samples = random_images(40, channels, size, 1) * 0.5
    report = SampleDiversity(real).measure(samples)
    real_spread, spread = loop_spread(real), loop_spread(samples)
    assert report.ratio == pytest.approx(spread[0] / real_spread[0], rel=1e-5)
    assert report.nearest_ratio == pytest.approx(spread[1] / real_spread[1], rel=1e-5)
    assert report.class_histogram is None


def test_real_images_are_as_diverse_as_real_images():
    images, labels = real_digits(16)
    report = SampleDiversity(images[::2], labels[::2]).measure(images[1::2])
    assert report.ratio == pytest.approx(1.0, abs=0.1)
    assert report.nearest_ratio == pytest.approx(1.0, abs=0.15)


def test_full_collapse_is_zero():
    images, labels = real_digits(16)
    report = SampleDiversity(images, labels).measure(images[5:6].expand(64, -1, -1, -1))
    assert report.ratio == 0.0
    assert report.nearest_ratio == 0.0
    assert report.class_histogram == [float(number == labels[5]) for number in range(10)]


def test_one_good_picture_a_class_is_seen_by_the_nearest_ratio():
    images, labels = real_digits(16)
    first_of_each = torch.stack([images[labels == number][0] for number in range(10)])
    report = SampleDiversity(images, labels).measure(first_of_each.repeat(20, 1, 1, 1))
    assert report.ratio > 0.7
    assert report.nearest_ratio == 0.0


def test_lost_class_is_seen_by_the_histogram():
    images, labels = real_digits(16)
    halves = SampleDiversity(images[::2], labels[::2])
    unseen, truth = images[1::2], labels[1::2]
    histogram = halves.measure(unseen[truth != 4]).class_histogram
    assert sum(histogram) == pytest.approx(1.0)
    assert histogram[4] < 0.01
    assert min(histogram[:4] + histogram[5:]) > 0.08


def test_nearest_real_image_reads_unseen_digits():
    images, labels = real_digits(16)
    halves = SampleDiversity(images[::2], labels[::2])
    for number in range(10):
        unseen = images[1::2][labels[1::2] == number]
        assert halves.measure(unseen).class_histogram[number] > 0.9


def test_count_of_samples_does_not_matter_much():
    images, _ = real_digits(16)
    diversity = SampleDiversity(images[::2])
    few, many = diversity.measure(images[1:65]), diversity.measure(images[1:513])
    assert few.ratio == pytest.approx(many.ratio, abs=0.1)
    assert few.nearest_ratio == pytest.approx(many.nearest_ratio, abs=0.15)


def test_seed_decides_the_subset_and_global_randomness_is_untouched():
    images, labels = real_digits(16)
    samples = random_images(64, 1, 16, 0)
    before = torch.get_rng_state()
    reports = [SampleDiversity(images, labels, subset=50, seed=s).measure(samples) for s in (0, 0)]
    assert torch.equal(torch.get_rng_state(), before)
    assert reports[0] == reports[1]
    assert SampleDiversity(images, labels, subset=50, seed=1).measure(samples) != reports[0]


def test_is_cheap_enough_for_a_training_run():
    images, labels = real_digits(64)
    diversity = SampleDiversity(images, labels)
    samples = random_images(256, 1, 64, 0)
    diversity.measure(samples)  # the spread of the data, once
    times = []
    for _ in range(5):
        start = time.perf_counter()
        diversity.measure(samples)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1


def test_data_of_copies_has_no_nearest_ratio():
    real = random_images(10, 1, 16, 0).repeat(2, 1, 1, 1)
    report = SampleDiversity(real).measure(random_images(20, 1, 16, 1))
    assert np.isnan(report.nearest_ratio)
    assert report.ratio > 0


def test_data_without_spread_is_refused():
    with pytest.raises(DataError, match="all the same"):
        SampleDiversity(torch.zeros(10, 1, 16, 16))


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        (torch.zeros(5, 3, 16, 16), ImageSizeError, "expected 1 channels like the data, got 3"),
        (torch.zeros(1, 1, 16, 16), DataError, "at least 2 samples, got 1"),
        (torch.full((5, 1, 16, 16), torch.nan), DataError, "5 of 5 images hold NaN"),
        (torch.zeros(5, 1, 16, 16, dtype=torch.uint8), TypeError, "uint8"),
    ],
)
def test_unfit_samples_are_refused(samples, error, message):
    diversity = SampleDiversity(random_images(10, 1, 16, 0))
    with pytest.raises(error, match=message):
        diversity.measure(samples)


def test_unfit_settings_are_refused():
    images = random_images(10, 1, 16, 0)
    with pytest.raises(ConfigError, match="subset"):
        SampleDiversity(images, subset=1)
    with pytest.raises(ConfigError, match="neighbours"):
        SampleDiversity(images, neighbours=0)
    with pytest.raises(DataError, match="labels"):
        SampleDiversity(images, torch.zeros(9, dtype=torch.int64))
