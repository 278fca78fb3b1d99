"""Runs of cyclegan and pix2pix: pairs, files, resuming, translating, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan import load_generator
from fastgan.cli import main
from fastgan.data import PairSource, as_source, load_data, load_pairs
from fastgan.data.folder import load_folder
from fastgan.errors import CheckpointError, ConfigError, DataError
from fastgan.evaluation import evaluate_samples
from fastgan.exporting import export_generator
from fastgan.models import WGANCritic
from fastgan.training import TrainConfig, Trainer
from fastgan.training.checkpoint import load_checkpoint

SMALL: dict[str, Any] = {
    "ngf": 2, "ndf": 2, "batch_size": 2, "steps": 4, "log_every": 1, "sample_every": 4,
    "n_samples": 12, "precision": "fp32",
}  # fmt: skip


def config_of(model: str, out: Path, **changes: Any) -> TrainConfig:
    blocks = {"blocks": 1} if model == "cyclegan" else {}
    return TrainConfig(model=model, out=str(out), **{**SMALL, **blocks, **changes})


def write_images(folder: Path, names: list[str], channels: int = 1, first: int = 0) -> Path:
    """Images of one value each, ``first`` and above."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shape = (20, 16) if channels == 1 else (20, 16, channels)
        Image.fromarray(np.full(shape, first + number, np.uint8)).save(folder / name)
    return folder


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_resumed_run_with_dropout_is_the_same_to_the_bit(tmp_path: Path) -> None:
    # 64 pixels: the U-Net has dropout there.
    settings = {"image_size": 64, "lr_decay": "half"}
    Trainer(config_of("pix2pix", tmp_path / "whole", **settings)).run()
    half = config_of("pix2pix", tmp_path / "half", checkpoint_every=2, **settings)
    Trainer(half).run()
    (tmp_path / "half" / "checkpoint-0000004.pt").unlink()
    resumed = Trainer(half, resume=True)
    assert resumed.step == 2
    resumed.run()
    first, second = (
        load_checkpoint(tmp_path / name / "checkpoint-0000004.pt") for name in ("whole", "half")
    )
    for content in (first, second):
        for name in ("out", "checkpoint_every"):
            content["config"].pop(name)
        content.pop("totals")
    assert same(first, second)


def test_a_run_leaves_metrics_and_rows_of_translations(tmp_path: Path) -> None:
    result = Trainer(config_of("cyclegan", tmp_path, evaluate_every=4)).run()
    for name in ("loss_d", "loss_g", "cycle", "identity", "d_real", "d_fake", "grad_norm_g"):
        assert np.isfinite(result.metrics[name]), name
    with Image.open(tmp_path / "samples.png") as grid:
        # Two columns; six rows, each below its name.
        assert grid.size[0] < grid.size[1] / 3
    assert (tmp_path / "best.pt").exists()
    content = load_checkpoint(tmp_path / "checkpoint-0000004.pt")
    assert int(content["discriminator"]["pool_a.count"]) == 8
    found = load_generator(tmp_path)
    written = tmp_path / "figures.json"
    assert main(["evaluate", str(tmp_path), "--n=10", f"--json={written}"]) == 0
    figures, (*_, during) = (
        json.loads(path.read_text()) for path in (written, tmp_path / "evaluations.json")
    )
    assert figures["n_real"] == figures["b2a"]["n_real"] == 1797
    # It is of the real images alone, of B for one direction and of A for the other.
    name = "frechet_distance_real"
    for one, other in ((figures, during), (figures["b2a"], during["b2a"])):
        assert one[name] == pytest.approx(other[name])
    assert figures[name] != pytest.approx(figures["b2a"][name])
    assert figures["frechet_distance"] != pytest.approx(figures["b2a"]["frechet_distance"])
    with pytest.raises(
        ConfigError,
        match=r"both domains; expected data_a and data_b, a .*PairSource in Python, got 'digits'",
    ):
        found.evaluate("digits")
    colour = as_source(torch.full((8, 3, 16, 16), -0.5))
    with pytest.raises(ConfigError, match="3 channel"):
        found.evaluate(PairSource(colour, colour, paired=True), n=10)
    with pytest.raises(ConfigError, match="no noise to truncate"):
        found.evaluate(n=10, truncation=0.5)
    with pytest.raises(ConfigError, match="draws nothing from noise"):
        found.sample(2)


def test_evaluate_takes_held_out_images_of_both_domains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Trainer(config_of("pix2pix", tmp_path / "run", steps=1)).run()
    names = [f"{number}.png" for number in range(12)]
    a, b = (write_images(tmp_path / each, names, first=f) for each, f in (("a", 0), ("b", 20)))
    written = tmp_path / "figures.json"
    command = ["evaluate", str(tmp_path / "run"), "--n=12", f"--json={written}"]
    both = [f"--data-a=folder:{a}", f"--data-b=folder:{b}"]
    assert main([*command, *both]) == 0
    figures = json.loads(written.read_text())
    assert (figures["n_real"], figures["n_generated"]) == (12, 12)
    assert figures["data"] == f"folder:{a} and folder:{b}"
    found = load_generator(tmp_path / "run")
    held_out = load_pairs(f"folder:{a}", f"folder:{b}", paired=True, image_size=16)
    expected = evaluate_samples(
        found.translate(held_out.images[:, :1]), held_out.images[:, 1:], k=5
    )
    assert figures["frechet_distance"] == pytest.approx(expected.frechet_distance, rel=1e-4)
    for arguments in (both[:1], both[1:], [*both, "--data=digits"], [both[0], "--data-b=digits"]):
        assert main([*command, *arguments]) == 2
    (b / "3.png").rename(b / "other.png")
    assert main([*command, *both]) == 2
    assert "have no partner of their name" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="dcgan doesn't translate"):
        replace(found, config=TrainConfig().resolved()).pairs("digits", "digits")


def test_learning_rates_fall_over_the_second_half(tmp_path: Path) -> None:
    Trainer(config_of("cyclegan", tmp_path, lr=0.4)).run()
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("lr_g")
    rates = [float(row.split(",")[column]) for row in rows[1:]]
    assert rates == pytest.approx([0.4, 0.4, 0.2, 0.0])


def test_files_of_the_same_name_pair_up(tmp_path: Path) -> None:
    a = write_images(tmp_path / "a", ["2/x.png", "1.png", "0.jpg"])
    b = write_images(tmp_path / "b", ["0.png", "2/x.bmp", "1.png"], channels=3, first=100)
    pairs = load_pairs(f"folder:{a}", f"folder:{b}", paired=True, image_size=16)
    assert pairs.channels == 3
    values = ((pairs.images[:, [0, 3], 8, 8] + 1) * 127.5).round()
    assert sorted(values.tolist()) == [[0.0, 101.0], [1.0, 102.0], [2.0, 100.0]]
    assert pairs.images.shape == (3, 6, 16, 16)


def test_pairs_are_read_from_files_where_memory_does_not_hold_them(tmp_path: Path) -> None:
    folders = [
        write_images(tmp_path / name, ["0.png", "1.png"], first=first)
        for name, first in (("a", 10), ("b", 90))
    ]
    on_disk, held = (
        PairSource(
            *(
                load_folder(folder, name=folder.name, image_size=16, in_memory=in_memory)
                for folder in folders
            ),
            paired=True,
        )
        for in_memory in (False, True)
    )
    assert (on_disk.in_memory, held.in_memory) == (False, True)
    assert on_disk.read([0]).dtype == torch.uint8
    assert torch.equal(on_disk.get([1, 0])[0], held.get([1, 0])[0])
    with pytest.raises(DataError, match="too large to be held whole"):
        assert on_disk.images is None


def test_unpaired_images_of_both_sets_all_come_up() -> None:
    a, b = load_data("digits", image_size=16), load_data("digit-outlines", image_size=16)
    small = PairSource(a, b, paired=False)
    first, second = small.get(range(len(small)))[0].chunk(2, 1)
    assert torch.equal(first, a.images)
    assert not torch.equal(second, b.images)
    order = [images.flatten(1).double().sum(1).sort().values for images in (second, b.images)]
    assert torch.allclose(*order, rtol=0, atol=1e-3)


def refused(text: str, *arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends with one line that has the text, and exit code 2."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1, told
    assert text in told


def test_pairs_that_do_not_pair_up_are_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write_images(tmp_path / "a", ["0.png", "1.png", "2.png"])
    b = write_images(tmp_path / "b", ["0.png", "1.png"])
    c = write_images(tmp_path / "c", ["0.png", "0.jpg", "1.png", "2.png"])
    d = write_images(tmp_path / "d", ["0.png", "1.png", "2.png"])
    (d / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")

    def pix2pix(first: str, second: str, text: str) -> None:
        arguments = ("--data-a", first, "--data-b", second, "--out", str(tmp_path / "run"))
        refused(text, "train", "--model", "pix2pix", *arguments, capsys=capsys)
        assert not (tmp_path / "run").exists()

    pix2pix(f"folder:{a}", f"folder:{b}", "1 of 3 images have no partner of their name")
    pix2pix(f"folder:{b}", f"folder:{a}", "the first is '2.png'")
    pix2pix(f"folder:{a}", f"folder:{c}", "have one name")
    pix2pix(f"folder:{a}", f"folder:{d}", "1.png")
    pix2pix(f"folder:{a}", "digits", "3 and 1797 images")
    pix2pix("nothing", "digits", "unknown")


def test_settings_without_a_meaning_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "r1": "1", "r2": "1", "orthogonal": "0.1", "augment": "color", "accumulate": "2",
        "data": "folder:x", "data-a": "digits",
    }.items():  # fmt: skip
        arguments = ("--model", "cyclegan", f"--{name}", value, "--out", str(tmp_path / "run"))
        refused("cyclegan", "train", *arguments, capsys=capsys)
    for name in ("conditional", "one-stage", "projection"):
        arguments = ("--model", "pix2pix", f"--{name}", "--out", str(tmp_path / "run"))
        refused("has no use for it", "train", *arguments, capsys=capsys)
    for changes in (
        {"blocks": 0}, {"cycle_weight": -1.0}, {"l1_weight": float("inf")},
        {"loss": "relativistic"}, {"critic_norm": "layer"}, {"blocks": 10**6},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(changes))):
            config_of("cyclegan", tmp_path, **changes).validate()
    assert TrainConfig(model="dcgan").resolved().ignored({"data_a"}) == ["data_a"]
    digits = load_data("digits", image_size=16)
    with pytest.raises(ConfigError, match=r"expected a fastgan\.data\.PairSource"):
        Trainer(config_of("cyclegan", tmp_path / "run"), source=digits)
    pairs = PairSource(digits, digits, paired=True)
    with pytest.raises(ConfigError, match=r"expected no fastgan\.data\.PairSource"):
        Trainer(TrainConfig(out=str(tmp_path / "run")), source=pairs)
    with pytest.raises(ConfigError, match="takes unpaired images"):
        Trainer(config_of("cyclegan", tmp_path / "run"), source=pairs)
    with pytest.raises(ConfigError, match="trains its own networks"):
        Trainer(config_of("cyclegan", tmp_path / "run"), discriminator=WGANCritic(1, 2, 16))
    assert not (tmp_path / "run").exists()


def test_pairs_from_python_train_and_are_asked_for_again(tmp_path: Path) -> None:
    digits = load_data("digits", image_size=16)
    pairs = PairSource(digits, digits, paired=True)
    config = config_of("pix2pix", tmp_path, steps=1)
    Trainer(config, source=pairs).run()
    with pytest.raises((ConfigError, DataError), match="given"):
        Trainer(config_of("pix2pix", tmp_path, steps=2), resume=True)
    assert Trainer(config_of("pix2pix", tmp_path), source=pairs, resume=True).step == 1
    with pytest.raises(ConfigError, match="given in Python"):
        load_generator(tmp_path).evaluate(n=10)


def test_translate_writes_an_image_for_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    Trainer(config_of("cyclegan", run, steps=1)).run()
    folder = write_images(tmp_path / "in", ["a.png", "sub/b.jpg", "sub/c.bmp"])
    single = write_images(tmp_path, ["d.png"], first=200) / "d.png"
    command = ("translate", str(run), "--data", f"folder:{folder}", str(single))
    assert main([*command, "--out", str(out), "--direction", "b2a", "--device", "cpu"]) == 0
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert written == ["a.png", "d.png", "sub/b.jpg", "sub/c.png"]
    found = load_generator(run)
    values = torch.full((1, 1, 16, 16), 200 / 127.5 - 1)
    expected = ((found.translate(values, "b2a") + 1) * 127.5).round()
    with Image.open(out / "d.png") as image:
        difference = np.asarray(image).astype(float) - expected[0, 0].numpy()
    assert abs(difference).max() <= 1
    assert not torch.equal(found.translate(values, "b2a"), found.translate(values, "a2b"))

    more = tmp_path / "more"
    write_images(more, ["d.bmp"])
    (tmp_path / "bad.png").write_bytes(b"GIF89a")

    def bad(text: str, *data: str, to: Path = tmp_path / "new", of: Path = run) -> None:
        arguments = ("translate", str(of), "--data", *data, "--out", str(to))
        refused(text, *arguments, capsys=capsys)
        assert not (tmp_path / "new").exists()

    bad("new or empty folder", str(single), to=out)
    bad("has the name of", str(single), f"folder:{more}")
    bad("bad.png", str(single), str(tmp_path / "bad.png"))
    bad("not found", f"folder:{tmp_path / 'none'}")
    bad("no path", "folder:")
    bad("data '': no file", "")
    bad("data '/': no file", str(single), "/")
    bad("none.png", str(tmp_path / "none.png"))
    dcgan = tmp_path / "dcgan"
    Trainer(TrainConfig(out=str(dcgan), steps=1, ngf=2, ndf=2, batch_size=4)).run()
    bad("it draws images from noise", str(single), of=dcgan)
    refused(
        "draws nothing from noise",
        *("sample", str(run), "--out", str(tmp_path / "x.png")),
        capsys=capsys,
    )


def test_pix2pix_translates_one_way(tmp_path: Path) -> None:
    Trainer(config_of("pix2pix", tmp_path, steps=1)).run()
    found = load_generator(tmp_path)
    images = torch.zeros(2, 1, 16, 16)
    assert found.translate(images).shape == images.shape
    with pytest.raises(ConfigError, match="doesn't translate b2a; expected a2b"):
        found.translate(images, "b2a")
    path = tmp_path / "x.safetensors"
    export_generator(found, path, format="safetensors")
    again = load_generator(path)
    assert torch.equal(again.translate(images), found.translate(images))
    assert again.config.data_a is again.config.data_b is None
    with pytest.raises(ConfigError, match="expected safetensors, got 'onnx'"):
        export_generator(found, tmp_path / "x.onnx", format="onnx")


def test_a_checkpoint_with_another_pool_is_refused(tmp_path: Path) -> None:
    config = config_of("cyclegan", tmp_path, steps=1)
    Trainer(config).run()
    (path,) = tmp_path.glob("*.pt")
    content = load_checkpoint(path)
    content["discriminator"]["pool_a.images"] = torch.zeros(3, 1, 16, 16)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"pool_a\.images"):
        Trainer(config, resume=True)
