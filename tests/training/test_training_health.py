"""Health checks: each problem is named once, and healthy runs get no warning."""

from __future__ import annotations

import math
import re

import pytest

from fastgan.evaluation.diversity import DiversityReport
from fastgan.training import TrainConfig
from fastgan.training.config import MODELS
from fastgan.training.health import HealthMonitor

EVEN = [0.1] * 10


def metrics(loss_d: float = 1.0, loss_g: float = 1.0, grad_norm_g: float = 0.5) -> dict[str, float]:
    return {"loss_d": loss_d, "loss_g": loss_g, "grad_norm_g": grad_norm_g}


def varied(
    ratio: float = 1.0, nearest: float = 1.0, histogram: list[float] | None = None
) -> DiversityReport:
    return DiversityReport(ratio=ratio, nearest_ratio=nearest, class_histogram=histogram)


def monitor(*, wasserstein: bool = False, warm_up: int = 100) -> HealthMonitor:
    model = "wgan" if wasserstein else "dcgan"
    return HealthMonitor(model=model, pixels=256, warm_up=warm_up)


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
    assert watch.observe_samples(110, varied(histogram=EVEN)) == []
    (text,) = watch.observe_samples(120, report)
    assert text.startswith("mode collapse: at step 120 ")
    assert watch.observe_samples(130, report) == []
    assert watch.observe_samples(140, varied(histogram=EVEN)) == []
    assert len(watch.observe_samples(150, report)) == 1


def test_the_first_updates_may_lose_what_variety_an_initialisation_has() -> None:
    watch = monitor()
    for step, ratio in ((1, 0.5), (12, 0.34), (30, 0.2), (60, 0.1), (99, 0.1)):
        assert watch.observe_samples(step, varied(ratio)) == []
    assert len(watch.observe_samples(100, varied(0.1))) == 1


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


def test_a_gradient_below_what_optimisers_add_to_it_needs_no_history() -> None:
    """They divide by |g| + 1e-8."""
    watch = monitor(wasserstein=True)
    texts = [watch.observe_metrics(step, metrics(grad_norm_g=2e-9)) for step in range(3)]
    assert [len(found) for found in texts] == [0, 0, 1]
    watch = monitor(wasserstein=True)
    for step in range(20):
        assert watch.observe_metrics(step, metrics(grad_norm_g=1e-6)) == []


def test_slopes_far_from_what_the_penalty_asks_for_are_a_divergence() -> None:
    for slope, expected in ((20.0, 1), (8.0, 0)):
        watch = HealthMonitor(model="wgan-gp", pixels=256, warm_up=100, penalty_weight=5.0)
        row = {**metrics(), "penalty": 5.0 * (slope - 1) ** 2}
        texts = [text for step in range(5) for text in watch.observe_metrics(step, row)]
        assert len(texts) == expected
        assert all("the critic's slopes reached 20, and its penalty asks for 1" in t for t in texts)


def test_a_divergence_that_pauses_is_one_and_no_other_trouble() -> None:
    watch = monitor(wasserstein=True)
    texts = []
    for step in range(30):
        loss, gradient = (1e6, 1.0) if step % 4 else (1.0, 0.0)
        texts += watch.observe_metrics(step, metrics(loss, loss, gradient))
    assert len(texts) == 1
    assert texts[0].startswith("divergence")


@pytest.mark.parametrize(
    "report", [varied(ratio=0.0, nearest=0.0), varied(ratio=0.1, nearest=0.001)], ids=str
)
def test_copies_are_a_collapse_before_warm_up_ends(report: DiversityReport) -> None:
    watch = monitor(warm_up=2000)
    found = [watch.observe_samples(step, report) for step in range(50, 300, 50)]
    assert [len(texts) for texts in found] == [0, 0, 0, 1, 0]  # thrice from step 100 on
    assert found[3][0].startswith("mode collapse: at step 200 ")
    watch = monitor(warm_up=2000)
    for step in range(50, 300, 50):  # an untrained generator
        assert watch.observe_samples(step, varied(ratio=0.04, nearest=0.05)) == []


@pytest.mark.parametrize("model", ["gan", "dcgan", "cgan", "wgan", "wgan-gp"])
def test_a_loss_that_was_a_runaway_from_the_first_row_is_named_for_what_it_is(model: str) -> None:
    watch = HealthMonitor(model=model, pixels=256, warm_up=100)
    found = [watch.observe_metrics(step, metrics(7.9e14, -1e6, 0.0)) for step in range(5)]
    assert [len(texts) for texts in found] == [0, 0, 1, 0, 0]
    assert found[2][0].startswith("divergence: at step 2 the losses reached 7.9e+14")
    assert ("--clip" in found[2][0]) == (model == "wgan")


def test_an_estimate_beyond_any_distance_is_a_critic_without_its_penalty() -> None:
    watch = HealthMonitor(model="wgan-gp", pixels=256, warm_up=100)
    for step in range(10):  # images of 256 pixels are at most 32 apart
        assert watch.observe_metrics(step, {**metrics(-30.0), "wasserstein": 40.0}) == []
    found = [
        watch.observe_metrics(10 + k, {**metrics(-90.0), "wasserstein": 90.0}) for k in range(3)
    ]
    assert [len(texts) for texts in found] == [0, 0, 1]
    assert "no two images are more than 32 apart" in found[2][0]


def test_advice_names_only_flags_that_the_model_reads() -> None:
    for model in MODELS:
        watch = HealthMonitor(model=model, pixels=256, warm_up=100)
        texts = [*watch.observe_metrics(0, metrics(1e9)), *watch.observe_metrics(1, metrics(1e9))]
        texts += watch.observe_metrics(2, metrics(1e9))
        for step in range(3, 8):
            texts += watch.observe_metrics(step, metrics(grad_norm_g=0.0))
        assert [text.split(":")[0] for text in texts] == ["divergence", "vanishing gradients"]
        flags = set(re.findall(r"--([a-z-]+)", " ".join(texts))) - {"model"}
        names = [flag.replace("-", "_") for flag in flags]
        assert TrainConfig(model=model, out="x").resolved().ignored(names) == []


def test_a_run_of_a_few_steps_is_too_short_for_a_collapse() -> None:
    assert monitor().observe_samples(4, varied(ratio=0.05), final=True) == []
    assert len(monitor().observe_samples(600, varied(ratio=0.05), final=True)) == 1
