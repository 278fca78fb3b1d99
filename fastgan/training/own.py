"""Networks and optimisers given to :class:`fastgan.training.Trainer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgan._util.reading import one_line
from fastgan.errors import CheckpointError, ConfigError
from fastgan.training.config import TrainConfig
from fastgan.training.networks import DataShape

NETWORKS = ("generator", "discriminator")
OPTIMIZERS = ("optimizer_g", "optimizer_d")

#: An optimiser, or a function of a network's parameters: ``functools.partial(AdamW, lr=1e-4)``.
OptimizerLike = torch.optim.Optimizer | Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class OwnParts:
    """The caller's parts; None for parts that the trainer makes.

    Attributes:
        generator: maps noise (N, nz, 1, 1), and labels (N,) if conditional, to images
            (N, channels, size, size).
        discriminator: maps images, and labels, to logits or scores, a row per image.
        optimizers: the generator's and the discriminator's.
    """

    generator: nn.Module | None = None
    discriminator: nn.Module | None = None
    optimizers: tuple[OptimizerLike, OptimizerLike] | None = None

    def __post_init__(self) -> None:
        for name in NETWORKS:
            module = getattr(self, name)
            if module is None:
                continue
            if not isinstance(module, nn.Module):
                raise ConfigError(f"{name}: expected an nn.Module, got {type(module).__name__}")
            if next(module.parameters(), None) is None:
                raise ConfigError(f"{name}: expected a module with parameters, got none")
        given: Any = self.optimizers
        if given is not None and not (
            isinstance(given, Sequence)
            and len(given) == 2
            and all(
                isinstance(optimizer, torch.optim.Optimizer) or callable(optimizer)
                for optimizer in given
            )
        ):
            raise ConfigError(
                "optimizers: expected two, the generator's and the discriminator's, each an"
                f" optimiser or a function of a list of parameters, got {type(given).__name__}"
            )

    @property
    def given(self) -> set[str]:
        """The given parts, by their names in a checkpoint."""
        networks = {name for name in NETWORKS if getattr(self, name) is not None}
        return networks | (set(OPTIMIZERS) if self.optimizers is not None else set())

    def names(self, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, str]:
        """Each given part's class, as recorded in a checkpoint."""
        made: dict[str, object] = {name: getattr(self, name) for name in NETWORKS}
        made |= dict(zip(OPTIMIZERS, optimizers, strict=True))
        return {
            name: f"{type(part).__module__}.{type(part).__qualname__}"
            for name, part in made.items()
            if name in self.given
        }

    def require(self, saved: dict[str, str], path: Path) -> None:
        """Refuses to continue a run with other parts.

        Raises:
            CheckpointError: a part was given and isn't now, or the reverse.
        """
        for name in (*NETWORKS, *OPTIMIZERS):
            argument = "optimizers" if name in OPTIMIZERS else name
            if name in saved and name not in self.given:
                raise CheckpointError(
                    f"{path}: its {name}, {saved[name]}, was given to Trainer in Python;"
                    f" give it again: Trainer(..., resume=True, {argument}=...)"
                )
            if name in self.given and name not in saved:
                raise CheckpointError(
                    f"{path}: its {name} was made by the trainer; go on without {argument}="
                )

    def optimizer(self, index: int, module: nn.Module) -> torch.optim.Optimizer | None:
        """The caller's optimiser of the generator (0) or discriminator (1), if any.

        Raises:
            ConfigError: the argument gives no optimiser, or one of another module's parameters.
        """
        if self.optimizers is None:
            return None
        optimizer: Any = self.optimizers[index]
        if not isinstance(optimizer, torch.optim.Optimizer):
            optimizer = optimizer(list(module.parameters()))
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ConfigError(
                f"optimizers: expected an optimiser, got {type(optimizer).__name__} from"
                f" {self.optimizers[index]!r}"
            )
        ours = {id(parameter) for parameter in module.parameters()}
        if not all(id(p) in ours for group in optimizer.param_groups for p in group["params"]):
            raise ConfigError(
                f"optimizers: the {NETWORKS[index]}'s has parameters that aren't the"
                f" {NETWORKS[index]}'s"
            )
        return optimizer

    def check(self, config: TrainConfig, data: DataShape, device: torch.device) -> None:
        """Runs given networks once, in eval mode on two images, before writing anything.

        Raises:
            ConfigError: one fails, or returns a wrong shape.
        """
        trains_own = config.kind.pairs or config.kind.draws_labels
        if trains_own and not {"generator", "discriminator"}.isdisjoint(self.given):
            raise ConfigError(f"generator: {config.model} trains its own networks; expected none")
        labels: tuple[Tensor, ...] = ()
        if config.conditional:
            labels = (torch.zeros(2, dtype=torch.int64, device=device),)
        shape = (2, data.channels, data.image_size, data.image_size)
        z = torch.linspace(-1, 1, 2 * config.nz, device=device).view(2, config.nz, 1, 1)
        if self.generator is not None:
            images = _output("generator", self.generator.to(device), z, *labels)
            if images.shape != shape:
                raise ConfigError(
                    f"generator: expected images of shape {shape} for noise {tuple(z.shape)}, got"
                    f" {tuple(images.shape)}"
                )
        if self.discriminator is not None:
            images = torch.linspace(-1, 1, 2 * shape[1] * shape[2] ** 2, device=device).view(shape)
            scores = _output("discriminator", self.discriminator.to(device), images, *labels)
            if scores.dim() == 0 or scores.shape[0] != 2:
                raise ConfigError(
                    "discriminator: expected a row of scores for each of 2 images, got shape"
                    f" {tuple(scores.shape)}"
                )
            *_, last = self.discriminator.modules()
            if config.loss == "bce" and isinstance(last, nn.Sigmoid):
                raise ConfigError(
                    "discriminator: the loss bce takes logits; leave out the Sigmoid at its end"
                )


def own_names(path: Path, content: Any) -> dict[str, str]:
    """A checkpoint's given parts: name to class.

    Raises:
        CheckpointError: the checkpoint's entry is malformed.
    """
    names = content.get("own", {})
    if not isinstance(names, dict) or not all(
        name in (*NETWORKS, *OPTIMIZERS) and isinstance(kind, str) and kind.isprintable()
        for name, kind in names.items()
    ):
        raise CheckpointError(f"{path}: its description is damaged: own")
    return names


def _output(name: str, module: nn.Module, *inputs: Tensor) -> Tensor:
    modes = {each: each.training for each in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            output = module(*inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(each.shape)) for each in inputs)
        raise ConfigError(
            f"{name}: failed on inputs of shape {shapes}: {one_line(error)}"
        ) from error
    finally:
        for each, training in modes.items():
            each.training = training
    if not isinstance(output, Tensor) or not output.is_floating_point():
        kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
        raise ConfigError(f"{name}: expected a floating-point tensor from it, got {kind}")
    return output
