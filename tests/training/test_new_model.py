"""A model is its networks, its updates and a row: a toy of this file trains by the command line."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastgan
from fastgan import load_generator
from fastgan.cli import main
from fastgan.training.config import MODELS
from fastgan.training.model_kinds import MODEL_KINDS, ModelKind
from fastgan.training.recorder import read_metrics
from fastgan.training.updates import GANUpdater


class ToyGenerator(nn.Module):
    def __init__(self, nz: int, nc: int, image_size: int) -> None:
        super().__init__()
        self.shape = (nc, image_size, image_size)
        self.linear = nn.Linear(nz, nc * image_size**2)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.linear(z.flatten(1))).view(-1, *self.shape)


class ToyDiscriminator(nn.Sequential):
    def __init__(self, nc: int, image_size: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(nc * image_size**2, 1))


class ToyUpdater(GANUpdater):
    """Scores are compared with 2 and -2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.discriminator_loss = lambda real, fake: (
            (real - 2).square().mean() + (fake + 2).square().mean()
        )
        self.generator_loss = lambda fake: (fake - 2).square().mean()


def test_a_model_is_its_networks_its_updates_and_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = ModelKind(
        f"{__name__}:ToyGenerator",
        f"{__name__}:ToyDiscriminator",
        {
            "batch_size": 8,
            "optimizer": "sgd",
            "lr": 1e-3,
            "noise": "normal",
            "n_critic": 2,
            "loss": "least-squares",
        },
        reads=("nz", "noise"),
        batch_norm=False,
        updater=f"{__name__}:ToyUpdater",
    )
    monkeypatch.setitem(MODEL_KINDS, "toy", kind)
    out = tmp_path / "run"
    flags = ["--model", "toy", "--steps", "1", "--nz", "4", "--ema-decay", "0", "--device", "cpu"]
    assert main(["train", *flags, "--out", str(out)]) == 0
    trained = load_generator(out)
    assert isinstance(trained.module, ToyGenerator)
    assert trained.sample(3).shape == (3, 1, 16, 16)
    # Each player's own loss: with small weights 2^2 twice, and 2^2 once.
    (row,) = read_metrics(out / "metrics.csv")
    assert 4 < row["loss_d"] < 16
    assert 1 < row["loss_g"] < 9


def test_no_file_of_the_trainer_names_a_model() -> None:
    package = Path(fastgan.__file__).parent
    files = [*(package / "training").glob("*.py"), *(package / "cli").glob("*.py")]
    named = {
        f"{path.name}: {node.value}"
        for path in files
        if path.name != "model_kinds.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in MODELS
    }
    assert len(files) > 40
    assert named == set()
