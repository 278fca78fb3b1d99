"""R1, R2 and the relativistic loss in training, against plain PyTorch in float64."""

from __future__ import annotations

import copy
import csv
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan import losses
from fastgan.errors import ConfigError
from fastgan.training import Callback, TrainConfig, Trainer
from fastgan.training.checkpoint import load_checkpoint
from fastgan.training.model_kinds import named
from fastgan.training.networks import DataShape, build_discriminator, build_generator
from fastgan.training.optimizer_kinds import build_optimizer
from fastgan.training.updates import GANUpdater

BATCH, CHANNELS, SIZE, CLASSES, NZ = 6, 1, 16, 4, 5


class InDouble(nn.Module):
    """A generator that takes the trainer's noise, which is float32, in float64."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.inner = generator.double()

    def forward(self, noise: Tensor, *condition: Tensor) -> Tensor:
        images: Tensor = self.inner(noise.double(), *condition)
        return images


def configured(**changes: object) -> TrainConfig:
    small = {"out": "unused", "nz": NZ, "ngf": 4, "ndf": 4, "batch_size": BATCH}
    return TrainConfig(**{**small, "precision": "fp32", "optimizer": "adam", **changes}).resolved()


def make_updater(config: TrainConfig) -> GANUpdater:
    torch.manual_seed(0)
    data = DataShape("random", CHANNELS, SIZE, CLASSES)
    generator = InDouble(build_generator(config, data))
    discriminator = build_discriminator(config, data).double()
    updater: GANUpdater = named(config.kind.updater)(
        config=config,
        generator=generator,
        discriminator=discriminator,
        optimizer_g=build_optimizer(config, generator, config.lr_g),
        optimizer_d=build_optimizer(config, discriminator, config.lr_d),
        num_classes=CLASSES if config.conditional else None,
        device=torch.device("cpu"),
        random=torch.Generator().manual_seed(7),
    )
    return updater


def real_batch() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(5)
    images = torch.rand(BATCH, CHANNELS, SIZE, SIZE, generator=random, dtype=torch.float64)
    return images * 2 - 1, torch.randint(CLASSES, (BATCH,), generator=random)


def draw_noise(config: TrainConfig, random: torch.Generator) -> Tensor:
    """The noise as the paper has it, from the same random stream as the trainer's."""
    if config.noise == "normal":
        z = torch.randn(BATCH * NZ, generator=random)
    else:
        z = torch.rand(BATCH * NZ, generator=random) * 2 - 1
    return z.view(BATCH, NZ, 1, 1)


def squared_norms(images: Tensor, scores: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.flatten(1).square().sum(1)


def adversarial(loss: str, x: Tensor, y: Tensor) -> Tensor:
    """The losses by hand, of real scores x and fake scores y."""
    return {
        "bce": lambda: -F.logsigmoid(x).mean() - F.logsigmoid(-y).mean(),
        "hinge": lambda: (1 - x).clamp(min=0).mean() + (1 + y).clamp(min=0).mean(),
        "least-squares": lambda: ((x - 1) ** 2).mean() / 2 + (y**2).mean() / 2,
        "relativistic": lambda: -F.logsigmoid(x - y).mean(),
        "wasserstein": lambda: y.mean() - x.mean(),
    }[loss]()


def assert_same_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    count = 0
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert a.grad is not None
        # Double backward leaves None where a parameter can't matter.
        expected = torch.zeros_like(a) if b.grad is None else b.grad
        torch.testing.assert_close(a.grad, expected, rtol=1e-9, atol=1e-11, msg=name)
        count += bool(expected.any())
    assert count > 0


PENALTIES = [(1.5, 0.0), (0.0, 0.7), (1.5, 0.7)]
LOSSES = [
    ("gan", "bce"),
    ("gan", "relativistic"),
    ("dcgan", "bce"),
    ("dcgan", "hinge"),
    ("dcgan", "least-squares"),
    ("dcgan", "relativistic"),
    ("cgan", "relativistic"),
    ("wgan-gp", "wasserstein"),
]


@pytest.mark.parametrize(("r1", "r2"), PENALTIES)
@pytest.mark.parametrize(("model", "loss"), LOSSES)
def test_a_step_with_r1_and_r2_is_that_of_plain_pytorch(
    model: str, loss: str, r1: float, r2: float
) -> None:
    every = 3
    config = configured(model=model, loss=loss, r1=r1, r2=r2, penalty_every=every)
    updater = make_updater(config)
    generator, critic = (copy.deepcopy(each) for each in (updater.generator, updater.discriminator))
    random = torch.Generator().manual_seed(7)
    real, labels = real_batch()
    condition = (labels,) if config.conditional else ()
    # The second step is of a discriminator that has been recorded before.
    for _ in range(2):
        updater.discriminator.load_state_dict(critic.state_dict())
        torch.manual_seed(1)  # dropout
        metrics = updater.update_discriminator(real, labels)

        torch.manual_seed(1)
        with torch.no_grad():
            fake = generator(draw_noise(config, random), *condition)
        critic.zero_grad()
        fake, real = (images.clone().requires_grad_() for images in (fake, real.detach()))
        y = critic(fake, *condition)
        x = critic(real, *condition)
        expected = adversarial(loss, x, y)
        terms = {
            "r1": every * r1 / 2 * squared_norms(real, x).mean(),
            "r2": every * r2 / 2 * squared_norms(fake, y).mean(),
        }
        if model == "wgan-gp":
            terms["wasserstein"] = -expected
            eps = torch.rand(BATCH, 1, 1, 1, generator=random).double()
            points = (eps * real + (1 - eps) * fake).detach().requires_grad_()
            norms = squared_norms(points, critic(points, *condition)).sqrt()
            terms["penalty"] = every * 10 * ((norms - 1) ** 2).mean()
            expected = expected + terms["penalty"]
        else:
            shown = torch.sigmoid if loss == "bce" else torch.clone
            terms |= {"d_real": shown(x).mean(), "d_fake": shown(y).mean()}
        total = expected + terms["r1"] + terms["r2"]
        total.backward()
        for name, weight in (("r1", r1), ("r2", r2)):
            if not weight:
                assert name not in metrics
                del terms[name]
        assert metrics.keys() == {*terms, "loss_d"}
        for name, value in {"loss_d": total, **terms}.items():
            assert float(metrics[name]) == pytest.approx(value.item(), rel=1e-5, abs=1e-7), name
        assert_same_gradients(updater.discriminator, critic)
        for (name, ours), theirs in zip(
            updater.discriminator.named_buffers(), critic.buffers(), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("model", ["gan", "dcgan", "wgan-gp"])
def test_updates_in_between_are_without_penalties(model: str) -> None:
    lazy = make_updater(configured(model=model, r1=1.0, r2=1.0, penalty_every=2))
    plain = make_updater(configured(model=model, gp_weight=0.0))
    torch.manual_seed(1)
    ours = lazy.update_discriminator(*real_batch(), penalize=False)
    torch.manual_seed(1)
    theirs = plain.update_discriminator(*real_batch(), penalize=False)
    assert ours.keys() == theirs.keys()
    assert not {"r1", "r2", "penalty"} & ours.keys()
    assert_same_gradients(lazy.discriminator, plain.discriminator)


@pytest.mark.parametrize("augment", ["none", "color,translation"])
@pytest.mark.parametrize(("model", "loss"), [*LOSSES, ("wgan-gp", "wasserstein")])
def test_one_stage_has_the_penalties_of_two_stages(model: str, loss: str, augment: str) -> None:
    config = configured(
        model=model, loss=loss, r1=1.5, r2=0.7, one_stage=True, augment=augment, accumulate=2
    )
    updater, apart = make_updater(config), make_updater(config)
    for each in (*updater.discriminator.modules(), *apart.discriminator.modules()):
        if isinstance(each, nn.Dropout):
            each.p = 0.0  # the passes come in another order
    together = updater.update_both(*real_batch(), penalize=True, measure_gradient=False)
    alone = apart.update_discriminator(*real_batch())
    assert together.keys() == {*alone, "loss_g"}
    for name, value in alone.items():
        assert float(together[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-7), name
    assert_same_gradients(updater.discriminator, apart.discriminator)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("model", ["gan", "dcgan", "cgan"])
def test_the_relativistic_generator_is_compared_with_the_step_s_real_images(
    model: str, accumulate: int
) -> None:
    config = configured(model=model, loss="relativistic", accumulate=accumulate)
    updater = make_updater(config)
    for each in updater.discriminator.modules():
        if isinstance(each, nn.Dropout):
            each.p = 0.0  # its masks would be others in parts
    generator, critic = (copy.deepcopy(each) for each in (updater.generator, updater.discriminator))
    real, labels = real_batch()
    metrics = updater.update_generator(real, labels, measure_gradient=True)
    noise = draw_noise(config, torch.Generator().manual_seed(7))
    total = torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(BATCH).chunk(accumulate):
        condition = (labels[rows],) if config.conditional else ()
        x = critic(real[rows], *condition)
        y = critic(generator(noise[rows], *condition), *condition)
        total = total - F.logsigmoid(y - x).mean() / accumulate
    for parameter, found in zip(
        generator.parameters(),
        torch.autograd.grad(total, list(generator.parameters())),
        strict=True,
    ):
        parameter.grad = found
    assert float(metrics["loss_g"]) == pytest.approx(total.item(), rel=1e-6)
    assert_same_gradients(updater.generator, generator)
    assert all(p.grad is None and p.requires_grad for p in updater.discriminator.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_relativistic_losses_are_their_formulas(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    real = (3 * torch.randn(17, generator=random)).to(dtype)
    fake = (3 * torch.randn(17, generator=random)).to(dtype)
    margins = (real.double() - fake.double()).tolist()
    discriminator = math.fsum(math.log1p(math.exp(-m)) for m in margins) / 17
    generator = math.fsum(math.log1p(math.exp(m)) for m in margins) / 17
    ours = losses.PLAYERS_LOSSES["relativistic"]
    assert ours[0](real, fake).item() == pytest.approx(discriminator, rel=1e-6)
    assert ours[1](real, fake).item() == pytest.approx(generator, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "wgan", "r1": 1.0}, "^r1: wgan has no use"),
        ({"model": "wgan", "r2": 0.5}, "^r2: wgan has no use"),
        ({"r1": -1.0}, "^r1: expected at least 0"),
        ({"r2": math.inf}, "^r2: expected a finite number"),
        ({"model": "wgan-gp", "loss": "relativistic"}, "^loss: wgan-gp has critics"),
        ({"r1": 1.0, "sync_batch_norm": True}, "^sync_batch_norm: .*another critic_norm"),
        ({"model": "cgan", "r2": 1.0, "sync_batch_norm": True}, "^sync_batch_norm: .*r1 and r2"),
    ],
)
def test_penalties_are_refused_where_they_do_not_apply(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(**changes)


def test_what_a_penalty_reads_is_not_called_ignored() -> None:
    given = ["penalty_every", "r1", "r2"]
    assert configured(model="dcgan").ignored(given) == ["penalty_every"]
    assert configured(model="dcgan", r1=1.0).ignored(given) == []
    assert configured(model="wgan").ignored(given) == given


def test_a_run_with_penalties_records_them_and_resumes_to_the_bit(tmp_path: Path) -> None:
    def config(out: Path) -> TrainConfig:
        return TrainConfig(
            out=str(out),
            model="cgan",
            loss="relativistic",
            r1=1.0,
            r2=0.5,
            penalty_every=2,
            n_critic=2,
            precision="fp32",
            device="cpu",
            steps=6,
            batch_size=8,
            ngf=4,
            ndf=4,
            nz=NZ,
            log_every=2,
            sample_every=100,
            checkpoint_every=100,
            n_samples=10,
        )

    class StopAtThree(Callback):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == 3:
                trainer.request_stop("test")

    whole = Trainer(config(tmp_path / "whole")).run()
    assert Trainer(config(tmp_path / "parts"), callbacks=[StopAtThree()]).run().step == 3
    parts = Trainer(TrainConfig(out=str(tmp_path / "parts")), resume=True).run()
    ours, theirs = (load_checkpoint(run.checkpoint) for run in (parts, whole))
    for network in ("generator", "discriminator"):
        for name, value in theirs[network].items():
            assert torch.equal(ours[network][name], value), name
    with (tmp_path / "whole" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    for row in rows:
        assert float(row["r1"]) > 0
        assert float(row["r2"]) > 0
        assert row["penalty"] == row["wasserstein"] == ""
