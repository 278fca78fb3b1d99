"""From a configuration to the two networks it names."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from fastgan.models import (
    BigGANDiscriminator,
    BigGANGenerator,
    DCGANDiscriminator,
    DCGANGenerator,
    MLPDiscriminator,
    MLPGenerator,
    R3GANDiscriminator,
    R3GANGenerator,
    SNGANDiscriminator,
    SNGANGenerator,
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


#: The networks of each model that has other ones than the DCGAN's.
_GENERATORS: Mapping[str, type[nn.Module]] = types.MappingProxyType(
    {
        "biggan": BigGANGenerator,
        "gan": MLPGenerator,
        "r3gan": R3GANGenerator,
        "sngan": SNGANGenerator,
    }
)
_DISCRIMINATORS: Mapping[str, type[nn.Module]] = types.MappingProxyType(
    {
        "biggan": BigGANDiscriminator,
        "gan": MLPDiscriminator,
        "r3gan": R3GANDiscriminator,
        "sngan": SNGANDiscriminator,
        "wgan": WGANCritic,
        "wgan-gp": WGANCritic,
    }
)


def build_generator(config: TrainConfig, data: DataShape) -> nn.Module:
    """The generator that ``config.model`` names, freshly initialised on the CPU."""
    return _built(_GENERATORS.get(config.model, DCGANGenerator), config, data)


def build_discriminator(config: TrainConfig, data: DataShape) -> nn.Module:
    """The discriminator (its output logits) or critic that ``config.model`` names."""
    return _built(_DISCRIMINATORS.get(config.model, DCGANDiscriminator), config, data)


def _built(network: type[nn.Module], config: TrainConfig, data: DataShape) -> nn.Module:
    """A network, given those settings that its constructor takes."""
    settings = {
        "nz": config.nz,
        "ngf": config.ngf,
        "ndf": config.ndf,
        "nc": data.channels,
        "image_size": data.image_size,
        "num_classes": data.num_classes if config.conditional else None,
        "norm": config.critic_norm,
        "projection": config.conditional and config.projection,
        "output": "logits",
    }
    taken = inspect.signature(network).parameters
    return network(**{name: value for name, value in settings.items() if name in taken})
