"""Healthy and failing training runs, with the health monitor's expected warnings.

A healthy run must get no warning. A failing one must get the right warning within a number of
steps, and no other. Networks and data are small: a run takes seconds; ``make attack`` trains all.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from injections import RESULT
from torch import Tensor, nn

from fastgan.data import ImageSource, MemorySource
from fastgan.errors import DataError
from fastgan.training import Callback, TrainConfig, Trainer
from fastgan.training.result import TrainingDivergedError

DIVERGENCE, VANISHING, COLLAPSE = "divergence", "vanishing gradients", "mode collapse"
#: What data that can't be trained on are refused for.
DATA = "data"

SMALL: dict[str, Any] = {
    "nz": 16, "ngf": 8, "ndf": 8, "batch_size": 16, "n_critic": 1, "precision": "fp32",
    "log_every": 5, "sample_every": 50, "n_samples": 4, "steps": 300,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run of 300 steps and what is wrong with it.

    Attributes:
        name: in words.
        sick: names of its trouble, each of them right; none for a healthy run.
        settings: beyond :data:`SMALL`.
        data: makes the images; None for digits.
        sicken: does harm before the first step.
        within: steps in which its trouble is named.
    """

    name: str
    sick: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    data: Callable[[], ImageSource] | None = None
    sicken: Callable[[Trainer], None] | None = None
    within: int = 300


@dataclass
class Heard(Callback):
    """What a run said."""

    run: Run
    said: list[tuple[int, str]] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)

    def on_start(self, trainer: Trainer) -> None:
        if self.run.sicken is not None:
            self.run.sicken(trainer)

    def on_warning(self, trainer: Trainer, text: str) -> None:
        self.said.append((trainer.step, text))

    def on_metrics(self, trainer: Trainer, row: Any) -> None:
        self.rows.append(dict(row))

    @property
    def names(self) -> list[str]:
        """What it was called, in order."""
        return [text.partition(":")[0] for _, text in self.said]

    @property
    def right(self) -> bool:
        """Whether it heard what it must, in time, and nothing else."""
        if not self.run.sick:
            return not self.said
        return (
            bool(self.said)
            and self.said[0][0] <= self.run.within
            and all(name in self.run.sick for name in self.names)
        )


def trained(run: Run) -> Heard:
    """Trains, and listens."""
    heard = Heard(run)
    step = 0
    with tempfile.TemporaryDirectory(prefix="fastgan-health-") as folder, torch.random.fork_rng():
        config = TrainConfig(out=str(Path(folder) / "run"), **{**SMALL, **run.settings})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                source = None if run.data is None else run.data()
                trainer = Trainer(config, source=source, callbacks=[heard])
                trainer.run()
            except TrainingDivergedError as error:
                step = trainer.step
                heard.said.append((step, f"{DIVERGENCE}: {error}"))
            except DataError as error:
                heard.said.append((step, f"{DATA}: {error}"))
    return heard


# --- Data -----------------------------------------------------------------------------------------


def _grid() -> tuple[Tensor, Tensor]:
    line = torch.linspace(-1, 1, 16)
    return torch.meshgrid(line, line, indexing="ij")


def blobs(channels: int = 1) -> ImageSource:
    """A bright spot anywhere, on black."""
    random = torch.Generator().manual_seed(0)
    y, x = _grid()
    centre = torch.rand(500, channels, 2, 1, 1, generator=random) * 1.4 - 0.7
    squares = (y - centre[:, :, 0]) ** 2 + (x - centre[:, :, 1]) ** 2
    return MemorySource("blobs", 2 * torch.exp(-8 * squares) - 1)


def stripes() -> ImageSource:
    """Waves of any direction and length."""
    random = torch.Generator().manual_seed(0)
    y, x = _grid()
    angle, length, phase = torch.rand(3, 500, 1, 1, 1, generator=random)
    along = torch.cos(3.14 * angle) * x + torch.sin(3.14 * angle) * y
    return MemorySource("stripes", torch.sin(along * (3 + 6 * length) + 6.28 * phase))


def shapes() -> ImageSource:
    """Squares and discs of any size and place, labelled."""
    random = torch.Generator().manual_seed(0)
    y, x = _grid()
    at = torch.rand(500, 2, 1, 1, generator=random) - 0.5
    size = torch.rand(500, 1, 1, generator=random) * 0.3 + 0.3
    dy, dx = (y - at[:, 0]).abs(), (x - at[:, 1]).abs()
    labels = torch.arange(500) % 2
    inside = torch.where(
        labels.view(-1, 1, 1) == 0, torch.maximum(dy, dx) < size, dy.hypot(dx) < size
    )
    images = torch.where(inside, 1.0, -1.0).unsqueeze(1)
    return MemorySource("shapes", images, labels=labels, class_names=["square", "disc"])


def noise() -> ImageSource:
    """Pixels that have nothing to do with each other."""
    random = torch.Generator().manual_seed(0)
    return MemorySource("noise", torch.rand(500, 1, 16, 16, generator=random) * 2 - 1)


def constant() -> ImageSource:
    """The same image, always."""
    return MemorySource("constant", torch.full((500, 1, 16, 16), 0.25))


def spoilt() -> ImageSource:
    """Blobs, one of which has a pixel of NaN."""
    images = blobs().images.clone()
    images[77, 0, 3, 3] = float("nan")
    return MemorySource("spoilt", images)


# --- Harm -----------------------------------------------------------------------------------------


def _convolutions(network: nn.Module) -> list[Any]:
    return [
        module
        for module in network.modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    ]


def _hook(network: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    network.register_forward_hook(lambda module, given, output: change(output))


def generator_ignores_noise(trainer: Trainer) -> None:
    """Every noise is the first of its batch."""
    for generator in (trainer.updater.generator, trainer.ema.module):  # type: ignore[union-attr]
        generator.register_forward_pre_hook(
            lambda module, given: (given[0][:1].expand_as(given[0]), *given[1:])
        )


def generator_has_four_images(trainer: Trainer) -> None:
    """Noise is one of four."""
    for generator in (trainer.updater.generator, trainer.ema.module):  # type: ignore[union-attr]
        generator.register_forward_pre_hook(
            lambda module, given: (
                given[0][:4].repeat(len(given[0]) // 4 + 1, 1, 1, 1)[: len(given[0])],
                *given[1:],
            )
        )


def generator_is_saturated(trainer: Trainer) -> None:
    """The last layer pushes tanh to where its slope is zero."""
    for generator in (trainer.updater.generator, trainer.ema.module):  # type: ignore[union-attr]
        last = _convolutions(generator)[-1]
        with torch.no_grad():
            last.weight.mul_(1e4)
        _hook(generator, lambda images: (images * 1e3).clamp(-1, 1))


def generator_is_dead(trainer: Trainer) -> None:
    """Its last layer's input is zero."""
    for generator in (trainer.updater.generator, trainer.ema.module):  # type: ignore[union-attr]
        _convolutions(generator)[-1].register_forward_pre_hook(
            lambda module, given: (given[0] * 0,)
        )


def critic_is_blind(trainer: Trainer) -> None:
    """Scores don't depend on the images."""
    _hook(trainer.updater.discriminator, lambda scores: scores * 0)


def critic_has_dead_units(trainer: Trainer) -> None:
    """All units of the first layer are off."""
    first = _convolutions(trainer.updater.discriminator)[0]
    first.register_forward_hook(lambda module, given, output: output * 0)


def critic_fades(trainer: Trainer) -> None:
    """What the generator hears fades from step 100 on."""

    def fade(gradient: Tensor) -> Tensor:
        return gradient * (1.0 if trainer.step < 100 else 1e-6)

    trainer.updater.generator.register_forward_hook(
        lambda module, given, images: (
            images.register_hook(fade) and None if images.requires_grad else None
        )
    )


def critic_grows(trainer: Trainer) -> None:
    """Scores grow by a tenth with each step."""
    _hook(trainer.updater.discriminator, lambda scores: scores * 1.1**trainer.step)


def weights_become_nan(trainer: Trainer) -> None:
    """A layer's weights are NaN from step 40 on."""

    def spoil(module: nn.Module, given: Any) -> None:
        if trainer.step == 40:
            with torch.no_grad():
                _convolutions(module)[0].weight.fill_(float("nan"))

    trainer.updater.generator.register_forward_pre_hook(spoil)


def images_become_nan(trainer: Trainer) -> None:
    """They were good when they were looked at."""
    trainer.source.images.fill_(float("nan"))


# --- Runs -----------------------------------------------------------------------------------------


def _run(name: str, *sick: str, data: Any = None, sicken: Any = None, within: int = 300,
         **settings: Any) -> Run:  # fmt: skip
    return Run(name, sick, settings, data, sicken, within)


_FAST = {"lr": 1e-3, "beta1": 0.5}

HEALTHY = (
    _run("dcgan", model="dcgan"),
    _run("dcgan, faster", model="dcgan", lr=1e-3),
    _run("dcgan, hinge", model="dcgan", loss="hinge"),
    _run("dcgan, least squares", model="dcgan", loss="least-squares"),
    _run("dcgan, relativistic with r1 and r2", model="dcgan", loss="relativistic", r1=1, r2=1),
    _run("dcgan, augmented", model="dcgan", augment="color,translation,cutout"),
    _run("dcgan, decaying rate", model="dcgan", lr=1e-3, lr_decay="linear"),
    _run("dcgan, other seed", model="dcgan", seed=5),
    _run("gan, paper", model="gan"),
    _run("gan, Adam", model="gan", optimizer="adam", lr=2e-4),
    _run("cgan", model="cgan"),
    _run("cgan on shapes", model="cgan", data=shapes),
    _run("wgan", model="wgan"),
    _run("wgan, faster", model="wgan", lr=5e-4, n_critic=2),
    _run("wgan-gp", model="wgan-gp"),
    _run("wgan-gp, faster", model="wgan-gp", **_FAST),
    _run("wgan-gp on blobs", model="wgan-gp", data=blobs, **_FAST),
    _run("wgan-gp on stripes", model="wgan-gp", data=stripes, **_FAST),
    _run("wgan-gp on noise in colour", model="wgan-gp", data=noise, **_FAST),
    _run("dcgan on coloured blobs", model="dcgan", data=lambda: blobs(3)),
)

SICK = (
    _run("wgan-gp, rate 10", DIVERGENCE, model="wgan-gp", lr=10.0),
    _run("wgan-gp, rate 1", DIVERGENCE, model="wgan-gp", lr=1.0),
    _run("wgan-gp, rate 1e6", DIVERGENCE, model="wgan-gp", lr=1e6),
    _run("wgan-gp without its penalty", DIVERGENCE, model="wgan-gp", gp_weight=0.0, lr=0.02),
    _run("wgan-gp, tiny penalty", DIVERGENCE, model="wgan-gp", gp_weight=1e-6, lr=0.02),
    _run("wgan-gp without penalty, layer norm", DIVERGENCE, model="wgan-gp", gp_weight=0.0,
         lr=0.05, critic_norm="layer"),
    _run("wgan-gp, first moment 0.99, rate 0.3", DIVERGENCE, model="wgan-gp", lr=0.3, beta1=0.99),
    _run("wgan, clip 100, rate 1", DIVERGENCE, model="wgan", clip=100.0, lr=1.0,
         critic_norm="none"),
    _run("dcgan, rate 10", DIVERGENCE, model="dcgan", lr=10.0),
    _run("gan, rate 1000", DIVERGENCE, model="gan", lr=1000.0),
    _run("least squares, rate 3", VANISHING, COLLAPSE, model="dcgan", loss="least-squares",
         lr=3.0),
    _run("scores that grow", DIVERGENCE, model="wgan-gp", sicken=critic_grows),
    _run("a weight becomes NaN", DIVERGENCE, sicken=weights_become_nan, within=60),
    _run("images become NaN", DIVERGENCE, data=blobs, sicken=images_become_nan, within=10),
    _run("a discriminator that wins", VANISHING, model="dcgan", lr_d=2e-3, lr_g=1e-6),
    _run("a perceptron that wins", VANISHING, model="gan", lr_d=0.5, lr_g=1e-6),
    _run("a conditional one that wins", VANISHING, model="cgan", lr_d=2e-3, lr_g=1e-6),
    _run("a winner by least squares", VANISHING, model="dcgan", loss="least-squares", lr_d=2e-3,
         lr_g=1e-6),
    _run("a winner by the hinge", VANISHING, model="dcgan", loss="hinge", lr_d=2e-3, lr_g=1e-6),
    _run("wgan, clip 1e-6", VANISHING, model="wgan", clip=1e-6, critic_norm="none"),
    _run("wgan, clip 1e-4", VANISHING, model="wgan", clip=1e-4, critic_norm="none"),
    _run("a critic that is blind", VANISHING, model="wgan-gp", sicken=critic_is_blind),
    _run("a critic of dead units", VANISHING, model="wgan", sicken=critic_has_dead_units),
    _run("a critic that fades", VANISHING, model="wgan-gp", sicken=critic_fades),
    _run("a dead generator", VANISHING, COLLAPSE, sicken=generator_is_dead),
    _run("a saturated generator", VANISHING, COLLAPSE, model="wgan-gp",
         sicken=generator_is_saturated),
    _run("a generator without noise", COLLAPSE, sicken=generator_ignores_noise),
    _run("a generator of four images", COLLAPSE, model="wgan-gp",
         sicken=generator_has_four_images),
    _run("constant images", DATA, data=constant, within=0),
    _run("an image of NaN", DATA, data=spoilt, within=0),
)  # fmt: skip


def main(names: list[str]) -> int:
    """Trains all, or those named, into the results; returns 1 if one was named wrongly."""
    torch.set_num_threads(1)
    results = json.loads(RESULT.read_text())
    found = {each["run"]: each for each in results.get("runs", [])}
    for run in (*HEALTHY, *SICK):
        if names and run.name not in names:
            continue
        heard = trained(run)
        named = [[step, name] for (step, _), name in zip(heard.said, heard.names, strict=True)]
        print(f"{'right' if heard.right else 'WRONG'}: {run.name}: {named}", flush=True)
        found[run.name] = {
            "run": run.name, "has": list(run.sick), "named": named, "right": heard.right
        }  # fmt: skip
    results["runs"] = [found[run.name] for run in (*HEALTHY, *SICK)]
    RESULT.write_text(json.dumps(results, indent=1) + "\n")
    return int(not all(each["right"] for each in results["runs"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
