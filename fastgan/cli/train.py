"""``fastgan train``: a flag for every field of :class:`fastgan.training.TrainConfig`."""

from __future__ import annotations

import argparse
import dataclasses
import typing
import warnings
from types import NoneType
from typing import Any

from rich.console import Console

from fastgan.cli.progress import TrainingDisplay
from fastgan.errors import ConfigError, DataWarning
from fastgan.training import TrainConfig, Trainer
from fastgan.training.config_files import read_settings
from fastgan.training.processes import Processes, joined_processes

__all__ = ["add_parser", "run"]

_GROUPS = {
    "out": "what to train, on what",
    "optimizer": "optimisers",
    "nz": "networks",
    "loss": "the rules of the game",
    "device": "machine",
    "log_every": "what is written and when",
}


def add_parser(commands: Any) -> None:
    """Adds the command to the parser's sub-commands."""
    parser = commands.add_parser(
        "train",
        help="train a GAN",
        description="Train a GAN. Options not given take the defaults of the model's paper.",
        argument_default=argparse.SUPPRESS,
    )
    hints = typing.get_type_hints(TrainConfig)
    group = parser
    for each in dataclasses.fields(TrainConfig):
        if each.name in _GROUPS:
            group = parser.add_argument_group(_GROUPS[each.name])
        flag = "--" + each.name.replace("_", "-")
        text = each.metadata["help"]
        if each.default not in (None, "", False):
            text += f" (default {each.default})"
        kinds = [kind for kind in typing.get_args(hints[each.name]) if kind is not NoneType]
        kind = kinds[0] if kinds else hints[each.name]
        if kind is bool:
            group.add_argument(
                flag, dest=each.name, action=argparse.BooleanOptionalAction, help=text
            )
            continue
        group.add_argument(
            flag,
            dest=each.name,
            type=kind,
            choices=each.metadata["choices"],
            metavar={"out": "DIR", "data": "SOURCE", int: "N", float: "X"}.get(
                each.name, None if each.metadata["choices"] else {int: "N", float: "X"}.get(kind)
            ),
            help=text,
        )
        if each.name == "out":
            group.add_argument(
                "--resume",
                action="store_true",
                default=False,
                help="continue the run in --out from its newest checkpoint, or from the start if"
                " it has none yet",
            )
            group.add_argument(
                "--config",
                metavar="FILE",
                default=None,
                help="a TOML file with settings by their names; flags go before what it says",
            )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Trains; returns 0, or 128 plus the signal's number when a signal ended the run.

    Under ``torchrun`` every process does this; only the first one writes, and says how it goes.
    """
    names = {each.name for each in dataclasses.fields(TrainConfig)}
    given = {} if options.config is None else _settings(options.config)
    given |= {name: value for name, value in vars(options).items() if name in names}
    device = str(given.get("device", "auto"))
    with joined_processes(device) as processes, warnings.catch_warnings():
        if not processes.leads:  # the first one says it
            warnings.simplefilter("ignore", DataWarning)
        trainer, display = _prepared(given, options.resume, processes)
        with display:
            return _trained(trainer, display)


def _prepared(
    given: dict[str, Any], resume: bool, processes: Processes
) -> tuple[Trainer, TrainingDisplay]:
    display = TrainingDisplay(Console(stderr=True, highlight=False, quiet=not processes.leads))
    trainer = Trainer(
        TrainConfig(**given),
        resume=resume,
        explicit=frozenset(given),
        callbacks=[display],
        processes=processes,
    )
    for name in trainer.config.ignored(given):
        flag = "--" + name.replace("_", "-")
        display.warn(f"{flag} has no effect on {trainer.config.model}")
    if trainer.config.model == "wgan-gp" and trainer.config.critic_norm == "batch":
        display.warn(
            "batch norm couples the samples whose gradients the penalty takes one by one; the"
            " paper's advice is --critic-norm layer"
        )
    if resume and trainer.resumed_from is None:
        display.say(f"no checkpoint in {trainer.out} yet: starting from the beginning")
    elif trainer.resumed_from is not None and trainer.step < trainer.config.steps:
        display.say(f"resuming from {trainer.resumed_from} at step {trainer.step}")
    return trainer, display


def _trained(trainer: Trainer, display: TrainingDisplay) -> int:
    def report(text: str) -> None:
        if trainer.processes.leads:
            print(text, flush=True)

    if trainer.resumed_from is not None and trainer.step >= trainer.config.steps:
        report(
            f"nothing to do: {trainer.resumed_from} is at step {trainer.step}, and --steps is"
            f" {trainer.config.steps}"
        )
        return 0
    result = trainer.run()
    display.stop()
    if result.stopped_by is None:
        report(
            f"done: {result.step} steps in {result.seconds:.0f} s; grid {result.samples}, losses"
            f" {result.out / 'losses.png'}, metrics {result.out / 'metrics.csv'}, events"
            f" {result.out / 'tensorboard'}, checkpoint {result.checkpoint}"
        )
        return 0
    reason = "the time limit" if result.stopped_by == "max_minutes" else result.stopped_by
    report(
        f"stopped by {reason} at step {result.step} of {trainer.config.steps}; saved"
        f" {result.checkpoint}; go on with: fastgan train --resume --out {result.out}"
    )
    return {"SIGINT": 130, "SIGTERM": 143}.get(result.stopped_by, 0)


def _settings(path: str) -> dict[str, Any]:
    settings = read_settings(path)
    try:
        TrainConfig.from_dict(settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return settings
