"""ACGAN and InfoGAN against the papers' sums, in float64."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan import load_generator, models, reference
from fastgan.cli import main
from fastgan.errors import ConfigError
from fastgan.training import Trainer
from fastgan.training.config import TrainConfig
from fastgan.training.model_kinds import named
from fastgan.training.networks import DataShape, build_discriminator, build_generator
from fastgan.training.optimizer_kinds import build_optimizer
from fastgan.training.updates import GANUpdater

MODELS = ("acgan", "infogan")
BATCH, SIZE, CLASSES, NZ, WIDTH, CODES = 4, 16, 3, 5, 4, 2


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("codes", [None, 0, CODES])
def test_scores_are_the_source_s_logit_and_likelihoods(codes: int | None) -> None:
    name = "ACGANDiscriminator" if codes is None else "InfoGANDiscriminator"
    given = {} if codes is None else {"codes": codes}
    ours, theirs = (
        getattr(package, name)(1, WIDTH, SIZE, num_classes=CLASSES, **given).double()
        for package in (models, reference)
    )
    theirs.load_state_dict(ours.state_dict())
    labels = torch.tensor([0, 2, 1, 2])
    inputs = [drawn((BATCH, 1, SIZE, SIZE), 1).requires_grad_() for _ in range(2)]
    continuous = [] if codes is None else [drawn((BATCH, codes), 3)]
    found, outputs = ours(inputs[0], labels, *continuous), theirs(inputs[1])
    of_classes = outputs[:, 1 : 1 + CLASSES]
    expected = [outputs[:, 0], -F.cross_entropy(of_classes, labels, reduction="none")]
    if codes is not None:
        mean, log_deviation = outputs[:, 1 + CLASSES :].chunk(2, 1)
        normal = torch.distributions.Normal(mean, log_deviation.exp())
        expected.append(normal.log_prob(*continuous).sum(1))
        means = reference.mutual_information(outputs, labels, *continuous)
        torch.testing.assert_close(found[:, 1:].mean(0), torch.stack(means))
    expected = torch.stack(expected, 1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = drawn(tuple(found.shape), 2)
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
    network = models.InfoGANDiscriminator(1, 1, SIZE, num_classes=CLASSES, codes=CODES)
    for codes in ((), (torch.zeros(2, 1),)):
        with pytest.raises(ValueError, match=r"got codes: .*; expected \(2, 2\)"):
            network(images, torch.tensor([0, 1]), *codes)
    with pytest.raises(ValueError, match="codes is -1"):
        models.InfoGANDiscriminator(num_classes=CLASSES, codes=-1)
    for model, setting in itertools.product(MODELS, ({"r1": 1.0}, {"projection": True})):
        with pytest.raises(ConfigError, match=f"{next(iter(setting))}: {model} has no use for it"):
            TrainConfig(model=model, out="x", **setting).resolved()
    with pytest.raises(ConfigError, match="codes: expected at most nz, 1, got 2"):
        TrainConfig(model="infogan", out="x", nz=1).resolved()


class InDouble(torch.nn.Module):
    """A generator that takes the trainer's noise, which is float32, in float64."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        images: Tensor = self.inner(noise.double(), labels)
        return images


@pytest.mark.parametrize("model", MODELS)
def test_whole_steps_are_the_references(model: str) -> None:
    settings = {"nz": NZ, "ngf": WIDTH, "ndf": WIDTH, "batch_size": BATCH, "precision": "fp32"}
    config = TrainConfig(model=model, out="x", **settings).resolved()
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
    of_codes = {"codes": CODES} if model == "infogan" else {}
    their_discriminator = getattr(reference, type(discriminator).__name__)(
        1, WIDTH, SIZE, num_classes=CLASSES, **of_codes
    )
    theirs = (their_generator.double(), their_discriminator.double())
    for network, other in zip((generator, discriminator), theirs, strict=True):
        other.load_state_dict(network.state_dict())
    optimizer_g, optimizer_d = (
        torch.optim.Adam(each.parameters(), lr=lr, betas=(0.5, 0.999))
        for each, lr in zip(theirs, (1e-3 if of_codes else 2e-4, 2e-4), strict=True)
    )
    their_step = getattr(reference, f"{model}_discriminator_step")
    their_generator_step = getattr(reference, f"{model}_generator_step")
    random = torch.Generator().manual_seed(7)

    def noise() -> dict[str, Tensor]:
        z = (torch.rand(BATCH * NZ, generator=random) * 2 - 1).view(BATCH, NZ)
        return {"codes": z[:, :CODES], "noise": z[:, CODES:]} if of_codes else {"noise": z}

    def classes() -> Tensor:
        return torch.randint(CLASSES, (BATCH,), generator=random)

    labels = torch.tensor([0, 1, 2, 1])
    for step in range(2):
        real = drawn((BATCH, 1, SIZE, SIZE), step).tanh()
        ours = updater.update_discriminator(real, labels)
        # InfoGAN's labels are drawn for the fakes of both updates.
        theirs_labels = classes() if of_codes else labels
        found = their_step(*theirs, optimizer_d, real, labels=theirs_labels, **noise())
        expected = {"loss_d": found.loss, "d_real": found.d_real, "d_fake": found.d_fake}
        for name, value in expected.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-6, check_dtype=False)
        ours = updater.update_generator(measure_gradient=False)
        labels_g = classes()
        loss = their_generator_step(*theirs, optimizer_g, labels=labels_g, **noise())
        torch.testing.assert_close(ours["loss_g"], loss, rtol=1e-9, atol=1e-9)
        for network, other in zip((generator, discriminator), theirs, strict=True):
            for (name, a), b in zip(
                network.state_dict().items(), other.state_dict().values(), strict=True
            ):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=name)


def test_infogan_needs_no_labels_and_walks_along_a_code(tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = TrainConfig(
        model="infogan", out=str(out), steps=1, batch_size=4, nz=4, ngf=2, ndf=2, categories=3
    )
    Trainer(config, source=drawn((6, 1, SIZE, SIZE), 0).clamp(-1, 1).float()).run()
    generator = load_generator(out)
    sheet = generator.code_walk(1, rows=4, columns=5, seed=3)
    z = generator.noise(4, seed=3)[3:].repeat(5, 1, 1, 1)
    z[:, 1, 0, 0] = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    with torch.no_grad():
        last = generator.module(z, torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(sheet[15:], last)
    assert main(["sample", str(out), "--code-walk=0", f"--out={tmp_path / 'a.png'}"]) == 0
    assert main(["sample", str(out), "--class=2", "--n=2", f"--out={tmp_path / 'b.png'}"]) == 0
    assert (tmp_path / "a.png").exists()
    for more in (["--code-walk=2"], ["--code-walk=0", "--class=1"], ["--code-walk=0", "--n=3"]):
        assert main(["sample", str(out), *more, f"--out={tmp_path / 'c.png'}"]) == 2
    assert not (tmp_path / "c.png").exists()
