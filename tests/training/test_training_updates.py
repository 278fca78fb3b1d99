"""The trainer's updates against the papers' steps in fastgan.reference.

tests/models/test_families.py has those of SNGAN, BigGAN and R3GAN.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fastgan import reference
from fastgan.training.checkpoint import restore_optimizer
from fastgan.training.config import MODELS, TrainConfig
from fastgan.training.model_kinds import MODEL_KINDS, named
from fastgan.training.networks import DataShape, build_discriminator, build_generator
from fastgan.training.optimizer_kinds import (
    OPTIMIZER_KINDS,
    build_optimizer,
    build_torch_optimizer,
)
from fastgan.training.updates import GANUpdater

BATCH, CHANNELS, SIZE, CLASSES = 8, 1, 16, 4


def make_updater(config: TrainConfig, seed: int) -> GANUpdater:
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


def draw_noise(config: TrainConfig, random: torch.Generator) -> Tensor:
    """The noise as the paper has it, from the same random stream as the trainer's."""
    if config.noise == "normal":
        z = torch.randn(BATCH * config.nz, generator=random)
    else:
        z = torch.rand(BATCH * config.nz, generator=random) * 2 - 1
    return z.view(BATCH, config.nz, 1, 1)


def torch_optimizer(config: TrainConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The papers' optimisers, by hand."""
    return {
        "gan": lambda: torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.5),
        "dcgan": lambda: torch.optim.Adam(module.parameters(), lr=2e-4, betas=(0.5, 0.999)),
        "cgan": lambda: torch.optim.Adam(module.parameters(), lr=2e-4, betas=(0.5, 0.999)),
        "wgan": lambda: torch.optim.RMSprop(module.parameters(), lr=5e-5),
        "wgan-gp": lambda: torch.optim.Adam(module.parameters(), lr=1e-4, betas=(0.0, 0.9)),
    }[config.model]()


def assert_same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        # Adam divides by the root of a squared gradient, which near zero turns a rounding
        # difference into a difference of up to the learning rate; hence the absolute term.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("conditional", [False, True], ids=["plain", "conditional"])
@pytest.mark.parametrize("model", ["gan", "dcgan", "cgan", "wgan", "wgan-gp"])
def test_three_iterations_match_the_reference_steps(
    model: str, conditional: bool, seed: int
) -> None:
    config = TrainConfig(
        model=model, out="unused", nz=5, ngf=4, ndf=4, conditional=conditional, batch_size=BATCH
    ).resolved()
    updater = make_updater(config, seed)
    generator = copy.deepcopy(updater.generator)
    discriminator = copy.deepcopy(updater.discriminator)
    optimizer_g = torch_optimizer(config, generator)
    optimizer_d = torch_optimizer(config, discriminator)
    random = torch.Generator().manual_seed(seed)
    data = torch.Generator().manual_seed(seed + 100)

    for _ in range(3):
        real = torch.rand(BATCH, CHANNELS, SIZE, SIZE, generator=data) * 2 - 1
        labels = torch.randint(CLASSES, (BATCH,), generator=data)
        # Dropout, where there is any, draws from the global generator.
        torch.manual_seed(seed)
        ours = updater.update_discriminator(real, labels)
        given = labels if config.conditional else None
        torch.manual_seed(seed)
        noise = draw_noise(config, random)
        if model == "wgan-gp":
            theirs = reference.wgan_gp_critic_step(
                generator,
                discriminator,
                optimizer_d,
                real,
                noise,
                eps=torch.rand(BATCH, 1, 1, 1, generator=random),
                labels=given,
            )
            expected = {"wasserstein": theirs.wasserstein, "penalty": theirs.penalty}
        elif model == "wgan":
            theirs = reference.wgan_critic_step(
                generator, discriminator, optimizer_d, real, noise, clip=0.01, labels=given
            )
            expected = {"wasserstein": theirs.wasserstein}
        else:
            theirs = reference.discriminator_step(
                generator, discriminator, optimizer_d, real, noise, labels=given, output="logits"
            )
            expected = {"d_real": theirs.real_score, "d_fake": theirs.fake_score}
        for name, value in {"loss_d": theirs.loss, **expected}.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)

        torch.manual_seed(seed)
        ours = updater.update_generator(measure_gradient=True)
        torch.manual_seed(seed)
        given = torch.randint(CLASSES, (BATCH,), generator=random) if config.conditional else None
        noise = draw_noise(config, random)
        if config.is_wasserstein:
            theirs = reference.wgan_generator_step(
                generator, discriminator, optimizer_g, noise, labels=given
            )
        else:
            theirs = reference.generator_step(
                generator, discriminator, optimizer_g, noise, labels=given, output="logits"
            )
        torch.testing.assert_close(ours["loss_g"], theirs.loss, rtol=1e-4, atol=1e-5)
        squares = sum(float(p.grad.double().square().sum()) for p in generator.parameters())
        assert float(ours["grad_norm_g"]) == pytest.approx(squares**0.5, rel=1e-3)
        assert_same_weights(updater.generator, generator)
        assert_same_weights(updater.discriminator, discriminator)


def test_clip_before_is_the_authors_loop() -> None:
    """Clamp, forward, backward, step: as main.py of WassersteinGAN has it."""
    config = TrainConfig(
        model="wgan", out="unused", nz=5, ngf=4, ndf=4, batch_size=BATCH, lr=1e-3, clip=0.01
    )
    config = TrainConfig(**{**config.to_dict(), "clip_when": "before"}).resolved()
    updater = make_updater(config, 0)
    generator, critic = copy.deepcopy(updater.generator), copy.deepcopy(updater.discriminator)
    optimizer = torch.optim.RMSprop(critic.parameters(), lr=1e-3)
    random = torch.Generator().manual_seed(0)
    for _ in range(3):
        real = torch.rand(BATCH, CHANNELS, SIZE, SIZE) * 2 - 1
        updater.update_discriminator(real, None)

        for p in critic.parameters():
            p.data.clamp_(-0.01, 0.01)
        critic.zero_grad()
        with torch.no_grad():
            fake = generator(draw_noise(config, random))
        loss = critic(fake).mean() - critic(real).mean()
        loss.backward()
        optimizer.step()
    for (name, ours), theirs in zip(
        updater.discriminator.named_parameters(), critic.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)
    # After its own step a weight may lie outside again, which tells this convention from the other.
    assert max(float(p.detach().abs().max()) for p in critic.parameters()) > 0.01


def test_clip_after_leaves_every_weight_within() -> None:
    config = TrainConfig(
        model="wgan", out="unused", nz=5, ngf=4, ndf=4, batch_size=BATCH, lr=1e-3, clip=0.01
    ).resolved()
    updater = make_updater(config, 0)
    updater.update_discriminator(torch.rand(BATCH, CHANNELS, SIZE, SIZE) * 2 - 1, None)
    limit = max(float(p.detach().abs().max()) for p in updater.discriminator.parameters())
    assert limit <= 0.01 * (1 + 1e-6)


def test_generator_update_leaves_the_discriminator_trainable_and_without_gradients() -> None:
    config = TrainConfig(model="dcgan", out="unused", nz=5, ngf=4, ndf=4, batch_size=BATCH)
    updater = make_updater(config.resolved(), 0)
    before = copy.deepcopy(dict(updater.discriminator.named_parameters()))
    updater.update_generator(measure_gradient=False)
    for name, parameter in updater.discriminator.named_parameters():
        assert parameter.requires_grad
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


class SharingDiscriminator(nn.Module):
    """Normalises its weight once for both passes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS * SIZE**2, 1))
        self.direction: Tensor | None = None
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.direction is None:
            self.direction = self.weight / self.weight.norm()
        self.seen.append(images.detach())
        return images.flatten(1) @ self.direction


def test_a_discriminator_may_share_results_between_its_passes() -> None:
    config = TrainConfig(model="gan", out="unused", nz=5, batch_size=BATCH).resolved()
    updater = make_updater(config, 0)
    updater.discriminator = discriminator = SharingDiscriminator()
    updater.optimizer_d = torch.optim.SGD(discriminator.parameters(), lr=1.0)
    before = discriminator.weight.detach().clone().requires_grad_()
    updater.update_discriminator(torch.randn(BATCH, CHANNELS, SIZE, SIZE), None)
    direction = before / before.norm()
    loss = updater.discriminator_loss(*(x.flatten(1) @ direction for x in discriminator.seen))
    (gradient,) = torch.autograd.grad(loss, before)
    torch.testing.assert_close(discriminator.weight, before - gradient)


@pytest.mark.parametrize("model", [each for each in MODELS if not MODEL_KINDS[each].pairs])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_updates_stay_close_to_fp32(model: str, precision: str) -> None:
    losses = {}
    for name in ("fp32", precision):
        config = TrainConfig(
            model=model, out="unused", nz=5, ngf=4, ndf=4, batch_size=BATCH, precision=name
        )
        updater = make_updater(config.resolved(), 3)
        torch.manual_seed(0)
        real = torch.rand(BATCH, CHANNELS, SIZE, SIZE) * 2 - 1
        labels = torch.arange(BATCH) % CLASSES
        updater.update_discriminator(real, labels)
        losses[name] = float(updater.update_discriminator(real, labels)["loss_d"])
        updater.update_generator(real, labels, measure_gradient=True)
        assert all(bool(p.isfinite().all()) for p in updater.generator.parameters())
        assert all(p.dtype == torch.float32 for p in updater.generator.parameters())
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.05, abs=0.02)


@pytest.mark.parametrize("kind", OPTIMIZER_KINDS)
def test_every_optimizer_has_torchs_settings_and_takes_its_saved_state(kind):
    options = {"beta1": 0.3, "beta2": 0.7, "weight_decay": 0.2}
    config = TrainConfig(out="x", optimizer=kind, **options).resolved()
    assert set(config.ignored(options)) == options.keys() - OPTIMIZER_KINDS[kind].reads
    module = nn.Linear(2, 2)
    optimizer = build_optimizer(config, module, 0.5)
    theirs = build_torch_optimizer(config, module, 0.5).param_groups[0]
    settings = optimizer.param_groups[0]
    assert all(settings[key] == value for key, value in theirs.items() if key != "fused")
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    other = build_optimizer(config, module, 0.5)
    restore_optimizer("optimizer", kind, other, saved, 1)
    for param, state in optimizer.state.items():
        assert all(torch.equal(other.state[param][key], value) for key, value in state.items())
    next(iter(saved["state"].values())).popitem()
    with pytest.raises(ValueError, match="state of another optimiser"):
        restore_optimizer("optimizer", kind, other, saved, 1)
