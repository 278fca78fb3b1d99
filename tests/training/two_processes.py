"""What each process does in test_training_processes.py: :func:`main`.

Updates, then a run whose data fail in one process, then one that fails in one without a word to the
others: in one go, as starting a process takes longer than all of them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fastgan.data import load_data
from fastgan.errors import FastganError
from fastgan.training import Callback, Processes, TrainConfig, Trainer, joined_processes
from fastgan.training.model_kinds import named
from fastgan.training.networks import DataShape, build_discriminator, build_generator
from fastgan.training.optimizer_kinds import build_optimizer
from fastgan.training.sync_batch_norm import synchronize_batch_norm
from fastgan.training.updates import GANUpdater

BATCH, CHANNELS, SIZE, CLASSES = 8, 1, 16, 4

# The settings of each case. Plain SGD, so that weights show gradients as they are.
CASES = {
    **{model: {"model": model} for model in ("dcgan", "cgan", "wgan", "wgan-gp")},
    "one stage": {"model": "dcgan", "one_stage": True, "augment": "color,translation,cutout"},
    "layer norm": {"model": "wgan-gp", "critic_norm": "layer"},
    # Without batch norm, which takes its statistics from each part.
    "parts": {"model": "gan", "accumulate": 2},
    "hinge": {"model": "dcgan", "loss": "hinge", "conditional": True},
    "spectral norm": {"model": "biggan", "conditional": True},
    "relativistic": {"model": "r3gan"},
    "cycles": {"model": "cyclegan", "blocks": 1, "cycle_weight": 0.1},
    # p rises with each update of the discriminator.
    "adaptive": {"model": "gan", "augment": "ada", "ada_interval": 1, "ada_kimg": 0.02}
    | {"ada_target": -1.0},
}
# Where each process draws some numbers on its own, and looks at groups of its own images.
OWN_DRAWS = {
    "styles": {"model": "stylegan2", "mapping_layers": 2, "conditional": True}
    | {"r1": 0.1, "path_length": 0.1}
}


# Where running statistics are of each process's own part of the batch.
OWN_PARTS = {"styles": OWN_DRAWS["styles"], "batch norm": {"model": "dcgan", "conditional": True}}


def updater_of(
    settings: dict[str, object], processes: Processes, *, synchronize: bool = True
) -> GANUpdater:
    """An updater of small networks with the same weights everywhere."""
    small: dict[str, object] = {"out": "unused", "nz": 5, "ngf": 4, "ndf": 4, "batch_size": BATCH}
    small |= {"lr": 0.05, "optimizer": "sgd", "precision": "fp32"}
    config = TrainConfig(**small, **settings).resolved()
    torch.manual_seed(3)
    data = DataShape("random", CHANNELS, SIZE, CLASSES)
    generator, discriminator = build_generator(config, data), build_discriminator(config, data)
    for module in discriminator.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # drawn by each process on its own
    if synchronize:
        for network in (generator, discriminator):
            synchronize_batch_norm(network, processes)
    updater: GANUpdater = named(config.kind.updater)(
        config=config,
        generator=generator,
        discriminator=discriminator,
        optimizer_g=build_optimizer(config, generator, config.lr_g),
        optimizer_d=build_optimizer(config, discriminator, config.lr_d),
        num_classes=CLASSES if config.conditional else None,
        device=torch.device("cpu"),
        random=torch.Generator().manual_seed(1),
        processes=processes,
    )
    return updater


def passed(case: str, processes: Processes) -> dict[str, Tensor]:
    """Both networks' buffers after a pass of each over this process's part of a batch."""
    updater = updater_of(OWN_PARTS[case], processes, synchronize=False)
    random = torch.Generator().manual_seed(4)
    noise = processes.rows(torch.randn(BATCH, 5, generator=random))
    labels = processes.rows(torch.randint(CLASSES, (BATCH,), generator=random))
    updater.discriminator(updater.generator(noise, labels), labels)
    updater.average_statistics()
    return {
        f"{type(network).__name__} {name}": buffer
        for network in (updater.generator, updater.discriminator)
        for name, buffer in network.named_buffers()
    }


def updated(case: str, processes: Processes) -> dict[str, Tensor]:
    """Weights, buffers and metrics after two updates of each player on the same whole batches."""
    updater = updater_of((CASES | OWN_DRAWS)[case], processes)
    config, generator, discriminator = updater.config, updater.generator, updater.discriminator
    batches = torch.Generator().manual_seed(2)
    found: dict[str, Tensor] = {}
    for step in range(2):
        channels = CHANNELS * (2 if config.kind.pairs else 1)
        real = torch.rand(BATCH, channels, SIZE, SIZE, generator=batches) * 2 - 1
        labels = torch.randint(CLASSES, (BATCH,), generator=batches)
        real, labels = processes.rows(real), processes.rows(labels)
        if config.one_stage:
            metrics = updater.update_both(real, labels, penalize=True, measure_gradient=True)
        else:
            metrics = updater.update_discriminator(real, labels)
            metrics |= updater.update_generator(real, labels, measure_gradient=True, penalize=True)
        means = processes.mean({name: float(value) for name, value in metrics.items()})
        found |= {f"{name} {step}": torch.tensor(value) for name, value in means.items()}
        for network in (generator, discriminator):
            for name, parameter in network.named_parameters():
                found[f"{type(network).__name__} {name} {step}"] = parameter.detach().clone()
            for name, buffer in network.named_buffers():
                found[f"{type(network).__name__} {name} {step}"] = buffer.clone()
    return found


class LoseTheData(Callback):
    """The second process's files go away after its second step."""

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == 2 and trainer.processes.rank == 1:
            source = trainer.source
            source.files = [path.with_suffix(".gone") for path in source.files]


class Fail(Callback):
    """The second process can't go on after its second step."""

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == 2 and trainer.processes.rank == 1:
            raise FastganError("the disk of this machine is on fire")


def main(out: Path) -> None:
    """What one of the processes does, into a folder of both."""
    small = {"nz": 4, "ngf": 4, "ndf": 4, "batch_size": 4, "steps": 50, "precision": "fp32"}
    with joined_processes("cpu") as processes:
        results = {case: updated(case, processes) for case in CASES | OWN_DRAWS}
        torch.save(results, out / f"updates-{processes.rank}.pt")
        results = {case: passed(case, processes) for case in OWN_PARTS}
        torch.save(results, out / f"statistics-{processes.rank}.pt")

        data = f"folder:{out / 'images'}"
        config = TrainConfig(
            out=str(out / "without data"), data=data, image_size=16, workers=0, **small
        )
        source = load_data(data, image_size=16, in_memory=False)
        try:
            Trainer(config, source=source, callbacks=[LoseTheData()], processes=processes).run()
        except FastganError as error:
            (out / f"error-{processes.rank}.txt").write_text(f"{type(error).__name__}: {error}")

        config = TrainConfig(out=str(out / "on fire"), **small)
        Trainer(config, callbacks=[Fail()], processes=processes).run()
