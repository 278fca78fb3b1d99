"""A metric of your own, a stop when it is good, and numbers for any logger (W&B, MLflow, ...)."""

import json
import tempfile

from fastgan.training import Callback, TrainConfig, Trainer, TrainingResult


class Contrast(Callback):
    """Logs how many pixels are nearly black or white: in digits three quarters, in noise none."""

    def on_samples(self, trainer, images):  # every sample_every steps
        trainer.log("decided_pixels", (images.abs() > 0.8).float().mean())

    def on_metrics(self, trainer, row):
        print(json.dumps(row))  # or wandb.log(row), mlflow.log_metrics(row, step=trainer.step)
        if row.get("decided_pixels", 0) > 0.7:
            trainer.request_stop("enough contrast")


def main(steps: int = 40) -> TrainingResult:
    with tempfile.TemporaryDirectory() as out:
        config = TrainConfig(model="wgan-gp", out=out, steps=steps, ngf=8, ndf=8, batch_size=16,
                             n_critic=2, lr=1e-3, log_every=10, sample_every=10)  # fmt: skip
        return Trainer(config, callbacks=[Contrast()]).run()


if __name__ == "__main__":
    print(main())
