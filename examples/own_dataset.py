"""Train on a torch Dataset of your own: discs of three sizes, which are the classes."""

import tempfile

import torch
from torch.utils.data import Dataset

from fastgan.training import TrainConfig, Trainer, TrainingResult


class Discs(Dataset):
    classes = ("small", "middle", "large")

    def __len__(self) -> int:
        return 300

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        square = (torch.arange(16) - 7.5) ** 2
        inside = square[:, None] + square < (2 + 2 * (index % 3)) ** 2
        return inside.float()[None] * 2 - 1, index % 3


def main(steps: int = 20) -> TrainingResult:
    with tempfile.TemporaryDirectory() as out:
        config = TrainConfig(model="cgan", out=out, steps=steps, ngf=8, ndf=8, batch_size=32)
        return Trainer(config, source=Discs()).run()


if __name__ == "__main__":
    print(main())
