"""The state of a training run: everything that a step changes and a checkpoint saves."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastgan._util.random_streams import seeded_generator
from fastgan._util.reading import parsing
from fastgan.errors import CheckpointError
from fastgan.training.checkpoint import restore_module
from fastgan.training.config import TrainConfig
from fastgan.training.ema import ExponentialMovingAverage
from fastgan.training.iteration import MetricTotals
from fastgan.training.model_kinds import named
from fastgan.training.networks import DataShape, build_discriminator, build_generator
from fastgan.training.optimizer_kinds import build_optimizer
from fastgan.training.own import OwnParts
from fastgan.training.processes import Processes
from fastgan.training.run_folder import SavedRun
from fastgan.training.sync_batch_norm import synchronize_batch_norm
from fastgan.training.updates import GANUpdater

# Streams of the run's seed. The data's order uses small numbers, one per epoch; the global
# generator, for weights and dropout, is seeded with the seed itself.
NOISE_STREAM = 1 << 62
PICTURE_STREAM = NOISE_STREAM + 1
#: The global generators of processes after the first, one each.
PROCESS_STREAM = NOISE_STREAM + 2


class TrainState:
    """Networks, optimisers, moving average, random streams and counters of a run.

    Args:
        config: resolved settings.
        data: the data's shape.
        device: the device to train on.
        processes: the run's processes.
        rates_on_device: whether learning rates are kept in tensors, for CUDA graphs.
        saved: a checkpoint to restore; None initialises the weights.
        own: the caller's networks and optimisers.

    Attributes:
        config: the settings, with the learning rates of the caller's optimisers if there are any.
        updater: both networks with their optimisers.
        ema: the generator's moving average, or None.
        totals: sums of the metrics since the last row of metrics.csv.
        logged: sums of the caller's own metrics in this process.
        step: generator updates done.
        batches: batches of real images used.

    Raises:
        CheckpointError: ``saved`` doesn't fit the networks.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: DataShape,
        device: torch.device,
        processes: Processes,
        *,
        rates_on_device: bool = False,
        saved: SavedRun | None = None,
        own: OwnParts | None = None,
    ) -> None:
        own = self.own = OwnParts() if own is None else own
        self.device = device
        self.processes = processes
        self.step = 0
        self.batches = 0
        # Weight initialisation and dropout use torch's global generators; every checkpoint has
        # their states.
        torch.manual_seed(config.seed)
        generator = _built(saved, "generator", config, data, own.generator)
        discriminator = _built(saved, "discriminator", config, data, own.discriminator)
        averaged = None
        if saved is not None and config.ema_decay > 0:
            given = copy.deepcopy(own.generator)
            averaged = _built(saved, "ema_generator", config, data, given)
        for network in (generator, discriminator):
            # Convolutions are fastest in channels-last layout, on CPUs and GPUs alike.
            network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert config.lr_g is not None
        assert config.lr_d is not None
        optimizer_g = own.optimizer(0, generator)
        optimizer_d = own.optimizer(1, discriminator)
        if optimizer_g is None or optimizer_d is None:
            optimizer_g = build_optimizer(config, generator, config.lr_g)
            optimizer_d = build_optimizer(config, discriminator, config.lr_d)
        elif saved is None:
            lr_g, lr_d = (
                float(optimizer.param_groups[0]["lr"]) for optimizer in (optimizer_g, optimizer_d)
            )
            config = dataclasses.replace(config, lr_g=lr_g, lr_d=lr_d)
        self.config = config
        self.updater: GANUpdater = named(config.kind.updater)(
            config=config,
            generator=generator,
            discriminator=discriminator,
            optimizer_g=optimizer_g,
            optimizer_d=optimizer_d,
            num_classes=data.num_classes if config.conditional else None,
            device=device,
            random=seeded_generator(config.seed, NOISE_STREAM, device),
            processes=processes,
            rates_on_device=rates_on_device,
            own_optimizers=own.optimizers is not None,
        )
        self.totals = MetricTotals(device)
        self.logged = MetricTotals(device, torch.float64)
        self._reseed(processes.rank)
        if saved is not None:
            with parsing(f"{saved.path}: can't be resumed from", CheckpointError):
                self._restore(saved.content)
        self.ema: ExponentialMovingAverage | None = None
        if config.ema_decay > 0:
            self.ema = ExponentialMovingAverage(generator, config.ema_decay, self.step)
            if averaged is not None:
                self.ema.module.load_state_dict(averaged.state_dict())
        if config.sync_batch_norm and processes.world_size > 1:
            # The average was copied before: it runs in one process only.
            for network in (generator, discriminator):
                synchronize_batch_norm(network, processes)

    @property
    def sampler(self) -> nn.Module:
        """The network to draw samples from: the generator's average if there is one."""
        return self.updater.generator if self.ema is None else self.ema.module

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        """The networks with their names."""
        yield "generator", self.updater.generator
        yield "discriminator", self.updater.discriminator
        if self.ema is not None:
            yield "generator's average", self.ema.module

    def weights(self) -> list[Tensor]:
        """All tensors of all networks."""
        return [value for _, network in self.networks() for value in network.state_dict().values()]

    def non_finite_weight(self) -> str | None:
        """Names a weight with a NaN or an infinity in it, if there is one."""
        for name, network in self.networks():
            for key, value in network.state_dict().items():
                if value.is_floating_point() and not bool(value.isfinite().all()):
                    return f"the {name}'s {key} holds NaN or infinity"
        return None

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint. A collective call: all processes must make it."""
        totals = self.totals.state_dict()
        means = self.processes.mean({name: total for name, (total, _) in totals.items()})
        return {
            **self.updater.state_dict(),
            "step": self.step,
            "batches": self.batches,
            "ema_generator": None if self.ema is None else self.ema.module.state_dict(),
            "random": self._random_state(),
            "totals": {name: [means[name], count] for name, (_, count) in totals.items()},
            "logged": self.logged.state_dict(),
            "own": self.own.names([self.updater.optimizer_g, self.updater.optimizer_d]),
        }

    def _restore(self, saved: Mapping[str, Any]) -> None:
        self.totals.load_state_dict(saved.get("totals", {}))
        self.logged.load_state_dict(saved.get("logged", {}))
        self.step, self.batches = int(saved["step"]), int(saved["batches"])
        if not (0 <= self.step < 2**53 and 0 <= self.batches < 2**53):
            raise ValueError(f"step {self.step} after {self.batches} batches")
        self.updater.load_optimizers(saved, self.step)
        states = saved["random"]
        everyone = [states, *states.get("others", ())]
        rank = self.processes.rank
        if rank < len(everyone):
            torch.set_rng_state(everyone[rank]["torch"])
            if self.device.type == "cuda" and "cuda" in everyone[rank]:
                torch.cuda.set_rng_state(everyone[rank]["cuda"], self.device)
        else:  # more processes than before
            self._reseed(rank)
        if states["device"] == self.device.type:
            self.updater.random.set_state(states["players"])
        else:
            # A CPU generator's stream can't continue on a GPU, nor the reverse: start a new stream
            # from seed and step.
            seed = (self.config.seed + self.step) % 2**63
            self.updater.random = seeded_generator(seed, NOISE_STREAM, self.device)

    def _random_state(self) -> dict[str, Any]:
        own: dict[str, Any] = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(self.device)
        first, *others = self.processes.gather(own)
        states = {
            **first,
            "players": self.updater.random.get_state(),
            "device": self.device.type,
        }
        return {**states, "others": others} if others else states

    def _reseed(self, rank: int) -> None:
        """Seeds the global generator of every process but the first differently, for dropout."""
        if rank > 0:
            seed = seeded_generator(self.config.seed, PROCESS_STREAM + rank).initial_seed()
            torch.manual_seed((seed + self.step) % 2**63)


def _built(
    saved: SavedRun | None,
    name: str,
    config: TrainConfig,
    data: DataShape,
    given: nn.Module | None,
) -> nn.Module:
    """A network, the caller's if given, with a checkpoint's weights under ``name``."""

    def build() -> nn.Module:
        if given is not None:
            return given
        build = build_discriminator if name == "discriminator" else build_generator
        return build(config, data)

    if saved is None:
        return build()
    return restore_module(saved.path, name, build, saved.content.get(name))
