"""Training a GAN: configuration, loop, checkpoints and the watch over a run's health."""

from __future__ import annotations

from fastgan.training.callbacks import Callback
from fastgan.training.checkpoint import load_generator
from fastgan.training.config import TrainConfig
from fastgan.training.processes import Processes, ProcessFailedError, joined_processes
from fastgan.training.trainer import Trainer, TrainingDivergedError, TrainingResult

__all__ = [
    "Callback",
    "ProcessFailedError",
    "Processes",
    "TrainConfig",
    "Trainer",
    "TrainingDivergedError",
    "TrainingResult",
    "joined_processes",
    "load_generator",
]
