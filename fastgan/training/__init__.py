"""Training a GAN: configuration, loop, checkpoints and the watch over a run's health."""

from __future__ import annotations

from fastgan.training.callbacks import Callback
from fastgan.training.checkpoint import load_generator
from fastgan.training.config import TrainConfig
from fastgan.training.trainer import Trainer, TrainingDivergedError, TrainingResult

__all__ = [
    "Callback",
    "TrainConfig",
    "Trainer",
    "TrainingDivergedError",
    "TrainingResult",
    "load_generator",
]
