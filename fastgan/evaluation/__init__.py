"""Measures generated images: distances to the real ones, classifier figures, diversity.

- :mod:`~fastgan.evaluation.report`: :func:`evaluate_samples`, all figures in one call.
- :mod:`~fastgan.evaluation.metrics`: precision, recall, density, coverage, Fréchet distance.
- :mod:`~fastgan.evaluation.streaming`: the same metrics, updated batch by batch.
- :mod:`~fastgan.evaluation.features`: the named spaces in which images are compared.
- :mod:`~fastgan.evaluation.classifier`: a classifier trained on the labelled real data.
- :mod:`~fastgan.evaluation.diversity`: cheap measures for watching a training run.
"""

from __future__ import annotations

from fastgan.evaluation.classifier import ClassifierReport, ImageClassifier, train_classifier
from fastgan.evaluation.diversity import DiversityReport, SampleDiversity
from fastgan.evaluation.features import (
    ClassifierFeatures,
    FeatureSpace,
    InceptionFeatures,
    RandomConvolutionFeatures,
    TorchScriptFeatures,
)
from fastgan.evaluation.metrics import (
    NeighbourMetrics,
    frechet_distance,
    frechet_distance_from_moments,
    kernel_distance,
    neighbour_metrics,
    neighbour_radii,
)
from fastgan.evaluation.report import EvaluationReport, evaluate_samples
from fastgan.evaluation.streaming import FrechetDistance, KernelDistance, PrecisionRecall

__all__ = [
    "ClassifierFeatures",
    "ClassifierReport",
    "DiversityReport",
    "EvaluationReport",
    "FeatureSpace",
    "FrechetDistance",
    "ImageClassifier",
    "InceptionFeatures",
    "KernelDistance",
    "NeighbourMetrics",
    "PrecisionRecall",
    "RandomConvolutionFeatures",
    "SampleDiversity",
    "TorchScriptFeatures",
    "evaluate_samples",
    "frechet_distance",
    "frechet_distance_from_moments",
    "kernel_distance",
    "neighbour_metrics",
    "neighbour_radii",
    "train_classifier",
]
