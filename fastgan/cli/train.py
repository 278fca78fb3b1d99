"""``fastgan train``: a flag for every field of :class:`fastgan.training.TrainConfig`."""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from typing import Any

from rich.console import Console

from fastgan.cli.arguments import train_settings
from fastgan.cli.terminal import ended_by_interrupts, say
from fastgan.errors import DataWarning
from fastgan.training import TrainConfig, Trainer
from fastgan.training.processes import Processes, joined_processes
from fastgan.training.progress import TrainingDisplay


def run(options: argparse.Namespace) -> int:
    """Trains; returns 0, or 128 plus the signal's number when a signal ended the run.

    Under ``torchrun`` every process runs this; only the first one writes files and shows progress.
    """
    given = train_settings(options)
    device = str(given.get("device", "auto"))
    with joined_processes(device) as processes, warnings.catch_warnings():
        if not processes.is_main:  # the first process reports it
            warnings.simplefilter("ignore", DataWarning)
        with ended_by_interrupts():
            trainer, display = _prepared(given, options.resume, processes)
        with display:
            return _trained(trainer, display)


def _prepared(
    given: dict[str, Any], resume: bool, processes: Processes
) -> tuple[Trainer, TrainingDisplay]:
    display = TrainingDisplay(Console(stderr=True, highlight=False, quiet=not processes.is_main))
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
    if trainer.config.penalizes_interpolates and trainer.config.critic_norm == "batch":
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
        if trainer.processes.is_main:
            say(text)

    if trainer.resumed_from is not None and trainer.step >= trainer.config.steps:
        report(
            f"nothing to do: {trainer.resumed_from} is at step {trainer.step}, and --steps is"
            f" {trainer.config.steps}"
        )
        return 0
    result = trainer.run()
    display.stop()
    if result.stopped_by is None:
        parts = [f"grid {result.samples}", f"metrics {result.out / 'metrics.csv'}"]
        extras = {
            "matplotlib": f"losses {result.out / 'losses.png'}",
            "tensorboard": f"events {result.out / 'tensorboard'}",
        }
        missing = [name for name in extras if importlib.util.find_spec(name) is None]
        parts += [text for name, text in extras.items() if name not in missing]
        hint = f"; for plots and events: pip install {' '.join(missing)}" if missing else ""
        report(
            f"done: {result.step} steps in {result.seconds:.0f} s; {', '.join(parts)}, checkpoint"
            f" {result.checkpoint}{hint}"
        )
        return 0
    reason = f"stopped by {result.stopped_by}"
    if result.stopped_by == "max_minutes":
        reason = "cut short by --max-minutes"
    report(
        f"{reason} at step {result.step} of {trainer.config.steps}; saved"
        f" {result.checkpoint}; go on with: fastgan train --resume --out {result.out}"
    )
    return {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}.get(result.stopped_by, 0)
