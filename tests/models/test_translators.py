"""CycleGAN and pix2pix against fastgan.reference in float64: forward, gradients, whole steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgan import models, reference
from fastgan.errors import ConfigError, ImageSizeError
from fastgan.training.config import TrainConfig
from fastgan.training.model_kinds import named
from fastgan.training.networks import DataShape, build_discriminator, build_generator
from fastgan.training.optimizer_kinds import build_optimizer
from fastgan.training.updates import GANUpdater

BATCH, WIDTH = 3, 2
POOL = 50


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def assert_same(ours: Tensor, theirs: Tensor, what: str) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda m: f"{what}: {m}")


def same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Gives both the weights of theirs, other than the initial ones, in float64."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith("pool_") for key in missing.missing_keys)
    ours.double()
    theirs.double()


NETWORKS: dict[str, Any] = {
    "ResNet": lambda package: package.ResNetGenerator(
        3, WIDTH, blocks=2, **({"image_size": 16} if package is models else {})
    ),
    "U-Net": lambda package: package.UNetGenerator(1, WIDTH, 64),
    "U-Net, batch norm": lambda package: package.UNetGenerator(1, WIDTH, 16, norm="batch"),
    "PatchGAN": lambda package: package.PatchDiscriminator(3, WIDTH, 64),
    "PatchGAN, batch norm": lambda package: package.PatchDiscriminator(3, WIDTH, 32, norm="batch"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_seed_gives_the_same_network_outputs_and_gradients(name: str) -> None:
    found = []
    for package in (models, reference):
        torch.manual_seed(3)
        found.append(NETWORKS[name](package))
    ours, theirs = found
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    same_weights(ours, theirs)
    side = ours.image_size
    channels = next(theirs.parameters()).shape[1]
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        inputs = [drawn((BATCH, channels, side, side), 1).requires_grad_() for _ in range(2)]
        outputs = []
        for network, x in zip((ours, theirs), inputs, strict=True):
            torch.manual_seed(1)  # of the dropout
            outputs.append(network(x))
        assert_same(*outputs, "output")
        weights = drawn(tuple(outputs[0].shape), 2)
        for network, output in zip((ours, theirs), outputs, strict=True):
            network.zero_grad()
            (output * weights).sum().backward()
        assert_same(inputs[0].grad, inputs[1].grad, "input's gradient")
        for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert_same(a.grad, b.grad, key)


def updater_of(config: TrainConfig) -> GANUpdater:
    shape = DataShape(name="pairs", channels=1, image_size=16)
    generator, discriminator = build_generator(config, shape), build_discriminator(config, shape)
    assert config.lr_g is not None
    assert config.lr_d is not None
    found: GANUpdater = named(config.kind.updater)(
        config=config,
        generator=generator,
        discriminator=discriminator,
        optimizer_g=build_optimizer(config, generator, config.lr_g),
        optimizer_d=build_optimizer(config, discriminator, config.lr_d),
        num_classes=None,
        device=torch.device("cpu"),
        random=torch.Generator().manual_seed(7),
    )
    return found


def config_of(model: str, **changes: Any) -> TrainConfig:
    settings = {"ngf": WIDTH, "ndf": WIDTH, "batch_size": BATCH, "precision": "fp32", "out": "x"}
    return TrainConfig(model=model, **{**settings, **changes}).resolved()


def assert_weights_same(pairs: Any) -> None:
    for ours, theirs in pairs:
        for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert_same(a, b, key)


@pytest.mark.parametrize("identity", [0.5, 0.0])
def test_whole_steps_of_cyclegan_are_the_references(identity: float) -> None:
    config = config_of("cyclegan", blocks=1, identity_weight=identity)
    updater = updater_of(config)
    generator = reference.CycleGANGenerator(1, WIDTH, 1)
    discriminator = reference.CycleGANDiscriminator(1, WIDTH, 16)
    same_weights(updater.generator, generator)
    same_weights(updater.discriminator, discriminator)
    optimizers = [
        torch.optim.Adam(each.parameters(), lr=2e-4, betas=(0.5, 0.999))
        for each in (generator, discriminator)
    ]
    pools = (reference.ImagePool(POOL), reference.ImagePool(POOL))
    for ours, theirs in zip(("pool_a", "pool_b"), pools, strict=True):
        # All but four places are taken, so that the pool is full within the steps.
        old = drawn((POOL - 4, 1, 16, 16), 9)
        theirs.images = list(old)
        pool: Any = getattr(updater.discriminator, ours)
        pool.images[: POOL - 4] = old
        pool.count.fill_(POOL - 4)
    random = torch.Generator().manual_seed(7)
    for step in range(3):
        a, b = drawn((2, BATCH, 1, 16, 16), step).tanh()
        real = torch.cat([a, b], dim=1)
        found = updater.update_discriminator(real, None)
        numbers = tuple(
            (torch.rand(BATCH, generator=random), torch.rand(POOL, generator=random))
            for _ in range(2)
        )
        found |= updater.update_generator(real, measure_gradient=True)
        expected = reference.cyclegan_step(
            generator, discriminator, *optimizers, a, b, pools=pools, drawn=numbers,
            identity=identity,
        )  # fmt: skip
        for name in ("loss_d", "loss_g"):
            assert_same(found[name], getattr(expected, name), name)
        assert ("identity" in found) == (identity > 0)
        assert_weights_same(
            [(updater.generator, generator), (updater.discriminator, discriminator)]
        )


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_whole_steps_of_pix2pix_are_the_references(norm: str) -> None:
    config = config_of("pix2pix", critic_norm=norm, l1_weight=30.0)
    updater = updater_of(config)
    generator = reference.UNetGenerator(1, WIDTH, 16, norm)
    discriminator = reference.PatchDiscriminator(2, WIDTH, 16, norm)
    same_weights(updater.generator, generator)
    same_weights(updater.discriminator, discriminator)
    optimizers = [
        torch.optim.Adam(each.parameters(), lr=2e-4, betas=(0.5, 0.999))
        for each in (generator, discriminator)
    ]
    for step in range(2):
        a, b = drawn((2, BATCH, 1, 16, 16), step).tanh()
        real = torch.cat([a, b], dim=1)
        found = updater.update_discriminator(real, None)
        found |= updater.update_generator(real, measure_gradient=False)
        expected = reference.pix2pix_step(generator, discriminator, *optimizers, a, b, l1=30.0)
        for name in ("loss_d", "loss_g"):
            assert_same(found[name], getattr(expected, name), name)
        assert_weights_same(
            [(updater.generator, generator), (updater.discriminator, discriminator)]
        )


def test_a_generators_update_alone_translates_its_own_batch() -> None:
    config = config_of("cyclegan", blocks=1)
    alone, after_another = updater_of(config), updater_of(config)
    after_another.generator.load_state_dict(alone.generator.state_dict())
    real, other = drawn((2, BATCH, 2, 16, 16), 1).float()
    after_another.update_discriminator(other, None)
    alone.discriminator.load_state_dict(after_another.discriminator.state_dict())
    losses = [
        updater.update_generator(real, measure_gradient=False)["loss_g"]
        for updater in (alone, after_another)
    ]
    assert torch.equal(*losses)
    assert all(p.requires_grad for p in alone.discriminator.parameters())


def test_a_pool_shows_what_the_references_shows() -> None:
    ours, theirs = models.ImagePool(1, 2, size=5).double(), reference.ImagePool(5)
    random = torch.Generator().manual_seed(2)
    shown_again = 0
    for step, count in enumerate((1, 3, 2, 4, 1, 5, 2, 3)):
        images = drawn((count, 1, 2, 2), step)
        coins, keys = (torch.rand(n, generator=random) for n in (count, 5))
        found = ours(images, coins, keys)
        assert torch.equal(found, theirs.query(images, coins, keys))
        shown_again += int((found != images).flatten(1).any(1).sum())
        assert int(ours.count) == len(theirs.images)
        assert torch.equal(ours.images[: int(ours.count)], torch.stack(theirs.images))
    assert shown_again > 3
    # More images than places: the rest is shown as it is.
    many = drawn((8, 1, 2, 2), 9)
    found = ours(many, torch.ones(8), torch.rand(5, generator=random))
    assert torch.equal(found, many)


@pytest.mark.parametrize("model", ["cyclegan", "pix2pix"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_updates_stay_close_to_fp32(model: str, precision: str) -> None:
    losses = {}
    for name in ("fp32", precision):
        torch.manual_seed(4)
        changes = {"blocks": 1} if model == "cyclegan" else {}
        updater = updater_of(config_of(model, precision=name, **changes))
        real = drawn((BATCH, 2, 16, 16), 1).float().tanh()
        updater.update_discriminator(real, None)
        updater.update_generator(real, measure_gradient=True)
        losses[name] = float(updater.update_discriminator(real, None)["loss_d"])
        assert all(bool(p.isfinite().all()) for p in updater.generator.parameters())
        assert all(p.dtype == torch.float32 for p in updater.generator.parameters())
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.05, abs=0.02)


def test_depths_are_the_papers() -> None:
    blocks = {
        size: sum(type(each).__name__ == "ResidualBlock" for each in generator.modules())
        for size in (128, 256)
        for generator in [models.ResNetGenerator(1, 1, size)]
    }
    assert blocks == {128: 6, 256: 9}
    with torch.device("meta"):
        unet = models.UNetGenerator(3, 64, 256)
    assert len(unet.down) == len(unet.up) == 8
    dropped = ["Dropout" in str(each) for each in unet.up]
    assert dropped == [True] * 3 + [False] * 5
    widths = [each.weight.shape[0] for each in unet.down.modules() if isinstance(each, nn.Conv2d)]
    assert widths == [64, 128, 256, 512, 512, 512, 512, 512]


@pytest.mark.parametrize(("layers", "seen"), [(1, 16), (2, 34), (3, 70)])
def test_a_patch_is_as_large_as_the_paper_says(layers: int, seen: int) -> None:
    discriminator = models.PatchDiscriminator(1, 1, 128, norm="none", layers=layers)
    images = torch.zeros(1, 1, 128, 128, requires_grad=True)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.fill_(0.1)
    scores = discriminator(images)
    middle = scores.shape[-1] // 2
    scores[0, 0, middle, middle].backward()
    assert images.grad is not None
    touched = images.grad[0, 0].abs().sum(0).nonzero().flatten()
    assert int(touched[-1] - touched[0]) + 1 == seen


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ImageSizeError, match="at most 1 for images of 16 pixels"):
        models.PatchDiscriminator(image_size=16, layers=2)
    with pytest.raises(ImageSizeError, match="image_size is 100"):
        models.UNetGenerator(image_size=100)
    with pytest.raises(ConfigError, match="norm is 'layer'"):
        models.CycleGANDiscriminator(norm="layer")
    with pytest.raises(ConfigError, match="blocks"):
        models.ResNetGenerator(blocks=0)
    with pytest.raises(ImageSizeError, match="expected"):
        models.CycleGANGenerator(1, 2, 16, blocks=1)(
            torch.zeros(1, 1, 16, 16), torch.zeros(1, 3, 16, 16)
        )
