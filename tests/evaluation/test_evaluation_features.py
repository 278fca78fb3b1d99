"""Feature spaces: names, results, and refused files."""

from __future__ import annotations

import importlib.machinery
import os
import re
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastgan.errors import ConfigError, DataError
from fastgan.evaluation import (
    ClassifierFeatures,
    ImageClassifier,
    InceptionFeatures,
    RandomConvolutionFeatures,
    TorchScriptFeatures,
    evaluate_samples,
)


class ChannelMeans(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3), keepdim=True)


class Maps(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images


class Counts(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).argmax(dim=1, keepdim=True)


class OneForAll(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).mean(dim=0, keepdim=True)


class Infinite(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) / 0


class ColourOnly(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] != 3:
            raise ValueError("wants colour")
        return images.flatten(1)


def write_script(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch 2.13 deprecates TorchScript
        torch.jit.save(torch.jit.script(module), str(path))
    return path


def random_images(count: int, channels: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, size, size, generator=generator) * 2 - 1


def test_script_features_are_what_the_file_computes(tmp_path: Path):
    space = TorchScriptFeatures(write_script(ChannelMeans(), tmp_path / "means.pt"))
    images = random_images(600, 3, 16)  # more than a batch
    features = space.extract(images)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, images.mean(dim=(2, 3)))


def test_loading_a_script_warns_of_nothing(tmp_path: Path):
    path = write_script(ChannelMeans(), tmp_path / "means.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TorchScriptFeatures(path)


def test_script_name_tells_files_of_one_name_apart(tmp_path: Path):
    names = []
    for folder, module in (("a", ChannelMeans()), ("b", Maps()), ("c", ChannelMeans())):
        (tmp_path / folder).mkdir()
        path = write_script(module, tmp_path / folder / "extractor.pt")
        names.append(TorchScriptFeatures(path).name)
    assert all(name.startswith("torchscript:extractor.pt:") for name in names)
    assert names[0] != names[1]


def test_missing_script_is_a_data_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"none\.pt: no such feature extractor file"):
        TorchScriptFeatures(tmp_path / "none.pt")
    with pytest.raises(DataError, match="no such feature extractor file"):
        TorchScriptFeatures(tmp_path)


def write_state_dict(path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, path)


def write_truncated(path: Path) -> None:
    write_script(ChannelMeans(), path)
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"text"),
        write_state_dict,
        write_truncated,
    ],
    ids=["empty", "text", "state-dict", "truncated"],
)
def test_file_that_is_no_script_is_one_line(tmp_path: Path, write):
    write(tmp_path / "bad.pt")
    with pytest.raises(DataError, match=r"bad\.pt: not a TorchScript feature extractor") as caught:
        TorchScriptFeatures(tmp_path / "bad.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Maps(), r"returned maps \(4, 1, 16, 16\), expected vectors \(4, F\)"),
        (Counts(), r"returned torch\.int64"),
        (OneForAll(), r"into \(1, 256\), expected \(4, F\)"),
        (Infinite(), "returned NaN or infinity"),
        (ColourOnly(), r"failed on float32 images \(4, 1, 16, 16\).*wants colour"),
    ],
)
def test_script_that_does_not_fit_is_one_line(tmp_path: Path, module, message):
    space = TorchScriptFeatures(write_script(module, tmp_path / "extractor.pt"))
    with pytest.raises(ConfigError, match=message) as caught:
        space.extract(random_images(4, 1, 16))
    assert "\n" not in str(caught.value)
    assert "extractor.pt" in str(caught.value)


def test_classifier_features_are_its_penultimate_layer():
    classifier = ImageClassifier(channels=1, image_size=16, num_classes=10).eval()
    images = random_images(300, 1, 16)
    features = ClassifierFeatures(classifier).extract(images)
    assert features.shape == (300, 128)
    with torch.no_grad():
        logits = classifier(images)
    last = classifier.output[-1]
    torch.testing.assert_close(features @ last.weight.T + last.bias, logits)


def test_classifier_space_is_named_after_its_weights():
    classifier = ImageClassifier(channels=1, image_size=16, num_classes=10)
    name = ClassifierFeatures(classifier).name
    assert ClassifierFeatures(classifier).name == name
    with torch.no_grad():
        classifier.output[1].bias[0] += 1
    assert ClassifierFeatures(classifier).name != name


@pytest.mark.parametrize(("channels", "size"), [(1, 16), (3, 32), (3, 64), (1, 28)])
def test_random_features_are_the_same_for_everyone(channels, size):
    images = random_images(300, channels, size)
    torch.manual_seed(1)
    first = RandomConvolutionFeatures().extract(images)
    torch.manual_seed(2)
    assert torch.equal(first, RandomConvolutionFeatures().extract(images))
    assert first.shape == (300, 128)
    assert torch.isfinite(first).all()
    # Every feature says something of its own.
    assert (first.std(dim=0) > 0).all()


def test_random_features_see_grey_as_colour_with_equal_channels():
    images = random_images(5, 1, 32)
    space = RandomConvolutionFeatures()
    assert torch.equal(space.extract(images), space.extract(images.expand(-1, 3, -1, -1)))


def test_random_features_forgive_a_small_shift_more_than_pixels_do():
    images = torch.full((1, 1, 32, 32), -1.0)
    images[:, :, 8:24, 14:16] = 1.0  # a stroke
    shifted, turned = images.roll(2, dims=3), images.transpose(2, 3)
    features = RandomConvolutionFeatures().extract(torch.cat([images, shifted, turned]))
    moved, rotated = (features[1:] - features[0]).norm(dim=1)
    # To pixels, a stroke moved by its width is as far away as one that points elsewhere.
    assert moved / rotated < 0.75 * torch.dist(images, shifted) / torch.dist(images, turned)


class SmallInception(nn.Module):
    """What torch-fidelity 0.4's class takes and returns; it unpickles whatever it is given."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: object
    ) -> None:
        super().__init__()
        assert features_list == ["2048"]
        self.layer = nn.Conv2d(3, 5, 1)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> tuple[Tensor]:
        assert images.dtype == torch.uint8
        return (self.layer(images.float()).mean(dim=(2, 3)),)


@pytest.fixture
def torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "torch_fidelity.feature_extractor_inceptionv3"
    for each in ("torch_fidelity", name):
        module = types.ModuleType(each)
        module.__spec__ = importlib.machinery.ModuleSpec(each, None, origin="stand-in")
        monkeypatch.setitem(sys.modules, each, module)
    sys.modules[name].FeatureExtractorInceptionV3 = SmallInception  # type: ignore[attr-defined]


def test_inception_sees_bytes_in_colour(tmp_path: Path, torch_fidelity: None) -> None:
    layer = nn.Conv2d(3, 5, 1)
    path = tmp_path / "weights.pth"
    torch.save({f"layer.{name}": value for name, value in layer.state_dict().items()}, path)
    space = InceptionFeatures(path)
    assert re.fullmatch(r"inception-2048:weights\.pth:[0-9a-f]{8}", space.name)
    grey = torch.tensor([-1.5, -1.0, 0.0, 0.5, 1.0, 2.0]).reshape(6, 1, 1, 1).expand(-1, -1, 4, 4)
    levels = torch.tensor([0.0, 0, 128, 191, 255, 255]).double()  # round((x + 1) 255 / 2)
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    wanted = levels[:, None] * weight.sum(dim=1).flatten() + bias
    torch.testing.assert_close(space.extract(grey).double(), wanted, rtol=1e-5, atol=1e-5)
    images = grey.repeat(3, 1, 1, 1)
    assert evaluate_samples(images, images, k=1, feature_space=space).frechet_distance < 1e-6


def test_inception_weights_cannot_run_code(tmp_path: Path, torch_fidelity: None) -> None:
    class Attack:
        def __reduce__(self) -> object:
            return os.mkdir, (str(tmp_path / "attacked"),)

    path = tmp_path / "weights.pth"
    for content in ({"other": torch.zeros(1)}, 3):
        torch.save(content, path)
        with pytest.raises(DataError, match=r"weights\.pth: not Inception weights: "):
            InceptionFeatures(path)
    torch.save({"layer.weight": Attack()}, path)
    for _ in range(2):
        with pytest.raises(DataError, match=r"weights\.pth: not a file that torch saved, or not"):
            InceptionFeatures(path)
        path.write_bytes(b"no such thing")
    assert not (tmp_path / "attacked").exists()


def test_without_torch_fidelity_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.pth").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match=r"pip install 'fastgan\[fid\]'"):
        InceptionFeatures(tmp_path / "weights.pth")
