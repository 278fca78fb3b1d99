"""ACGAN against the paper's sums, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan import models, reference
from fastgan.errors import ConfigError
from fastgan.training.config import TrainConfig
from fastgan.training.model_kinds import named
from fastgan.training.networks import DataShape, build_discriminator, build_generator
from fastgan.training.optimizer_kinds import build_optimizer
from fastgan.training.updates import GANUpdater

BATCH, SIZE, CLASSES, NZ, WIDTH = 4, 16, 3, 5, 4


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_scores_are_the_source_s_logit_and_the_label_s_likelihood() -> None:
    ours = models.ACGANDiscriminator(1, WIDTH, SIZE, num_classes=CLASSES).double()
    theirs = reference.ACGANDiscriminator(1, WIDTH, SIZE, num_classes=CLASSES).double()
    theirs.load_state_dict(ours.state_dict())
    labels = torch.tensor([0, 2, 1, 2])
    inputs = [drawn((BATCH, 1, SIZE, SIZE), 1).requires_grad_() for _ in range(2)]
    found, outputs = ours(inputs[0], labels), theirs(inputs[1])
    likelihood = -F.cross_entropy(outputs[:, 1:], labels, reduction="none")
    expected = torch.stack([outputs[:, 0], likelihood], 1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = drawn((BATCH, 2), 2)
    for output in (found, expected):
        (output * weights).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-11, atol=1e-11)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-11, atol=1e-11)


def test_unfit_arguments_are_refused() -> None:
    network = models.ACGANDiscriminator(1, 1, SIZE, num_classes=CLASSES)
    images = torch.zeros(2, 1, SIZE, SIZE)
    with pytest.raises(ValueError, match="got no labels"):
        network(images)
    with pytest.raises(ValueError, match="got label 3"):
        network(images, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"expected \(N, 1, 16, 16\)"):
        network(torch.zeros(2, 3, SIZE, SIZE), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="num_classes is 0"):
        models.ACGANDiscriminator(num_classes=0)
    for setting in ({"r1": 1.0}, {"projection": True}):
        with pytest.raises(ConfigError, match=f"{next(iter(setting))}: acgan has no use for it"):
            TrainConfig(model="acgan", out="x", **setting).resolved()


class InDouble(torch.nn.Module):
    """A generator that takes the trainer's noise, which is float32, in float64."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        images: Tensor = self.inner(noise.double(), labels)
        return images


def test_whole_steps_are_the_references() -> None:
    settings = {"nz": NZ, "ngf": WIDTH, "ndf": WIDTH, "batch_size": BATCH, "precision": "fp32"}
    config = TrainConfig(model="acgan", out="x", **settings).resolved()
    data = DataShape("random", 1, SIZE, CLASSES)
    generator = InDouble(build_generator(config, data).double())
    discriminator = build_discriminator(config, data).double()
    updater: GANUpdater = named(config.kind.updater)(
        config=config,
        generator=generator,
        discriminator=discriminator,
        optimizer_g=build_optimizer(config, generator, config.lr_g),
        optimizer_d=build_optimizer(config, discriminator, config.lr_d),
        num_classes=CLASSES,
        device=torch.device("cpu"),
        random=torch.Generator().manual_seed(7),
    )
    their_generator = InDouble(reference.DCGANGenerator(NZ, WIDTH, 1, SIZE, num_classes=CLASSES))
    their_discriminator = reference.ACGANDiscriminator(1, WIDTH, SIZE, num_classes=CLASSES)
    theirs = (their_generator.double(), their_discriminator.double())
    for network, other in zip((generator, discriminator), theirs, strict=True):
        other.load_state_dict(network.state_dict())
    optimizer_g, optimizer_d = (
        torch.optim.Adam(each.parameters(), lr=2e-4, betas=(0.5, 0.999)) for each in theirs
    )
    random = torch.Generator().manual_seed(7)

    def noise() -> Tensor:
        return (torch.rand(BATCH * NZ, generator=random) * 2 - 1).view(BATCH, NZ, 1, 1)

    labels = torch.tensor([0, 1, 2, 1])
    for step in range(2):
        real = drawn((BATCH, 1, SIZE, SIZE), step).tanh()
        ours = updater.update_discriminator(real, labels)
        found = reference.acgan_discriminator_step(
            *theirs, optimizer_d, real, noise(), labels=labels
        )
        expected = {"loss_d": found.loss, "d_real": found.d_real, "d_fake": found.d_fake}
        for name, value in expected.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-6, check_dtype=False)
        ours = updater.update_generator(measure_gradient=False)
        classes = torch.randint(CLASSES, (BATCH,), generator=random)
        loss = reference.acgan_generator_step(*theirs, optimizer_g, noise(), labels=classes)
        torch.testing.assert_close(ours["loss_g"], loss, rtol=1e-9, atol=1e-9)
        for network, other in zip((generator, discriminator), theirs, strict=True):
            for (name, a), b in zip(
                network.state_dict().items(), other.state_dict().values(), strict=True
            ):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=name)
