"""Data from Python objects: accepted and refused kinds, and the batches' content."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from fastgan.data import as_source, open_stream
from fastgan.data.given import DatasetSource
from fastgan.data.pixels import bytes_to_unit_range
from fastgan.errors import DataError, DataWarning
from fastgan.training import TrainConfig, Trainer
from fastgan.training.config_files import read_settings

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12, 3, 16, 16), np.uint8))
WANTED = bytes_to_unit_range(PIXELS)
LABELS = torch.arange(12) % 3
SMALL: dict[str, Any] = {"nz": 4, "ngf": 4, "ndf": 4, "batch_size": 4, "n_critic": 1}


class Pictures(Dataset[Any]):
    """As torchvision has them: PIL's, with targets and the classes' names."""

    targets = LABELS.tolist()
    classes = ("cat", "dog", "owl")

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(PIXELS[index].permute(1, 2, 0).numpy()), self.targets[index]


class HubRows(Dataset[Any]):
    """As Hugging Face has them: mappings, with the classes' names in the column's description."""

    def __init__(self) -> None:
        named = SimpleNamespace(names=["cat", "dog", "owl"])
        self.features = {"image": None, "label": named}

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": Pictures()[index][0], "label": int(LABELS[index])}


class Rows(IterableDataset[Any]):
    """One pass over all images; each pass the same."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(PIXELS, LABELS, strict=True)


@pytest.mark.parametrize(
    "data",
    [
        PIXELS,
        WANTED,
        WANTED.double().requires_grad_(),
        PIXELS.permute(0, 2, 3, 1).numpy(),
        PIXELS.to(torch.int64),
        (PIXELS, LABELS),
        (PIXELS.numpy(), LABELS.numpy()),
        TensorDataset(PIXELS),
        TensorDataset(WANTED, LABELS),
        Pictures(),
        DataLoader(Pictures(), batch_size=5, shuffle=True),
        HubRows(),
        [{"image": image, "label": int(k)} for image, k in zip(PIXELS, LABELS, strict=True)],
        DataLoader(Rows(), batch_size=5),
        [image.numpy() for image in PIXELS],
        iter([PIXELS[:7], PIXELS[7:]]),
    ],
    ids=lambda data: type(data).__name__,
)
def test_every_form_gives_the_same_images(data: Any) -> None:
    source = as_source(data)
    assert (len(source), source.channels, source.image_size) == (12, 3, 16)
    images, labels = source.get(range(12))
    assert torch.allclose(images, WANTED, rtol=0, atol=1e-6)
    if labels is not None:
        assert torch.equal(labels, LABELS)
        assert source.class_names in (["0", "1", "2"], ["cat", "dog", "owl"])


@pytest.mark.parametrize("data", [Pictures(), HubRows()], ids=["torchvision", "hub"])
def test_classes_keep_their_names(data: Any) -> None:
    assert as_source(data).class_names == ["cat", "dog", "owl"]


def test_floats_that_are_never_negative_are_from_0_to_1_and_that_is_said() -> None:
    unit = (WANTED + 1) / 2
    for data in (unit, TensorDataset(unit), iter([unit])):
        with pytest.warns(DataWarning, match=r"are taken as \[0, 1\]"):
            source = as_source(data)
        assert torch.allclose(source.get(range(12))[0], WANTED, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (PIXELS.float(), r"values from 0 to 255; expected uint8, or floats in \[-1, 1\]"),
        (WANTED * 1.5, "values from"),
        (WANTED.log(), "holds NaN or infinity"),
        (PIXELS.to(torch.int64) * 2, "torch.int64; expected uint8, or floats"),
        (torch.zeros(4, 2, 8, 8), r"shape \(4, 2, 8, 8\); expected grey or RGB"),
        (torch.zeros(0, 3, 8, 8), "holds no images"),
        ((PIXELS, LABELS.float()), "labels of torch.float32; expected whole numbers"),
        ((PIXELS, LABELS - 1), "labels from -1"),
        ([], "holds no images"),
        (iter([]), "the stream holds no images"),
        (["a", "b"], "expected images as tensors, arrays or PIL's, got str"),
    ],
)
def test_what_is_no_set_of_images_is_refused_in_words(data: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        as_source(data)
    with pytest.raises(TypeError, match="or an iterable of batches, got int"):
        as_source(3)


def test_an_item_beyond_the_range_of_those_before_is_named() -> None:
    values = torch.full((200, 1, 16, 16), -0.5)
    values[77] = 40.0
    source = as_source(TensorDataset(values))
    source.get([76])
    with pytest.raises(DataError, match="item 77: values from 40 to 40"):
        source.get([77])


def test_random_transforms_draw_anew_and_sizes_are_fitted() -> None:
    class Noisy(Pictures):
        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            picture, label = super().__getitem__(index)
            return picture.rotate(90 * int(torch.randint(4, ()))).resize((40, 30)), label

    source = as_source(Noisy(), image_size=32, channels=1)
    assert isinstance(source, DatasetSource)
    first, again = source.get([0] * 8)[0], source.get([0] * 8)[0]
    assert first.shape == (8, 1, 32, 32)
    assert not torch.equal(first, again)


def test_a_streams_batches_come_in_its_order_again_and_again() -> None:
    source = as_source(DataLoader(Rows(), batch_size=5))
    with open_stream(source, batch_size=8, seed=0, device="cpu") as stream:
        batches = [next(stream) for _ in range(6)]
    images = torch.cat([images for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches if labels is not None])
    assert torch.equal(images, WANTED.repeat(4, 1, 1, 1))
    assert torch.equal(labels, LABELS.repeat(4))
    once = as_source(iter([PIXELS]))
    with open_stream(once, batch_size=8, seed=0, device="cpu") as stream:
        next(stream)
        with pytest.raises(DataError, match="the stream has ended, and can't be restarted"):
            next(stream)


def test_a_dataset_trains_as_the_same_images_in_memory_do_and_resumes_exactly(
    tmp_path: Path,
) -> None:
    weights = []
    for name, data in (("a", (PIXELS, LABELS)), ("b", Pictures())):
        config = TrainConfig(out=str(tmp_path / name), steps=2, workers=0, model="cgan", **SMALL)
        Trainer(config, source=data).run()
        trainer = Trainer(
            TrainConfig(out=str(tmp_path / name), steps=3),
            resume=True,
            explicit=frozenset({"steps"}),
            source=(PIXELS, LABELS) if name == "a" else Pictures(),
        )
        trainer.run()
        weights.append(trainer.updater.generator.state_dict())
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key])
    assert read_settings(tmp_path / "b" / "config.toml")["data"] == "source:Pictures"


def test_a_stream_trains_and_a_resumed_one_says_that_it_begins_again(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    Trainer(TrainConfig(out=out, steps=2, **SMALL), source=DataLoader(Rows(), 5)).run()
    again = TrainConfig(out=out, steps=3)
    trainer = Trainer(
        again, resume=True, explicit=frozenset({"steps"}), source=DataLoader(Rows(), 5)
    )
    with pytest.warns(DataWarning, match="a stream can't be sought"):
        assert trainer.run().step == 3
