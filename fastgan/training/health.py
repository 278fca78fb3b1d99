"""Detects and names problems of GAN training.

Each check uses one kind of evidence, warns when its problem begins, and warns again only after it
has gone and returned. Thresholds are far from healthy values, because false alarms get ignored.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping

from fastgan.evaluation.diversity import DiversityReport
from fastgan.training.model_kinds import MODEL_KINDS

# Samples with this fraction of real images' mean pairwise distance are collapsed: healthy
# generators on digits stay above 0.8.
COLLAPSED_DISTANCE_RATIO = 0.35
# The same for the distance to the nearest other sample, for repeated samples.
COLLAPSED_NEAREST_RATIO = 0.2
# A class is missing below this fraction of its share of the data.
MISSING_CLASS_FRACTION = 0.1
# Such close samples are one image, or copies of a few. New generators are above 0.04 after 50
# updates on any data.
COPIES_RATIO = 0.005
# In these first updates samples go from their initialisation's variety, which can be more than the
# data's or, with zeros in the last layer, none, to the data's. Nothing is judged.
EARLIEST_SAMPLES = 100
# The generator's gradient has vanished below this fraction of its usual norm.
VANISHED_GRADIENT_RATIO = 1e-3
# Or below Adam's and RMSprop's eps of 1e-8: weights then move by less than the learning rate.
# Healthy norms are above 1e-3 from the first update.
VANISHED_GRADIENT = 1e-8
# The loss of a perfect discriminator: 0.01 nats per pair means a probability of 99.5% for the right
# answer. The generator's gradient then has no direction.
SATURATED_DISCRIMINATOR_LOSS = 0.01
# Losses grow by small factors in normal training; a thousandfold is divergence.
DIVERGED_LOSS_RATIO = 1e3
# So is this absolute loss, from the first row on: all models' healthy losses stay below a hundredth
# of it.
DIVERGED_LOSS = 1e4
# With slopes of at most 1 a critic's scores differ by at most the images' distance. An estimate of
# twice the largest distance means that the penalty has failed.
DIVERGED_ESTIMATE_RATIO = 2.0
# The gradient penalty's target is slope 1. Healthy critics begin near slope 0 and are never more
# than about 1 away; ten away means that the penalty has failed.
DIVERGED_SLOPE = 10.0
# Generators with fewer updates aren't judged, even at the end of a short run.
EARLIEST_COLLAPSE = 500
# One odd minibatch isn't a trend, and one good one isn't a recovery.
PERSISTENCE = 3


class HealthMonitor:
    """Watches a run and names mode collapse, vanishing gradients and divergence.

    Args:
        model: a name of :data:`fastgan.training.model_kinds.MODEL_KINDS`.
        pixels: numbers in an image, which bound the estimate of a critic with a gradient penalty.
        warm_up: steps before a generator must show varied samples.
        penalty_weight: the gradient penalty's weight in ``penalty``; 0 without a penalty.

    Example:
        >>> monitor = HealthMonitor(model="dcgan", pixels=256, warm_up=200)
        >>> report = DiversityReport(ratio=0.05, nearest_ratio=0.05, class_histogram=None)
        >>> monitor.observe_samples(200, report)
        ['mode collapse: at step 200 samples differ only 0.05 times as much as real images do']
    """

    def __init__(
        self, *, model: str, pixels: int, warm_up: int, penalty_weight: float = 0.0
    ) -> None:
        kind = MODEL_KINDS[model]
        self._wasserstein = kind.defaults.get("loss") == "wasserstein"
        self._cures = kind.cures
        # Images are in [-1, 1]: the cube's opposite corners are 2 sqrt(pixels) apart.
        self._most = DIVERGED_ESTIMATE_RATIO * 2 * math.sqrt(pixels)
        if "gp_weight" not in kind.reads:
            self._most = math.inf
        self._penalty_weight = penalty_weight
        self._warm_up = warm_up
        self._was_varied = False
        self._active: set[str] = set()
        self._streak: dict[str, int] = {}
        self._absence: dict[str, int] = {}
        self._gradient_norms: deque[float] = deque(maxlen=200)
        self._loss_sizes: deque[float] = deque(maxlen=200)

    def observe_metrics(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Checks one row of metrics: ``loss_d``, ``loss_g``, ``grad_norm_g`` and, if present,
        ``wasserstein`` and ``penalty``."""
        warnings = []
        loss_size = max(abs(metrics["loss_d"]), abs(metrics["loss_g"]))
        usual_loss = statistics.median(self._loss_sizes) if len(self._loss_sizes) >= 10 else None
        estimate = abs(metrics.get("wasserstein", 0.0))
        excess = 0.0
        if self._penalty_weight > 0:  # penalty = weight * mean (|gradient| - 1)^2
            excess = math.sqrt(metrics.get("penalty", 0.0) / self._penalty_weight)
        diverging = True
        if estimate > self._most:
            what = (
                f"the critic's estimate reached {estimate:.3g}, and no two images are more than"
                f" {self._most / DIVERGED_ESTIMATE_RATIO:.3g} apart"
            )
        elif excess > DIVERGED_SLOPE:
            what = f"the critic's slopes reached {1 + excess:.3g}, and its penalty asks for 1"
        elif usual_loss is not None and loss_size > DIVERGED_LOSS_RATIO * max(usual_loss, 1.0):
            what = f"the losses reached {loss_size:.3g}, they were about {usual_loss:.3g}"
        else:
            what = f"the losses reached {loss_size:.3g}"
            diverging = loss_size > DIVERGED_LOSS
        warnings += self._judge(
            "divergence", diverging, f"divergence: at step {step} {what}; {self._cures[0]}"
        )

        gradient = metrics["grad_norm_g"]
        usual_gradient = (
            statistics.median(self._gradient_norms) if len(self._gradient_norms) >= 10 else None
        )
        vanished = gradient < VANISHED_GRADIENT or (
            usual_gradient is not None and gradient < VANISHED_GRADIENT_RATIO * usual_gradient
        )
        saturated = not self._wasserstein and metrics["loss_d"] < SATURATED_DISCRIMINATOR_LOSS
        why = (
            f"the discriminator is almost never wrong (loss {metrics['loss_d']:.2g})"
            if saturated and not vanished
            else f"the generator's gradient norm is {gradient:.2g}"
        )
        warnings += self._judge(
            "vanishing gradients",
            (vanished or saturated) and not diverging,
            f"vanishing gradients: at step {step} {why}; {self._cures[1]}",
        )
        if not diverging:
            self._loss_sizes.append(loss_size)
        if not vanished:
            self._gradient_norms.append(gradient)
        return warnings

    def observe_samples(
        self, step: int, report: DiversityReport, *, final: bool = False
    ) -> list[str]:
        """Checks a measurement of samples' variety; ``final`` for the run's last one."""
        collapsed = report.ratio < COLLAPSED_DISTANCE_RATIO
        text = (
            f"mode collapse: at step {step} samples differ only {report.ratio:.2f} times as much"
            " as real images do"
        )
        # NaN, for data of copies, compares as healthy.
        if not collapsed and report.nearest_ratio < COLLAPSED_NEAREST_RATIO:
            collapsed = True
            text = (
                f"mode collapse: at step {step} samples repeat each other: the nearest two are"
                f" {report.nearest_ratio:.2f} times as far apart as those of real images"
            )
        histogram = report.class_histogram
        if histogram is not None and not collapsed:
            threshold = MISSING_CLASS_FRACTION / len(histogram)
            missing = [index for index, share in enumerate(histogram) if share < threshold]
            # One rare class is a weakness, several are a collapse.
            collapsed = len(missing) >= max(2, len(histogram) // 4)
            text = (
                f"mode collapse: at step {step} samples show almost nothing of"
                f" {len(missing)} of the {len(histogram)} classes"
                f" ({', '.join(map(str, missing[:10]))})"
            )
        if not collapsed:
            self._was_varied = True
        # An untrained generator's samples are similar, not yet collapsed, but not copies.
        if not self._was_varied and step < (EARLIEST_COLLAPSE if final else self._warm_up):
            copies = min(report.ratio, report.nearest_ratio) < COPIES_RATIO
            return self._judge("mode collapse", copies and step >= EARLIEST_SAMPLES, text)
        collapsed = collapsed and step >= EARLIEST_SAMPLES
        return self._judge("mode collapse", collapsed, text, persistence=1)

    def _judge(
        self, trouble: str, present: bool, text: str, persistence: int = PERSISTENCE
    ) -> list[str]:
        # Divergence causes other problems, which add no information.
        present = present and (trouble == "divergence" or "divergence" not in self._active)
        self._streak[trouble] = self._streak.get(trouble, 0) + 1 if present else 0
        self._absence[trouble] = 0 if present else self._absence.get(trouble, 0) + 1
        if self._absence[trouble] >= persistence:
            self._active.discard(trouble)
        elif self._streak[trouble] >= persistence and trouble not in self._active:
            self._active.add(trouble)
            return [text]
        return []
