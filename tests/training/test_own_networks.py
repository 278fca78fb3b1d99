"""Runs with the caller's networks and optimisers: trained, saved, continued, loaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgan
from fastgan.cli import main
from fastgan.errors import CheckpointError, ConfigError
from fastgan.training import TrainConfig, Trainer
from fastgan.training.checkpoint import list_checkpoints

SMALL: dict[str, Any] = {"nz": 4, "batch_size": 4, "n_critic": 1, "data": "digits"}
ADAMW = partial(torch.optim.AdamW, lr=1e-3)


class Painter(nn.Module):
    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.size = size
        self.paint = nn.Linear(4, size * size)

    def forward(self, z: Tensor) -> Tensor:
        return self.paint(z.flatten(1)).tanh().view(-1, 1, self.size, self.size)


def judge() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 4, 4), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(64, 1))


def run(out: Path, steps: int, **options: Any) -> Trainer:
    torch.manual_seed(1)
    options = {"generator": Painter(), "discriminator": judge(), **options}
    config = TrainConfig(model="wgan-gp", out=str(out), steps=steps, **SMALL)
    trainer = Trainer(config, explicit=frozenset({"steps"}), **options)
    trainer.run()
    return trainer


def test_a_continued_run_of_own_parts_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    def optimizers() -> dict[str, Any]:
        return {"optimizers": (ADAMW, ADAMW)}

    whole = run(tmp_path / "whole", 4, **optimizers())
    assert (whole.config.lr_g, whole.config.lr_d) == (1e-3, 1e-3)
    run(tmp_path / "run", 2, **optimizers())
    torch.manual_seed(7)  # what is given again may have any weights
    again = {"generator": Painter(), "discriminator": judge(), **optimizers()}
    config = TrainConfig(out=str(tmp_path / "run"), steps=4)
    trainer = Trainer(config, resume=True, explicit=frozenset({"steps"}), **again)
    assert trainer.run().step == 4
    for name, network in whole.state.networks():
        for key, value in dict(trainer.state.networks())[name].state_dict().items():
            assert torch.equal(value, network.state_dict()[key]), (name, key)
    assert trainer.updater.generator is again["generator"]


def test_a_trained_own_generator_is_loaded_into_a_module_like_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    trainer = run(out, 1)
    loaded = fastgan.load_generator(out, generator=Painter())
    with torch.no_grad():
        wanted = trainer.state.sampler(loaded.noise(3, seed=2))
    torch.testing.assert_close(loaded.sample(3, seed=2), wanted)
    with pytest.raises(CheckpointError, match=r"generator, \S+\.Painter, was given to Trainer"):
        fastgan.load_generator(out)
    with pytest.raises(CheckpointError, match="of another model than it says"):
        fastgan.load_generator(out, generator=Painter(8))
    # The command line can't build it, and says so; what can be checked, it checks.
    for words in (["sample", str(out), "--out", str(tmp_path / "a.png")], ["evaluate", str(out)]):
        assert main(words) == 2
        assert "fastgan.load_generator(..., generator=...)" in capsys.readouterr().err
    assert main(["train", "--resume", "--out", str(out), "--steps=2"]) == 2
    assert "Trainer(..., resume=True, generator=...)" in capsys.readouterr().err
    assert main(["check", str(out)]) == 0
    (path,) = list_checkpoints(out)
    path.write_bytes(path.read_bytes()[:-200])
    assert main(["check", str(out)]) == 1


def test_groups_keep_their_ratio_while_rates_fall(tmp_path: Path) -> None:
    generator, discriminator = Painter(), fastgan.fuse(judge())
    groups = [
        {"params": [generator.paint.weight], "lr": 1e-2},
        {"params": [generator.paint.bias], "lr": 1e-3},
    ]
    optimizers = torch.optim.SGD(groups), fastgan.optim.Adam(discriminator.parameters(), lr=1e-4)
    config = TrainConfig(out=str(tmp_path), steps=4, lr_decay="linear", **SMALL)
    trainer = Trainer(
        config, generator=generator, discriminator=discriminator, optimizers=optimizers
    )
    trainer.updater.set_learning_rates(5e-3, 5e-5)
    assert [group["lr"] for group in optimizers[0].param_groups] == pytest.approx([5e-3, 5e-4])
    assert (trainer.config.lr_g, trainer.config.lr_d) == (1e-2, 1e-4)
    assert trainer.run().metrics["lr_g"] == 0.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"generator": Painter(8)}, r"expected images of shape \(2, 1, 16, 16\) .* 1, 8, 8\)"),
        ({"generator": nn.Linear(5, 5)}, r"generator: failed on inputs of shape \(2, 4, 1, 1\)"),
        ({"generator": nn.Flatten()}, "generator: expected a module with parameters, got none"),
        ({"generator": 3}, "generator: expected an nn.Module, got int"),
        ({"discriminator": nn.Sequential(judge(), nn.Sigmoid())}, "takes logits; leave out"),
        ({"optimizers": (ADAMW,)}, "optimizers: expected two"),
        ({"optimizers": (ADAMW, len)}, "expected an optimiser, got int"),
        (
            # Made in the test: torch's first optimiser imports the compiler, which takes long.
            {"optimizers": lambda: (ADAMW, torch.optim.SGD(judge().parameters(), lr=1.0))},
            "optimizers: the discriminator's has parameters that aren't",
        ),
    ],
)
def test_parts_that_cant_be_trained_are_refused_before_anything_is_written(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    out = tmp_path / "run"
    if callable(optimizers := given.get("optimizers")):
        given = {"optimizers": optimizers()}
    with pytest.raises(ConfigError, match=message):
        Trainer(TrainConfig(out=str(out), ngf=4, ndf=4, **SMALL), **given)
    assert not out.exists()


def test_a_run_goes_on_with_the_same_kind_of_parts_alone(tmp_path: Path) -> None:
    config = TrainConfig(out=str(tmp_path), steps=1, ngf=4, ndf=4, **SMALL)
    Trainer(config, optimizers=(ADAMW, ADAMW)).run()
    with pytest.raises(CheckpointError, match=r"optimizer_g, torch\.optim\.adamw\.AdamW"):
        Trainer(config, resume=True)
    with pytest.raises(CheckpointError, match="generator was made by the trainer"):
        Trainer(config, resume=True, generator=Painter(), optimizers=(ADAMW, ADAMW))
