"""Measures generated images against real ones in one call, and prints a table."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from fastgan.data.sampling import split_indices
from fastgan.errors import ConfigError, DataError, ImageSizeError
from fastgan.evaluation.classifier import (
    ClassifierReport,
    check_images,
    check_labels,
    train_classifier,
)
from fastgan.evaluation.features import (
    ClassifierFeatures,
    FeatureSpace,
    feature_space_named,
)
from fastgan.evaluation.metrics import frechet_distance, kernel_distance, neighbour_metrics

BAR_WIDTH = 20
# Windows' consoles and pipes may lack line drawing.
_BOX = box.Box(str(box.SIMPLE_HEAD).replace("─", "-"), ascii=True)
# Up to this many classes each has a row of the table; otherwise only the extremes do.
MAX_CLASS_ROWS = 20


@dataclasses.dataclass(frozen=True)
class EvaluationReport:
    """The result of :func:`evaluate_samples`; ``str()`` is a table, :meth:`to_dict` is for JSON."""

    precision: float
    """Share of generated images within real images' neighbourhoods: do they look real?"""

    recall: float
    """Share of real images within generated images' neighbourhoods: is everything covered?"""

    density: float
    """Mean number of real neighbourhoods around a generated image, over k; about 1 is ideal."""

    coverage: float
    """Share of real neighbourhoods that hold a generated image."""

    frechet_distance: float
    """Squared Fréchet distance between Gaussians fitted to both sets; 0 is ideal."""

    frechet_distance_real: float
    """The distance between held-out and other real images: about a perfect generator's, with as
    many samples as were held out."""

    kernel_distance: float
    """Squared maximum mean discrepancy of the cubic kernel, "KID" in Inception's features; about 0
    is ideal, without bias whatever the number of samples."""

    k: int
    """Neighbours that set the size of a neighbourhood."""

    feature_space: str
    """The feature space; only figures with the same name here can be compared."""

    n_generated: int
    n_real: int

    class_histogram: list[float] | None
    """Share of generated images the classifier gives to each class; None without labels."""

    classifier_confidence: float | None
    """Mean probability of the most probable class, over generated images."""

    classifier_confidence_real: float | None
    """The same over held-out real images."""

    confidence_ratio: float | None
    """``classifier_confidence / classifier_confidence_real``; about 1 is ideal."""

    classifier_accuracy: float | None
    """The classifier's accuracy on held-out real images: how far to trust it."""

    class_names: list[str] | None
    """The classes' names, in the order of the histogram."""

    notes: list[str]
    """Caveats about the figures; empty if there are none."""

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain numbers, strings, lists and None, for :mod:`json`."""
        return dataclasses.asdict(self)

    def __rich__(self) -> Table:
        """The table, for :meth:`rich.console.Console.print`."""
        table = Table(
            title=f"{self.n_generated} generated against {self.n_real} real images",
            caption="\n".join(
                [
                    f"distances in the feature space {escape(self.feature_space)}, k = {self.k}",
                    *(f"note: {escape(note)}" for note in self.notes),
                ]
            ),
            box=_BOX,
            title_justify="left",
            caption_justify="left",
        )
        table.add_column("measure", no_wrap=True)
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("what it says")
        rows = [
            ("precision", self.precision, ".3f", "share of generated that look real"),
            ("recall", self.recall, ".3f", "share of real that could be generated"),
            ("density", self.density, ".3f", "how deep among the real; 1 is ideal"),
            ("coverage", self.coverage, ".3f", "share of real with a generated neighbour"),
            (
                *("Fréchet distance", self.frechet_distance, ".4g"),
                f"lower is better; real against real {self.frechet_distance_real:.4g}",
            ),
            ("kernel distance", self.kernel_distance, ".3g", "lower is better; 0 is ideal"),
            ("classifier accuracy", self.classifier_accuracy, ".3f", "on held-out real images"),
            (
                *("confidence, real", self.classifier_confidence_real, ".3f"),
                "mean top probability, held-out real",
            ),
            (
                *("confidence", self.classifier_confidence, ".3f"),
                f"generated: {self.confidence_ratio or 0:.3f} of the real",
            ),
        ]
        for name, value, form, meaning in rows:
            if value is not None:
                table.add_row(name, format(value, form), meaning)
        if self.class_histogram is not None:
            self._add_classes(table, self.class_histogram)
        return table

    def _add_classes(self, table: Table, histogram: list[float]) -> None:
        table.add_section()
        if len(histogram) > MAX_CLASS_ROWS:
            for word, share in (("rarest", min(histogram)), ("commonest", max(histogram))):
                name = self._class_name(histogram.index(share))
                table.add_row(f"{word} class", f"{share:.1%}", f"{name}, of {len(histogram)}")
            return
        widest = max(histogram)
        for number, share in enumerate(histogram):
            bar = "=" * round(BAR_WIDTH * share / widest)
            table.add_row(f"class {self._class_name(number)}", f"{share:.1%}", bar)

    def _class_name(self, number: int) -> str:
        return str(number) if self.class_names is None else escape(self.class_names[number][:24])

    def __str__(self) -> str:
        """The table as plain text of at most 80 columns."""
        stream = io.StringIO()
        Console(file=stream, width=80, color_system=None, force_terminal=False).print(self)
        return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().splitlines())


def _resolve_feature_space(
    wanted: FeatureSpace | str | None,
    classifier: ClassifierReport | None,
    device: torch.device | str,
) -> FeatureSpace:
    if wanted is not None and not isinstance(wanted, str):
        return wanted
    if wanted in (None, "classifier") and classifier is not None:
        return ClassifierFeatures(classifier.classifier)
    if wanted == "classifier":
        raise ConfigError(
            "feature_space: 'classifier' needs labelled data, and there are no labels"
        )
    return feature_space_named(wanted or "random-conv", device)


def _check_class_names(class_names: Sequence[str] | None, num_classes: int) -> list[str] | None:
    if class_names is None:
        return None
    if len(class_names) != num_classes:
        raise ConfigError(
            f"class_names: expected {num_classes}, one a class, got {len(class_names)}"
        )
    return [str(name) for name in class_names]


def evaluate_samples(
    generated: Tensor,
    real: Tensor,
    *,
    labels: Tensor | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    held_out: float = 0.2,
    feature_space: FeatureSpace | str | None = None,
    k: int = 5,
    seed: int = 0,
    device: torch.device | str = "cpu",
    classifier: ClassifierReport | None = None,
) -> EvaluationReport:
    """Measures generated images against real ones.

    Precision, recall, density, coverage, the Fréchet and the kernel distance are taken between all
    generated and all real images, in a named feature space. For labelled data a small classifier
    is trained on part of the real images, and its figures on generated images stand beside those
    on the held-out part. It takes the classifier's training time (seconds) and ``N^2 + M^2 + N M``
    distances; for large sets, pass some ten thousand of each.

    Args:
        generated: float ``(M, C, H, W)`` in ``[-1, 1]``, ``C`` 1 or 3, ``M > k``.
        real: float ``(N, C, H, W)``, of the same ``C``, ``H`` and ``W``, ``N > k``.
        labels: int64 ``(N,)`` of the real images; None for unlabelled data.
        num_classes: how many classes; None means the highest label plus one.
        class_names: names for the table.
        held_out: share of the real images (of each class) on which the classifier is judged.
        feature_space: ``"classifier"`` (needs labels, and is the default with them),
            ``"random-conv"`` (the default without), ``"inception:FILE"``, ``"torchscript:FILE"``,
            or an object with a name and an ``extract`` method: :mod:`fastgan.evaluation.features`.
        k: which nearest neighbour sets the size of a neighbourhood.
        seed: split and classifier. The same seed gives the same report on the CPU.
        device: where to train the classifier and to run an extractor.
        classifier: of :func:`fastgan.evaluation.train_classifier` for the same images, labels,
            ``held_out``, ``seed`` and ``device``, to train it once for several reports.

    Raises:
        TypeError, ImageSizeError, DataError: images or labels of the wrong kind, or not finite.
        ConfigError: ``k``, ``held_out``, ``num_classes``, ``class_names`` or ``feature_space``
            out of range, or an extractor that does not fit the images.

    Example:
        >>> import torch
        >>> from fastgan.evaluation import evaluate_samples
        >>> generator = torch.Generator().manual_seed(0)
        >>> real = torch.rand(200, 1, 16, 16, generator=generator) * 2 - 1
        >>> report = evaluate_samples(real.clone(), real)
        >>> report.feature_space, report.precision, report.recall, report.coverage
        ('random-conv-128', 1.0, 1.0, 1.0)
        >>> round(report.frechet_distance, 6)
        0.0
    """
    check_images(generated, "generated")
    check_images(real, "real")
    if generated.shape[1:] != real.shape[1:]:
        raise ImageSizeError(
            f"generated: expected (C, H, W) {tuple(real.shape[1:])} like the real images, "
            f"got {tuple(generated.shape[1:])}"
        )
    for argument, images in (("generated", generated), ("real", real)):
        if len(images) <= k:
            raise ConfigError(
                f"{argument}: k = {k} neighbours need at least {k + 1} images, got {len(images)}"
            )

    names = None
    if labels is None:
        classifier = None
        train_indices, held_out_indices = split_indices(len(real), held_out=held_out, seed=seed)
    else:
        num_classes = check_labels(labels, len(real), num_classes)
        names = _check_class_names(class_names, num_classes)
        classifier = classifier or train_classifier(
            real, labels, num_classes=num_classes, held_out=held_out, seed=seed, device=device
        )
        train_indices, held_out_indices = classifier.train_indices, classifier.held_out_indices

    space = _resolve_feature_space(feature_space, classifier, device)
    real_features = space.extract(real)
    generated_features = space.extract(generated)
    if min(len(train_indices), len(held_out_indices)) < 2:
        raise DataError(
            f"real: {len(real)} images are too few to compare {held_out:.0%} with the rest"
        )
    neighbours = neighbour_metrics(real_features, generated_features, k=k)

    notes = []
    feature_count = real_features.shape[1]
    fewest = min(len(generated), len(real), len(held_out_indices))
    if fewest <= feature_count:
        notes.append(
            f"as few as {fewest} images for {feature_count} features: the Fréchet distances "
            "are biased upwards"
        )
    histogram = confidence = ratio = None
    if classifier is not None and num_classes is not None:
        top = classifier.classifier.probabilities(generated).max(dim=1)
        counts = torch.bincount(top.indices, minlength=num_classes)
        histogram = (counts.double() / len(generated)).tolist()
        confidence = float(top.values.double().mean())
        ratio = confidence / classifier.mean_top_probability
        if classifier.accuracy < 0.9:
            notes.append(
                f"the classifier is right on {classifier.accuracy:.0%} of held-out real images: "
                "take classes and confidence with care"
            )
    return EvaluationReport(
        precision=neighbours.precision,
        recall=neighbours.recall,
        density=neighbours.density,
        coverage=neighbours.coverage,
        frechet_distance=frechet_distance(real_features, generated_features),
        frechet_distance_real=frechet_distance(
            real_features[train_indices], real_features[held_out_indices]
        ),
        kernel_distance=kernel_distance(real_features, generated_features),
        k=k,
        feature_space=space.name,
        n_generated=len(generated),
        n_real=len(real),
        class_histogram=histogram,
        classifier_confidence=confidence,
        classifier_confidence_real=(
            None if classifier is None else classifier.mean_top_probability
        ),
        confidence_ratio=ratio,
        classifier_accuracy=None if classifier is None else classifier.accuracy,
        class_names=names,
        notes=notes,
    )
