"""From a configuration to the two networks it names."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fastgan.models import (
    DCGANDiscriminator,
    DCGANGenerator,
    MLPDiscriminator,
    MLPGenerator,
    WGANCritic,
)
from fastgan.training.config import TrainConfig

__all__ = ["DataShape", "build_discriminator", "build_generator"]


@dataclass(frozen=True)
class DataShape:
    """What the networks must know of the data: it is saved with every checkpoint.

    Attributes:
        name: the data set's name, for people.
        channels: 1 or 3.
        image_size: side in pixels.
        num_classes: ``None`` for unlabelled data.
        class_names: one name a class, or ``None``.
        length: how many images.
    """

    name: str
    channels: int
    image_size: int
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    length: int | None = None

    def class_name(self, number: int) -> str:
        """The name of a class, or its number where the data has no names."""
        return str(number) if self.class_names is None else self.class_names[number]


def _conditioning(config: TrainConfig, data: DataShape) -> int | None:
    return data.num_classes if config.conditional else None


def build_generator(config: TrainConfig, data: DataShape) -> nn.Module:
    """The generator that ``config.model`` names, freshly initialised on the CPU."""
    if config.model == "gan":
        return MLPGenerator(
            nz=config.nz,
            nc=data.channels,
            image_size=data.image_size,
            num_classes=_conditioning(config, data),
        )
    return DCGANGenerator(
        nz=config.nz,
        ngf=config.ngf,
        nc=data.channels,
        image_size=data.image_size,
        num_classes=_conditioning(config, data),
    )


def build_discriminator(config: TrainConfig, data: DataShape) -> nn.Module:
    """The discriminator (its output logits) or critic that ``config.model`` names."""
    if config.model == "gan":
        return MLPDiscriminator(
            nc=data.channels,
            image_size=data.image_size,
            num_classes=_conditioning(config, data),
            output="logits",
        )
    if config.is_wasserstein:
        return WGANCritic(
            nc=data.channels,
            ndf=config.ndf,
            image_size=data.image_size,
            norm=config.critic_norm,
            num_classes=_conditioning(config, data),
        )
    return DCGANDiscriminator(
        nc=data.channels,
        ndf=config.ndf,
        image_size=data.image_size,
        output="logits",
        num_classes=_conditioning(config, data),
    )
