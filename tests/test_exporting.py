"""Exported generators draw the same images in other programs."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastgan
from fastgan.cli import main
from fastgan.errors import CheckpointError, ConfigError
from fastgan.exporting import description, export_generator, truncate
from fastgan.models import DCGANDiscriminator, DCGANGenerator, WGANCritic
from fastgan.trained import TrainedGenerator
from fastgan.training import TrainConfig, Trainer

SMALL: dict[str, Any] = {"nz": 4, "ngf": 4, "ndf": 4, "batch_size": 4, "n_critic": 1, "steps": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a conditional generator with normal noise."""
    out = tmp_path_factory.mktemp("exported") / "run"
    config = TrainConfig(model="wgan-gp", conditional=True, out=str(out), **SMALL)
    return Trainer(config).run().checkpoint


def drawn(generator: TrainedGenerator, z: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return generator.module(z[:, :, None, None], labels)


def test_a_file_of_onnx_draws_what_the_average_draws_of_truncated_noise(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx
    import onnxruntime

    path = tmp_path / "generator.onnx"
    words = ["export", str(checkpoint), "--format=onnx", "--truncation=0.7", "--out", str(path)]
    assert main(words) == 0
    assert "checked with onnxruntime" in capsys.readouterr().out
    proto = onnx.load(path)
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}  # standard ops alone
    facts = {each.key: json.loads(each.value) for each in proto.metadata_props}
    assert facts == {
        "noise": "normal",
        "truncation": 0.7,
        "step": 1,
        "classes": [str(k) for k in range(10)],
    }
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = fastgan.load_generator(checkpoint)
    z, labels = torch.randn(5, 4), torch.arange(5)
    (images,) = session.run(["images"], {"z": z.numpy(), "labels": labels.numpy()})
    z = truncate(z, "normal", 0.7)
    assert z.abs().max() <= 0.7
    torch.testing.assert_close(
        torch.from_numpy(images), drawn(generator, z, labels), atol=1e-5, rtol=0
    )


def test_a_program_of_torch_export_needs_no_fastgan(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "generator.pt2"
    words = ["export", str(checkpoint), "--no-ema", "--format=torch-export", "--out", str(path)]
    assert main(words) == 0
    z, labels = torch.randn(6, 4), torch.arange(6)
    torch.save((z, labels), tmp_path / "inputs.pt")
    script = (
        "import sys, torch\n"
        "program = torch.export.load('generator.pt2').module()\n"
        "torch.save(program(*torch.load('inputs.pt')), 'images.pt')\n"
        "assert 'fastgan' not in sys.modules\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, env=environment)
    wanted = drawn(fastgan.load_generator(checkpoint, ema=False), z, labels)
    torch.testing.assert_close(torch.load(tmp_path / "images.pt"), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", ["export", "save_pretrained"])
def test_weights_of_safetensors_load_as_the_generator_that_they_were(
    checkpoint: Path, tmp_path: Path, way: str
) -> None:
    from safetensors.torch import load_file

    generator = fastgan.load_generator(checkpoint)
    if way == "export":
        path = place = tmp_path / "generator.safetensors"
        export_generator(generator, path, format="safetensors")
    else:
        place, path = tmp_path / "folder", tmp_path / "folder" / "model.safetensors"
        generator.save_pretrained(place)
        assert {"config.json", "README.md"} <= {each.name for each in place.iterdir()}
        assert str(checkpoint.parent) not in (place / "config.json").read_text()
    again = fastgan.load_generator(place)
    if way == "save_pretrained":
        again = TrainedGenerator.from_pretrained(place)
    assert (again.path, again.step, again.averaged) == (path, 1, True)
    assert torch.equal(again.sample(4, seed=2), generator.sample(4, seed=2))
    assert load_file(path).keys() == generator.module.state_dict().keys()
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="damaged, or not written by fastgan"):
        fastgan.load_generator(place)


def test_the_hub_is_given_the_folder_and_gives_the_generator_back(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the network: a folder is the hub."""
    hub = tmp_path / "hub"

    class Api:
        def __init__(self, token: str | None = None) -> None:
            assert token == "a secret"

        def create_repo(self, repo_id: str, **options: Any) -> SimpleNamespace:
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> str:
            shutil.copytree(folder_path, hub / repo_id)
            return f"the commit of {repo_id}"

    def download(repo_id: str, filename: str, revision: str | None = None, **options: Any) -> str:
        assert revision == "main"
        return str(hub / repo_id / filename)

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    for module in ("huggingface_hub.hub_mixin", "fastgan.hub"):
        monkeypatch.setattr(f"{module}.hf_hub_download", download)
    generator = fastgan.load_generator(checkpoint)
    assert generator.push_to_hub("me/digits", token="a secret") == "the commit of me/digits"
    again = TrainedGenerator.from_pretrained("me/digits", revision="main")
    assert torch.equal(again.sample(4, seed=2), generator.sample(4, seed=2))


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("folder:/home/me/my photos", "folder:my photos"),
        ("folder:/home/me/horses and npz:/home/me/zebras.npz", "folder:horses and npz:zebras.npz"),
        ("digits and digit-outlines", "digits and digit-outlines"),
    ],
)
def test_folders_of_the_machine_that_trained_stay_there(
    checkpoint: Path, name: str, written: str
) -> None:
    generator = fastgan.load_generator(checkpoint)
    data = dataclasses.replace(generator.data, name=name)
    found = description(dataclasses.replace(generator, data=data))
    assert found["data"]["name"] == written
    assert "/home" not in json.dumps(found)


def test_freshly_built_networks_are_saved_by_safetensors_save_model(tmp_path: Path) -> None:
    from safetensors.torch import load_model, save_model

    path = str(tmp_path / "model.safetensors")
    sizes: dict[str, Any] = {"image_size": 16, "nc": 1}
    for build in (
        lambda: DCGANGenerator(nz=4, ngf=4, **sizes),
        lambda: DCGANDiscriminator(ndf=4, **sizes),
        lambda: WGANCritic(ndf=4, **sizes),
    ):
        module = build()
        save_model(module, path)
        again = build()
        load_model(again, path)
        for key, value in module.state_dict().items():
            assert torch.equal(value, again.state_dict()[key]), key


@pytest.mark.parametrize("truncation", [0.01, 0.5, 1.0, 2.0, 4.0, 6.0])
def test_truncated_noise_has_the_truncated_distribution(truncation: float) -> None:
    from scipy import stats

    # The quantiles of the noise must become the truncated distribution's.
    shares = np.linspace(0.0005, 0.9995, 4001)
    z = torch.from_numpy(stats.norm.ppf(shares)).float()
    found = truncate(z, "normal", truncation).double().numpy()
    wanted = stats.truncnorm(-truncation, truncation).ppf(shares)
    np.testing.assert_allclose(found, wanted, atol=2e-5 * max(truncation, 1))
    uniform = torch.linspace(-1, 1, 9)
    assert torch.equal(truncate(uniform, "uniform", truncation), uniform * min(truncation, 1))


def test_an_export_that_cant_be_is_one_line_and_no_file(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(checkpoint), "--out", str(tmp_path / "a"), "--format"]
    for more, message in (
        (["safetensors", "--truncation=1"], "truncation: weights alone have none"),
        (["onnx", "--truncation=-1"], "truncation: expected a number of at least 0.001"),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ConfigError, match="format: expected one of onnx, torch-export, safe"):
        export_generator(fastgan.load_generator(checkpoint), tmp_path / "a", format="h5")
    assert not list(tmp_path.iterdir())
