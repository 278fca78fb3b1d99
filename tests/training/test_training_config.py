"""TrainConfig: the papers' defaults, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest

from fastgan.errors import ConfigError, FastganError
from fastgan.training.config import MODELS, TrainConfig

# From the papers: minibatch, optimiser, rate, first-moment decay or momentum, second-moment
# decay, noise, critic updates for each generator update.
PAPERS = {
    "gan": (100, "sgd", 0.1, 0.5, None, "uniform", 1),
    "dcgan": (128, "adam", 2e-4, 0.5, 0.999, "uniform", 1),
    "cgan": (128, "adam", 2e-4, 0.5, 0.999, "uniform", 1),
    "acgan": (100, "adam", 2e-4, 0.5, 0.999, "uniform", 1),
    "infogan": (128, "adam", 2e-4, 0.5, 0.999, "uniform", 1),
    "wgan": (64, "rmsprop", 5e-5, None, None, "normal", 5),
    "wgan-gp": (64, "adam", 1e-4, 0.0, 0.9, "normal", 5),
    "sngan": (64, "adam", 2e-4, 0.0, 0.9, "normal", 5),
    "biggan": (256, "adam", 2e-4, 0.0, 0.999, "normal", 2),
    "stylegan2": (32, "adam", 2e-3, 0.0, 0.99, "normal", 1),
    "r3gan": (256, "adam", 2e-4, 0.0, 0.99, "normal", 1),
    "cyclegan": (1, "adam", 2e-4, 0.5, 0.999, None, 1),
    "pix2pix": (1, "adam", 2e-4, 0.5, 0.999, None, 1),
}


@pytest.mark.parametrize("model", MODELS)
def test_defaults_are_the_papers(model: str) -> None:
    config = TrainConfig(model=model, out="x").resolved()
    batch, optimizer, lr, beta1, beta2, noise, n_critic = PAPERS[model]
    assert (config.batch_size, config.optimizer, config.noise) == (batch, optimizer, noise)
    lr_g = {"biggan": 5e-5, "infogan": 1e-3}.get(model, lr)
    assert (config.lr_g, config.lr_d, config.n_critic) == (lr_g, lr, n_critic)
    losses = {"wgan": "wasserstein", "wgan-gp": "wasserstein", "r3gan": "relativistic"}
    losses |= {"sngan": "hinge", "biggan": "hinge", "cyclegan": "least-squares"}
    assert config.loss == losses.get(model, "bce")
    assert (config.r1, config.r2) == {"r3gan": (2.0, 2.0), "stylegan2": (10.0, 0.0)}.get(
        model, (0.0, 0.0)
    )
    lazy = (config.penalty_every, config.path_length, config.path_length_every)
    assert lazy == ((16, 2.0, 4) if model == "stylegan2" else (1, 0.0, 4))
    assert config.orthogonal == (1e-4 if model == "biggan" else 0.0)
    assert beta1 is None or config.beta1 == beta1
    assert beta2 is None or config.beta2 == beta2
    assert (config.clip, config.gp_weight) == (0.01, 10.0)
    assert config.conditional == (model in ("cgan", "acgan", "infogan"))
    assert config.lr_decay == ("half" if model == "cyclegan" else "none")


def test_given_values_beat_the_papers() -> None:
    config = TrainConfig(model="wgan", out="x", lr=1e-3, lr_d=2e-3, n_critic=2).resolved()
    assert (config.lr_g, config.lr_d, config.n_critic) == (1e-3, 2e-3, 2)
    config = TrainConfig(model="biggan", out="x", lr=1e-3, loss="bce", orthogonal=0.0).resolved()
    assert (config.lr_g, config.lr_d, config.loss, config.orthogonal) == (1e-3, 1e-3, "bce", 0.0)
    assert TrainConfig(model="r3gan", out="x", r1=0.0).resolved().r1 == 0.0


def test_original_schedule_trains_the_critic_longer_early_on() -> None:
    config = TrainConfig(model="wgan", out="x", critic_schedule="original").resolved()
    updates = [config.critic_updates(step) for step in range(1002)]
    assert updates[:25] == [100] * 25
    assert updates[25:500] == [5] * 475
    assert updates[500] == 100
    assert updates[501:1000] == [5] * 499
    assert updates[1000] == 100
    constant = TrainConfig(model="wgan", out="x").resolved()
    assert {constant.critic_updates(step) for step in range(600)} == {5}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 48),
        ("image_size", 8),
        ("image_size", 512),
        ("lr", -1e-4),
        ("lr", 0.0),
        ("lr_d", float("nan")),
        ("batch_size", 0),
        ("batch_size", 1),
        ("steps", 0),
        ("steps", "10"),
        ("channels", 2),
        ("nz", 0),
        ("ngf", -1),
        ("ngf", 10**9),
        ("nz", 10**9),
        ("beta1", 1.0),
        ("clip", -0.01),
        ("gp_weight", -1.0),
        ("ema_decay", 1.0),
        ("optimizer", "lion"),
        ("precision", "fp8"),
        ("model", "stylegan"),
        ("seed", -1),
        ("seed", 2**63),
        ("workers", -1),
        ("max_minutes", 0.0),
        ("keep_checkpoints", 0),
    ],
)
def test_impossible_values_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(FastganError, match=field) as caught:
        TrainConfig(**{"out": "x", "model": "dcgan", field: value}).resolved()
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_batch_of_one_is_fine_without_batch_norm() -> None:
    assert TrainConfig(model="gan", out="x", batch_size=1).resolved().batch_size == 1


@pytest.mark.parametrize("model", MODELS)
def test_dictionary_round_trip(model: str) -> None:
    config = TrainConfig(model=model, out="x", seed=7, max_minutes=1.5).resolved()
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_a_discriminators_norm_is_an_option_that_older_runs_did_not_have() -> None:
    none = TrainConfig(model="dcgan", out="x", critic_norm="none", r1=1.0, sync_batch_norm=True)
    assert none.resolved().critic_norm == "none"
    saved = none.resolved().to_dict()
    assert TrainConfig.from_run(saved).critic_norm == "none"
    del saved["orthogonal"]
    saved |= {"r1": 0.0, "sync_batch_norm": False}
    assert TrainConfig.from_run(saved).critic_norm == "batch"
    for model in ("wgan", "wgan-gp"):
        found = TrainConfig.from_run({**saved, "model": model, "loss": "wasserstein"})
        assert found.critic_norm == "none"


@pytest.mark.parametrize(
    "change",
    [{"no_such": 1}, {"steps": "many"}, {"steps": 1.5}, {"steps": True}, {"conditional": 1}],
)
def test_foreign_dictionaries_are_refused(change: dict[str, object]) -> None:
    values = {**TrainConfig(out="x").to_dict(), **change}
    with pytest.raises(ConfigError, match=next(iter(change))):
        TrainConfig.from_dict(values)


def test_every_option_explains_itself() -> None:
    for each in dataclasses.fields(TrainConfig):
        assert len(each.metadata["help"]) > 10, each.name
