"""Builds the two networks of a configuration."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torch import nn

from fastgan.training.config import TrainConfig
from fastgan.training.model_kinds import named


@dataclass(frozen=True)
class DataShape:
    """The data's properties for the networks, saved with every checkpoint.

    Attributes:
        name: the data set's name.
        channels: 1 or 3.
        image_size: side in pixels.
        num_classes: ``None`` for unlabelled data; of InfoGAN, its categories.
        class_names: one name per class, or ``None``.
        length: the number of images.
    """

    name: str
    channels: int
    image_size: int
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    length: int | None = None

    def class_name(self, number: int) -> str:
        """A class's name, or its number if the data has no names."""
        return str(number) if self.class_names is None else self.class_names[number]


def build_generator(config: TrainConfig, data: DataShape) -> nn.Module:
    """The newly initialised generator of ``config.model``, on the CPU."""
    return _built(config.kind.generator, config, data)


def build_discriminator(config: TrainConfig, data: DataShape) -> nn.Module:
    """The discriminator (with logits) or critic of ``config.model``."""
    return _built(config.kind.discriminator, config, data)


def _built(name: str, config: TrainConfig, data: DataShape) -> nn.Module:
    """A network with those settings that its constructor accepts."""
    network = named(name)
    settings = {
        **config.to_dict(),
        "nc": data.channels,
        "image_size": data.image_size,
        "num_classes": data.num_classes if config.conditional else None,
        "norm": config.critic_norm,
        "projection": config.conditional and config.projection,
        "output": "logits",
    }
    taken = inspect.signature(network).parameters
    built: nn.Module = network(**{name: settings[name] for name in taken if name in settings})
    return built
