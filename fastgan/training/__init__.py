"""Training: configuration, loop, checkpoints and health checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgan._lazy import attach
from fastgan.training.config import TrainConfig

if TYPE_CHECKING:
    from fastgan.training.callbacks import Callback
    from fastgan.training.checkpoint import load_generator
    from fastgan.training.loggers import MLflowLogger, TrackioLogger, WandbLogger
    from fastgan.training.processes import Processes, ProcessFailedError, joined_processes
    from fastgan.training.progress import TrainingDisplay
    from fastgan.training.result import TrainingDivergedError, TrainingResult
    from fastgan.training.trainer import Trainer
else:
    # The command line needs TrainConfig without waiting for torch.
    __getattr__, __dir__ = attach(
        __name__,
        {
            "Callback": "fastgan.training.callbacks",
            "MLflowLogger": "fastgan.training.loggers",
            "ProcessFailedError": "fastgan.training.processes",
            "Processes": "fastgan.training.processes",
            "TrackioLogger": "fastgan.training.loggers",
            "Trainer": "fastgan.training.trainer",
            "TrainingDisplay": "fastgan.training.progress",
            "TrainingDivergedError": "fastgan.training.result",
            "TrainingResult": "fastgan.training.result",
            "WandbLogger": "fastgan.training.loggers",
            "joined_processes": "fastgan.training.processes",
            "load_generator": "fastgan.training.checkpoint",
        },
    )

__all__ = [
    "Callback",
    "MLflowLogger",
    "ProcessFailedError",
    "Processes",
    "TrackioLogger",
    "TrainConfig",
    "Trainer",
    "TrainingDisplay",
    "TrainingDivergedError",
    "TrainingResult",
    "WandbLogger",
    "joined_processes",
    "load_generator",
]
