"""The watch over a run: it names each trouble, once, and is silent in health."""

from __future__ import annotations

import math

import pytest

from fastgan.evaluation.diversity import DiversityReport
from fastgan.training.health import HealthMonitor

EVEN = [0.1] * 10


def metrics(loss_d: float = 1.0, loss_g: float = 1.0, grad_norm_g: float = 0.5) -> dict[str, float]:
    return {"loss_d": loss_d, "loss_g": loss_g, "grad_norm_g": grad_norm_g}


def varied(
    ratio: float = 1.0, nearest: float = 1.0, histogram: list[float] | None = None
) -> DiversityReport:
    return DiversityReport(ratio=ratio, nearest_ratio=nearest, class_histogram=histogram)


def monitor(*, wasserstein: bool = False, warm_up: int = 100) -> HealthMonitor:
    return HealthMonitor(wasserstein=wasserstein, warm_up=warm_up)


@pytest.mark.parametrize("wasserstein", [False, True])
def test_a_healthy_run_hears_nothing(wasserstein: bool) -> None:
    watch = monitor(wasserstein=wasserstein)
    for step in range(500):
        wave = 1 + 0.8 * math.sin(step / 7)
        assert watch.observe_metrics(step, metrics(wave, 2 * wave, 0.3 * wave)) == []
        assert watch.observe_samples(step, varied(0.9, 0.8, EVEN)) == []


@pytest.mark.parametrize(
    "report",
    [
        varied(ratio=0.1),
        varied(nearest=0.01),
        varied(histogram=[0.5, 0.5, *[0.0] * 8]),
    ],
    ids=["all alike", "repeating", "classes missing"],
)
def test_collapse_after_health_is_named_at_once_and_once(report: DiversityReport) -> None:
    watch = monitor()
    assert watch.observe_samples(10, varied(histogram=EVEN)) == []
    (text,) = watch.observe_samples(20, report)
    assert text.startswith("mode collapse: at step 20 ")
    assert watch.observe_samples(30, report) == []
    assert watch.observe_samples(40, varied(histogram=EVEN)) == []
    assert len(watch.observe_samples(50, report)) == 1


def test_samples_that_were_never_varied_are_a_beginning_until_warm_up_ends() -> None:
    watch = monitor(warm_up=100)
    assert watch.observe_samples(50, varied(ratio=0.05)) == []
    assert len(watch.observe_samples(150, varied(ratio=0.05))) == 1


def test_one_rare_class_is_no_collapse_and_unknown_nearest_ratio_neither() -> None:
    watch = monitor()
    histogram = [0.0, *[1 / 9] * 9]
    assert watch.observe_samples(200, varied(nearest=math.nan, histogram=histogram)) == []


def test_a_gradient_that_fades_is_named_after_it_persists() -> None:
    watch = monitor(wasserstein=True)
    for step in range(20):
        assert watch.observe_metrics(step, metrics()) == []
    assert watch.observe_metrics(20, metrics(grad_norm_g=1e-5)) == []
    assert watch.observe_metrics(21, metrics(grad_norm_g=1e-5)) == []
    (text,) = watch.observe_metrics(22, metrics(grad_norm_g=1e-5))
    assert text.startswith("vanishing gradients: at step 22 the generator's gradient norm is 1e-05")
    assert watch.observe_metrics(23, metrics(grad_norm_g=1e-5)) == []


def test_a_zero_gradient_needs_no_history() -> None:
    watch = monitor()
    texts = [watch.observe_metrics(step, metrics(grad_norm_g=0.0)) for step in range(3)]
    assert [len(found) for found in texts] == [0, 0, 1]


def test_a_discriminator_that_always_wins_is_named_but_not_a_critic() -> None:
    for wasserstein, expected in ((False, 1), (True, 0)):
        watch = monitor(wasserstein=wasserstein)
        found = [watch.observe_metrics(step, metrics(loss_d=0.001)) for step in range(5)]
        assert sum(map(len, found)) == expected


def test_a_runaway_loss_is_named() -> None:
    watch = monitor(wasserstein=True)
    for step in range(20):
        watch.observe_metrics(step, metrics())
    found = [watch.observe_metrics(20 + k, metrics(loss_d=-5e3 * (k + 1))) for k in range(3)]
    assert [len(texts) for texts in found] == [0, 0, 1]
    assert found[2][0].startswith("divergence: at step 22 ")
