"""The ways a GAN's training goes wrong, each with a test and a name.

Each watch looks at one kind of evidence, speaks when its trouble sets in, and is silent until the
trouble has gone and come back. The thresholds are deliberately far from what a healthy run shows:
a warning that cries wolf is turned off.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping

from fastgan.evaluation.diversity import DiversityReport

__all__ = ["HealthMonitor"]

# Samples this much closer together than real images are (mean pairwise distance) are collapsed:
# healthy generators on digits stay above 0.8.
COLLAPSED_DISTANCE_RATIO = 0.35
# ... and so are samples that repeat each other: distance to the nearest other one, likewise.
COLLAPSED_NEAREST_RATIO = 0.2
# A class is missing when it gets less than this fraction of its share of the data.
MISSING_CLASS_FRACTION = 0.1
# Samples this close together are one image, or copies of a few. Generators that have just been
# initialised are above 0.04 after 50 updates, whatever the data.
COPIES_RATIO = 0.005
# ... so that this needs no warm-up but so many updates, in which a last layer of zeros fills.
EARLIEST_COPIES = 100
# The generator's gradient has vanished when its norm is this small beside its usual size.
VANISHED_GRADIENT_RATIO = 1e-3
# ... or is below the 1e-8 that Adam and RMSprop add to it before they divide by it: weights then
# move by less than the learning rate. Healthy ones are above 1e-3 from the first update.
VANISHED_GRADIENT = 1e-8
# The loss of a discriminator that tells every sample apart: 0.01 nats a pair means it gives the
# right answer a probability of 99.5%. The generator's gradient then carries no direction.
SATURATED_DISCRIMINATOR_LOSS = 0.01
# Losses grow by small factors while players chase each other; a thousandfold is a runaway.
DIVERGED_LOSS_RATIO = 1e3
# ... and so is a loss of this size, from the first row on: healthy ones of every model stay below
# a hundredth of it, whatever the run's own history says.
DIVERGED_LOSS = 1e4
# A critic with slopes of at most 1 tells two images apart by at most their distance. One whose
# estimate is twice the largest distance that there is has left its penalty behind.
DIVERGED_ESTIMATE_RATIO = 2.0
# The gradient penalty asks for slopes of 1. A critic ten away from that has left it behind; healthy
# ones, which begin near slopes of 0, are never more than about 1 away.
DIVERGED_SLOPE = 10.0
# A generator of so few updates has shown nothing yet, not even at the end of a short run.
EARLIEST_COLLAPSE = 500
# One odd minibatch is no trend, and one good one no recovery.
PERSISTENCE = 3


# Of divergence, and of vanishing gradients; only settings that the model reads.
_CURES = {
    "wgan": (
        "a lower --lr or a smaller --clip is the usual cure",
        "a smaller --clip narrows the critic's gradients, a larger one may help",
    ),
    "wgan-gp": (
        "a lower --lr or a larger --gp-weight is the usual cure",
        "a lower --lr-d or a larger --gp-weight is the usual cure",
    ),
    "others": (
        "a lower --lr is the usual cure",
        "a lower --lr-d or --model wgan-gp is the usual cure",
    ),
}


class HealthMonitor:
    """Watches a run and names mode collapse, vanishing gradients and divergence.

    Args:
        model: a name of :data:`fastgan.training.config.MODELS`.
        pixels: numbers in an image, which bound what a critic with a gradient penalty can estimate.
        warm_up: steps that a generator is given to show varied samples for the first time.
        penalty_weight: weight of the gradient penalty in ``penalty``; 0 where there is none.

    Example:
        >>> monitor = HealthMonitor(model="dcgan", pixels=256, warm_up=200)
        >>> report = DiversityReport(ratio=0.05, nearest_ratio=0.05, class_histogram=None)
        >>> monitor.observe_samples(200, report)
        ['mode collapse: at step 200 samples differ only 0.05 times as much as real images do']
    """

    def __init__(
        self, *, model: str, pixels: int, warm_up: int, penalty_weight: float = 0.0
    ) -> None:
        self._wasserstein = model in ("wgan", "wgan-gp")
        self._cures = _CURES.get(model, _CURES["others"])
        # Images lie in [-1, 1]: the corners of that cube are 2 sqrt(pixels) apart.
        self._most = DIVERGED_ESTIMATE_RATIO * 2 * math.sqrt(pixels)
        if model != "wgan-gp":
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
        """Takes one row of metrics: ``loss_d``, ``loss_g``, ``grad_norm_g`` and, if they are
        there, ``wasserstein`` and ``penalty`` are read."""
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
        """Takes a measurement of how varied samples are; ``final`` for the run's last one."""
        collapsed = report.ratio < COLLAPSED_DISTANCE_RATIO
        text = (
            f"mode collapse: at step {step} samples differ only {report.ratio:.2f} times as much"
            " as real images do"
        )
        # NaN, for data that itself repeats throughout, compares as healthy.
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
        # An untrained generator's samples are alike, which is no collapse yet, but no copies.
        if not self._was_varied and step < (EARLIEST_COLLAPSE if final else self._warm_up):
            copies = min(report.ratio, report.nearest_ratio) < COPIES_RATIO
            return self._judge("mode collapse", copies and step >= EARLIEST_COPIES, text)
        return self._judge("mode collapse", collapsed, text, persistence=1)

    def _judge(
        self, trouble: str, present: bool, text: str, persistence: int = PERSISTENCE
    ) -> list[str]:
        # What diverges has other troubles, too, which say nothing more.
        present = present and (trouble == "divergence" or "divergence" not in self._active)
        self._streak[trouble] = self._streak.get(trouble, 0) + 1 if present else 0
        self._absence[trouble] = 0 if present else self._absence.get(trouble, 0) + 1
        if self._absence[trouble] >= persistence:
            self._active.discard(trouble)
        elif self._streak[trouble] >= persistence and trouble not in self._active:
            self._active.add(trouble)
            return [text]
        return []
