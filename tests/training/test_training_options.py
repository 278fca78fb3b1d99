"""The options: losses, parts of a batch, lazy penalties, one-stage updates."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan import losses
from fastgan.errors import ConfigError
from fastgan.training.config import MODELS, TrainConfig
from fastgan.training.model_kinds import MODEL_KINDS, named
from fastgan.training.networks import DataShape, build_discriminator, build_generator
from fastgan.training.optimizer_kinds import build_optimizer
from fastgan.training.updates import GANUpdater

BATCH, CHANNELS, SIZE, CLASSES = 8, 3, 16, 4


def configured(**changes: object) -> TrainConfig:
    small = {"out": "unused", "nz": 5, "ngf": 4, "ndf": 4, "batch_size": BATCH}
    return TrainConfig(**{**small, **changes}).resolved()


def make_updater(config: TrainConfig, seed: int = 0) -> GANUpdater:
    torch.manual_seed(seed)
    data = DataShape("random", CHANNELS, SIZE, CLASSES)
    generator, discriminator = build_generator(config, data), build_discriminator(config, data)
    updater: GANUpdater = named(config.kind.updater)(
        config=config,
        generator=generator,
        discriminator=discriminator,
        optimizer_g=build_optimizer(config, generator, config.lr_g),
        optimizer_d=build_optimizer(config, discriminator, config.lr_d),
        num_classes=CLASSES if config.conditional else None,
        device=torch.device("cpu"),
        random=torch.Generator().manual_seed(seed),
    )
    return updater


def real_batch(seed: int = 5) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(BATCH, CHANNELS, SIZE, SIZE, generator=random) * 2 - 1
    return images, torch.randint(CLASSES, (BATCH,), generator=random)


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def assert_all_close(ours: list[Tensor], theirs: list[Tensor], rtol: float = 1e-4) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-6)


# --- Losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(5))
def test_losses_are_their_formulas(seed: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(seed)
    real = (3 * torch.randn(17, generator=random)).to(dtype)
    fake = (3 * torch.randn(23, generator=random)).to(dtype)
    x, y = real.double().tolist(), fake.double().tolist()

    def mean(values: list[float]) -> float:
        return math.fsum(values) / len(values)

    def log_sigmoid(s: float) -> float:
        return -math.log1p(math.exp(-s))

    expected = {
        "bce": (
            -mean([log_sigmoid(s) for s in x]) - mean([log_sigmoid(-s) for s in y]),
            -mean([log_sigmoid(s) for s in y]),
        ),
        "hinge": (mean([max(0, 1 - s) for s in x]) + mean([max(0, 1 + s) for s in y]), -mean(y)),
        "least-squares": (
            mean([(s - 1) ** 2 for s in x]) / 2 + mean([s**2 for s in y]) / 2,
            mean([(s - 1) ** 2 for s in y]) / 2,
        ),
        "wasserstein": (mean(y) - mean(x), -mean(y)),
    }
    # The relativistic ones take scores in pairs: test_training_penalties.
    assert {*expected, "relativistic"} == losses.PLAYERS_LOSSES.keys()
    for name in expected:
        discriminator_loss, generator_loss = losses.PLAYERS_LOSSES[name]
        found = (discriminator_loss(real, fake).item(), generator_loss(fake).item())
        assert found == pytest.approx(expected[name], rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize("loss", ["hinge", "least-squares"])
@pytest.mark.parametrize("model", ["gan", "dcgan", "cgan"])
def test_discriminators_descend_the_loss_asked_for(model: str, loss: str) -> None:
    updater = make_updater(configured(model=model, loss=loss, optimizer="adam"))
    generator = copy.deepcopy(updater.generator)
    discriminator = copy.deepcopy(updater.discriminator)
    real, labels = real_batch()
    condition = (labels,) if updater.config.conditional else ()
    torch.manual_seed(1)  # dropout
    metrics = updater.update_discriminator(real, labels)
    random = torch.Generator().manual_seed(0)
    z = (torch.rand(BATCH * 5, generator=random) * 2 - 1).view(BATCH, 5, 1, 1)
    torch.manual_seed(1)
    with torch.no_grad():
        fake = generator(z, *condition)
    x, y = discriminator(real, *condition), discriminator(fake, *condition)
    if loss == "hinge":
        expected = F.relu(1 - x).mean() + F.relu(1 + y).mean()
    else:
        expected = ((x - 1) ** 2).mean() / 2 + (y**2).mean() / 2
    expected.backward()
    torch.testing.assert_close(metrics["loss_d"], expected.detach())
    torch.testing.assert_close(metrics["d_real"], x.detach().mean())
    assert_all_close(gradients(updater.discriminator), gradients(discriminator))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "wgan", "loss": "hinge"}, "loss"),
        ({"model": "dcgan", "loss": "wasserstein"}, "loss"),
        ({"loss": "log"}, "loss"),
        ({"penalty_every": 0}, "penalty_every"),
        ({"accumulate": 0}, "accumulate"),
        ({"accumulate": 3}, "accumulate"),
        ({"accumulate": BATCH}, "batch_size"),
        ({"augment": "flip"}, "augment"),
        ({"model": "wgan-gp", "critic_norm": "batch", "sync_batch_norm": True}, "sync_batch_norm"),
    ],
)
def test_impossible_options_are_refused_by_name(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named}: "):
        configured(**changes)


# --- Parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("conditional", [False, True])
def test_a_batch_in_parts_has_the_whole_batch_s_gradients(conditional: bool, parts: int) -> None:
    # Without batch norm, whose statistics are each part's own: the WGAN-GP's critic.
    found = []
    for count in (1, parts):
        config = configured(
            model="wgan-gp",
            conditional=conditional,
            accumulate=count,
            augment="color,translation,cutout",
        )
        updater = make_updater(config)
        updater.generator.eval()
        metrics = updater.update_discriminator(*real_batch())
        found.append((gradients(updater.discriminator), metrics))
        metrics = updater.update_generator(measure_gradient=True)
        found[-1] = (*found[-1], gradients(updater.generator), metrics)
    whole, in_parts = found
    assert_all_close(in_parts[0], whole[0])
    assert_all_close(in_parts[2], whole[2], rtol=1e-3)
    for ours, theirs in ((in_parts[1], whole[1]), (in_parts[3], whole[3])):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5)


# --- Lazy penalties -------------------------------------------------------------------------------


def test_a_lazy_penalty_is_the_penalty_weighted_up_now_and_none_else() -> None:
    lazy = make_updater(configured(model="wgan-gp", penalty_every=4, gp_weight=2.5))
    full = make_updater(configured(model="wgan-gp", gp_weight=10.0))
    real, labels = real_batch()
    ours = lazy.update_discriminator(real, labels, penalize=True)
    theirs = full.update_discriminator(real, labels)
    assert_all_close(gradients(lazy.discriminator), gradients(full.discriminator))
    torch.testing.assert_close(ours["penalty"], theirs["penalty"])
    plain = lazy.update_discriminator(real, labels, penalize=False)
    assert "penalty" not in plain
    torch.testing.assert_close(plain["loss_d"], -plain["wasserstein"])


# --- One stage ------------------------------------------------------------------------------------


# Spectral norms move with each pass, of which the two below make different numbers; stylegan2
# refuses.
NOT_ONE_STAGE = ("sngan", "biggan", "stylegan2")


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(
    ("model", "loss"),
    [
        *(
            (model, "auto")
            for model in MODELS
            if model not in NOT_ONE_STAGE and not MODEL_KINDS[model].pairs
        ),
        *((model, loss) for model in ("gan", "dcgan") for loss in ("hinge", "least-squares")),
    ],
)
def test_one_stage_gradients_are_those_of_two_stages_at_the_same_weights(
    model: str, loss: str, conditional: bool
) -> None:
    config = configured(
        model=model,
        loss=loss,
        conditional=conditional,
        one_stage=True,
        augment="color,translation",
        lr=1e-30,  # the weights stay, so that both updates below are at the same ones
        optimizer="sgd",
    )
    updater, reference = make_updater(config), make_updater(config)
    for each in (*updater.discriminator.modules(), *reference.discriminator.modules()):
        if isinstance(each, nn.Dropout):
            each.p = 0.0  # the two below pass through it in another order
    real, labels = real_batch()
    metrics = updater.update_both(real, labels, penalize=True, measure_gradient=True)

    # The same by plain autograd: one graph a player, from the same random numbers.
    drawn = reference._drawn_for_critic(real, labels, penalize=True)
    fake = reference._generated(drawn)
    loss_d, _, _ = reference._critic_loss(drawn, fake.detach())
    _, _, scores = reference._plain_critic_loss(drawn, fake)
    loss_g = reference.generator_loss(*scores[0 if config.loss == "relativistic" else 1 :])
    generator, discriminator = reference.generator, reference.discriminator
    expected_d = torch.autograd.grad(loss_d, list(discriminator.parameters()))
    expected_g = torch.autograd.grad(loss_g, list(generator.parameters()))
    torch.testing.assert_close(metrics["loss_d"], loss_d.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(metrics["loss_g"], loss_g.detach(), rtol=1e-4, atol=1e-5)
    assert_all_close(gradients(updater.discriminator), list(expected_d), rtol=1e-3)
    assert_all_close(gradients(updater.generator), list(expected_g), rtol=1e-3)
    norm = torch.nn.utils.get_total_norm(gradients(updater.generator))
    torch.testing.assert_close(metrics["grad_norm_g"], norm)


def test_one_stage_passes_the_fakes_once_through_each_network() -> None:
    config = configured(model="wgan", one_stage=True)
    updater = make_updater(config)
    passes = {"generator": 0, "discriminator": 0}

    def counting(name: str) -> object:
        def count(*arguments: object) -> None:
            passes[name] += 1

        return count

    updater.generator.register_forward_hook(counting("generator"))
    updater.discriminator.register_forward_hook(counting("discriminator"))
    updater.update_both(*real_batch(), penalize=True, measure_gradient=False)
    assert passes == {"generator": 1, "discriminator": 2}


@pytest.mark.parametrize("one_stage", [False, True])
@pytest.mark.parametrize("model", ["dcgan", "wgan"])
def test_fp16_skips_both_steps_and_halves_the_scale_when_a_gradient_overflows(
    model: str, one_stage: bool
) -> None:
    updater = make_updater(configured(model=model, precision="fp16", one_stage=one_stage))
    updater.scaler_d._init_scale = updater.scaler_g._init_scale = 2.0**60
    before = copy.deepcopy(updater.state_dict())
    real, labels = real_batch()
    if one_stage:
        updater.update_both(real, labels, penalize=True, measure_gradient=True)
    else:
        updater.update_discriminator(real, labels)
        updater.update_generator(measure_gradient=True)
    assert updater.scaler_d.get_scale() == updater.scaler_g.get_scale() == 2.0**59
    for network in ("generator", "discriminator"):
        for name, parameter in getattr(updater, network).named_parameters():
            assert torch.equal(parameter, before[network][name]), name
