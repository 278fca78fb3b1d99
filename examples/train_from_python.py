"""Training from Python, with a metric of one's own and a stop when it is good enough.

The metric is the share of each sample's pixels that are nearly black or nearly white: handwritten
digits have about three quarters of them, noise almost none. It becomes a column of metrics.csv and
a curve in TensorBoard. Small and short, so that it runs anywhere in seconds.

    python examples/train_from_python.py
"""

from __future__ import annotations

import tempfile

import torch

from fastgan.sampling.batches import generate_images
from fastgan.sampling.noise import sample_noise
from fastgan.training import Callback, TrainConfig, Trainer, TrainingResult


class Contrast(Callback):
    """Looks at a few samples now and then."""

    def __init__(self, every: int, enough: float) -> None:
        self.every = every
        self.enough = enough

    def on_step(self, trainer: Trainer) -> None:
        """Logs the share of decided pixels; ends the run once it suffices."""
        if trainer.step % self.every == 0:
            # A stream of its own: measuring must not change what is trained.
            random = torch.Generator().manual_seed(0)
            z = sample_noise(16, trainer.config.nz, trainer.config.noise, generator=random)
            images = generate_images(trainer.ema.module, z)
            share = float((images.abs() > 0.8).float().mean())
            trainer.log("decided_pixels", share)
            if share > self.enough:
                trainer.request_stop("enough contrast")


def main(steps: int = 40) -> TrainingResult:
    """Trains a small WGAN-GP on handwritten digits and prints where it ended."""
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            model="wgan-gp", data="digits", out=f"{folder}/run", steps=steps, ngf=8, ndf=8,
            batch_size=16, n_critic=2, lr=1e-3, beta1=0.5, log_every=10, ema_decay=0.9,
        )  # fmt: skip
        result = Trainer(config, callbacks=[Contrast(every=10, enough=0.7)]).run()
    print(f"{result.step} steps, stopped by {result.stopped_by}: {result.metrics}")
    return result


if __name__ == "__main__":
    main()
