"""A trained generator in one line of Python, and the single images that the command line writes."""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image

import fastgan
from fastgan.cli import main
from fastgan.cli.play import draw
from fastgan.data import load_data
from fastgan.errors import ConfigError, DataError
from fastgan.sampling.images import to_bytes
from fastgan.training import TrainConfig, Trainer

SMALL: dict[str, Any] = {"nz": 4, "ngf": 4, "ndf": 4, "batch_size": 4, "n_critic": 1, "steps": 1}


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 16, 16), np.uint8)

    class Animals:
        targets = torch.arange(9) % 3
        classes = ("cat", "dog", "owl")

        def __len__(self) -> int:
            return 9

        def __getitem__(self, index: int) -> np.ndarray:
            return pixels[index]

    config = TrainConfig(model="cgan", out=str(out), **SMALL)
    return Trainer(config, source=Animals()).run().checkpoint


def test_a_generator_draws_the_same_for_the_same_seed(conditional: Path) -> None:
    generator = fastgan.load_generator(conditional.parent)
    assert (generator.path, generator.step, generator.averaged) == (conditional, 1, True)
    images = generator.sample(6, seed=3)
    assert images.shape == (6, 1, 16, 16)
    assert torch.equal(images, generator.sample(6, seed=3))
    assert not torch.equal(images, generator.sample(6, seed=4))
    z, labels = generator.noise(6, seed=3), torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        assert torch.allclose(images, generator.module(z, labels), atol=1e-6)
    assert generator.noise(50, truncation=0.3).abs().max() <= 0.3


def test_classes_go_by_name_and_by_number(conditional: Path) -> None:
    generator = fastgan.load_generator(conditional)
    dogs = generator.sample(4, classes="dog")
    assert torch.equal(dogs, generator.sample(4, classes=1))
    assert torch.equal(dogs, generator.sample(4, classes="1"))
    mixed = generator.labels(5, ["owl", 0])
    assert mixed is not None
    assert mixed.tolist() == [2, 0, 2, 0, 2]
    with pytest.raises(ConfigError, match="class: expected 0 to 2 or one of cat, dog, owl, got"):
        generator.sample(1, classes="cow")
    with pytest.raises(ConfigError, match="class: expected 0 to 2, got 3"):
        generator.sample(1, classes=3)


def test_a_walk_passes_its_samples_and_comes_back(conditional: Path) -> None:
    generator = fastgan.load_generator(conditional)
    walk = generator.interpolate(3, 4, seed=5, classes="owl")
    assert walk.shape == (12, 1, 16, 16)
    assert torch.allclose(walk[::4], generator.sample(3, seed=5, classes="owl"), atol=1e-5)


def test_a_walk_between_two_seeds_leads_from_one_sample_to_the_other(conditional: Path) -> None:
    generator = fastgan.load_generator(conditional)
    options: dict[str, Any] = {"truncation": 0.7, "classes": "owl"}
    start, middle, end = generator.between(3, 8, [0, 0.5, 1], **options)[:, None]
    assert torch.allclose(start, generator.sample(1, seed=3, **options), atol=1e-6)
    assert torch.allclose(end, generator.sample(1, seed=8, **options), atol=1e-6)
    first, second = (generator.noise(1, seed=seed, truncation=0.7).double() for seed in (3, 8))
    # Half way along the great circle: the sum, as long as half the angle's cosine makes it.
    cosine = float((first * second).sum() / first.norm() / second.norm())
    z = (first + second) / (2 * (1 + cosine)) ** 0.5
    with torch.no_grad():
        wanted = generator.module(z.float(), torch.tensor([2]))
    assert torch.allclose(middle, wanted, atol=1e-5)


def test_the_page_shows_the_walk_in_pixels_that_can_be_seen(conditional: Path) -> None:
    generator = fastgan.load_generator(conditional)
    image, strip = draw(generator, 3, 8, 1.0, truncation=0.7, label=2)
    end = to_bytes(generator.sample(1, seed=8, truncation=0.7, classes=2))[0]
    assert image.shape == (384, 384, 3)
    assert np.array_equal(image[::24, ::24], end.repeat(3, axis=2))
    assert strip.shape == (96, 9 * 96, 3)
    assert np.array_equal(strip[::6, -96::6], end.repeat(3, axis=2))


def test_the_page_is_for_this_machine_alone(
    conditional: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a stand-in, which takes everything: Gradio 6 wants an older Pillow than the tests."""
    gradio = MagicMock(__spec__=ModuleSpec("gradio", None, origin="stand-in"))
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    blocks = gradio.Blocks.return_value.__enter__.return_value
    blocks.launch.return_value = (None, "http://127.0.0.1:7860/", None)
    assert main(["play", str(conditional), "--device=cpu"]) == 0
    assert "http://127.0.0.1:7860/" in capsys.readouterr().out
    launched = blocks.launch.call_args.kwargs
    assert (launched["server_name"], launched["share"]) == ("127.0.0.1", False)
    assert gradio.Blocks.call_args.kwargs["analytics_enabled"] is False
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert gradio.Dropdown.call_args.args[0] == [("cat", 0), ("dog", 1), ("owl", 2)]
    blocks.block_thread.assert_called_once_with()
    show = gradio.on.call_args.args[1]
    generator = fastgan.load_generator(conditional)
    for shown, asked in (
        ((3, 8, 0.3, 0.5, 1), (3, 8, 0.3, 0.5, 1)),
        ((3, None, 0.3, 1.0, 1), (3, 0, 0.3, None, 1)),  # the right end is no truncation
    ):
        for found, wanted in zip(show(*shown), draw(generator, *asked), strict=True):
            assert np.array_equal(found, wanted)
    blocks.launch.side_effect = OSError("Cannot find empty port in range: 80-80")
    assert main(["play", str(conditional), "--port=80"]) == 2
    assert "port: 80 is taken" in capsys.readouterr().err


def test_without_gradio_the_extra_is_named(
    conditional: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["play", str(conditional)]) == 2
    assert "gradio isn't installed: pip install 'fastgan[play]'" in capsys.readouterr().err


def test_extractors_run_where_the_generator_is(
    conditional: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def measured(*arguments: object, device: object, **options: object) -> None:
        asked.append(device)

    monkeypatch.setattr("fastgan.evaluation.evaluate_samples", measured)
    generator = fastgan.load_generator(conditional).to("meta")
    monkeypatch.setattr("fastgan.trained.generate_images", lambda *given, **options: None)
    generator.evaluate(torch.full((9, 1, 16, 16), -0.5), 6)
    assert asked == [torch.device("meta")]
    assert main(["evaluate", str(conditional), "--device=nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_single_images_are_what_other_programs_read(
    conditional: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = to_bytes(fastgan.load_generator(conditional).sample(12, seed=2))[..., 0]
    folder, array = tmp_path / "images", tmp_path / "images.npz"
    for place in (folder, array):
        assert main(["sample", str(conditional), "--n=12", "--seed=2", "--to", str(place)]) == 0
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.glob("*/*"))]
    assert names == [f"{label:03d}/{k:02d}.png" for label in range(3) for k in range(label, 12, 3)]
    for name in names:
        assert np.array_equal(np.asarray(Image.open(folder / name)), wanted[int(name[4:6])])
    source = load_data(f"npz:{array}", image_size=16)
    assert np.array_equal(to_bytes(source.get(range(12))[0])[..., 0], wanted)
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 2] * 4
    # Nothing is mixed with what is there, and nothing is written where nothing was asked for.
    assert main(["sample", str(conditional), "--to", str(folder)]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err
    assert main(["sample", str(conditional)]) == 2
    assert "--to DIR" in capsys.readouterr().err


def test_the_command_line_takes_classes_by_name(conditional: Path, tmp_path: Path) -> None:
    for label in ("dog", "1"):
        out = tmp_path / f"{label}.npz"
        words = ["sample", str(conditional), "--n=3", f"--class={label}", "--to", str(out)]
        assert main(words) == 0
    named, numbered = (np.load(tmp_path / f"{label}.npz")["images"] for label in ("dog", "1"))
    assert np.array_equal(named, numbered)
    assert main(["sample", str(conditional), "--class=cow", f"--out={tmp_path / 'a.png'}"]) == 2


def test_a_generator_is_measured_against_any_real_images(conditional: Path) -> None:
    generator = fastgan.load_generator(conditional)
    with pytest.raises(DataError, match="give it again"):
        generator.evaluate(n=20)
    real = torch.rand(60, 1, 16, 16) * 2 - 1
    report = generator.evaluate(real, 30, seed=3)
    assert (report.n_real, report.n_generated, report.class_histogram) == (60, 30, None)
    assert report == generator.evaluate(real, 30, seed=3)
    assert report != generator.evaluate(real, 30, seed=4)
    with pytest.raises(ConfigError, match="tensor has 2 classes, the checkpoint 3"):
        generator.evaluate((real, torch.arange(60) % 2), 30)
    with pytest.raises(ConfigError, match=r"tensor has 3 channel\(s\), the checkpoint draws 1"):
        generator.evaluate(real.expand(-1, 3, -1, -1), 30)
