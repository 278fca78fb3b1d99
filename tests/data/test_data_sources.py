"""What every source has in common: specs, digits, conversion of arrays, errors."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from fastgan.data import ImageSource, load_data, source_from_array
from fastgan.data.limits import IN_MEMORY_BYTES
from fastgan.data.source import ArraySource
from fastgan.errors import DataError, ImageSizeError

DIGITS = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def triangle_resize(plane: np.ndarray, size: int) -> np.ndarray:
    """Resize the last axis, then the one before: bilinear with antialiasing, from its definition.

    Output pixel i is the mean of inputs weighted by a triangle around (i + 1/2) * scale, as wide
    as the scale where that shrinks the image.
    """
    for axis in (-1, -2):
        length = plane.shape[axis]
        scale = length / size
        support = max(scale, 1.0)
        centres = (np.arange(size) + 0.5) * scale
        distance = np.abs(np.arange(length)[None, :] + 0.5 - centres[:, None]) / support
        weights = np.clip(1.0 - distance, 0.0, None)
        weights /= weights.sum(axis=1, keepdims=True)
        plane = np.moveaxis(np.tensordot(plane, weights, axes=(axis, 1)), -1, axis)
    return plane


def test_digits_are_the_real_ones_scaled_to_minus_one_to_one():
    source = load_data("digits", image_size=8)
    assert (len(source), source.channels, source.num_classes) == (1797, 1, 10)
    assert source.class_names == list("0123456789")
    assert source.in_memory
    assert source.images.dtype == torch.float32
    counts = (source.images[:, 0] + 1) * 8
    # As the set is documented: the first digit's first rows, and how many there are of each.
    assert counts[0, :2].tolist() == [[0, 0, 5, 13, 9, 1, 0, 0], [0, 0, 13, 15, 10, 15, 5, 0]]
    assert source.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert source.labels[:10].tolist() == list(range(10))
    assert counts.unique().tolist() == list(range(17))
    # Their digest, taken from scikit-learn's copy.
    whole = (
        counts.to(torch.uint8).numpy().tobytes() + source.labels.to(torch.uint8).numpy().tobytes()
    )
    assert hashlib.sha256(whole).hexdigest() == DIGITS
    images, labels = source.get([5, 3, 5, 1796])
    assert torch.equal(images, source.images[[5, 3, 5, 1796]])
    assert labels.dtype == torch.int64
    assert torch.equal(labels, source.labels[[5, 3, 5, 1796]])


@pytest.mark.parametrize("image_size", [4, 5, 16, 31])
def test_resizing_is_bilinear_with_antialiasing(image_size):
    source = load_data("digits", image_size=image_size)
    digits = load_data("digits", image_size=8).images[:, 0].double().numpy()
    expected = triangle_resize(digits, image_size)
    np.testing.assert_allclose(source.images[:, 0].numpy(), expected, atol=2e-6)
    assert source.images.abs().max() <= 1.0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("height", "width"), [(9, 14), (13, 6), (7, 7)])
def test_bytes_are_cropped_to_the_centre_scaled_and_resized(seed, height, width):
    random = np.random.default_rng(seed)
    array = random.integers(0, 256, (5, 3, height, width), dtype=np.uint8)
    source = source_from_array("random", torch.from_numpy(array), image_size=8)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = array[:, :, top : top + side, left : left + side].astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(source.images.numpy(), triangle_resize(square, 8), atol=2e-6)


def test_resizing_never_leaves_the_range_by_rounding():
    # Some of this size's weights sum to a little over 1 in float32.
    white = torch.full((1, 1, 39, 39), 255, dtype=torch.uint8)
    images = source_from_array("white", white, image_size=38).images
    assert images.max() == 1.0
    assert images.min() > 1.0 - 1e-6


def test_all_byte_values_are_correctly_rounded():
    array = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    images = source_from_array("ramp", array, image_size=16).images
    expected = (np.arange(256) / 127.5 - 1).astype(np.float32)
    np.testing.assert_array_equal(images.flatten().numpy(), expected)


@pytest.mark.parametrize("seed", range(3))
def test_colour_becomes_grey_by_luma_and_grey_becomes_colour_by_repetition(seed):
    random = np.random.default_rng(seed)
    colour = random.integers(0, 256, (4, 3, 6, 6), dtype=np.uint8)
    values = colour / 127.5 - 1
    grey = source_from_array("colour", torch.from_numpy(colour), image_size=6, channels=1)
    assert grey.channels == 1
    expected = 0.299 * values[:, 0] + 0.587 * values[:, 1] + 0.114 * values[:, 2]
    np.testing.assert_allclose(grey.images[:, 0].numpy(), expected, atol=1e-6)
    back = source_from_array(
        "grey", torch.from_numpy(colour[:, :1].copy()), image_size=6, channels=3
    )
    assert back.images.shape == (4, 3, 6, 6)
    for channel in range(3):
        np.testing.assert_allclose(back.images[:, channel].numpy(), values[:, 0], atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [7, 16])
def test_converting_on_request_gives_what_converting_at_once_gives(channels, image_size):
    generator = torch.Generator().manual_seed(image_size)
    array = torch.randint(0, 256, (40, 3, 11, 12), dtype=torch.uint8, generator=generator)
    options = {"image_size": image_size, "channels": channels, "labels": torch.arange(40) % 4}
    whole = source_from_array("random", array, in_memory=True, **options)
    lazy = source_from_array("random", array, in_memory=False, **options)
    assert whole.in_memory
    assert not lazy.in_memory
    for indices in ([0], [3, 1, 2], list(range(40))):
        expected, expected_labels = whole.get(indices)
        images, labels = lazy.get(indices)
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)


def test_sets_too_large_for_memory_are_converted_on_request():
    # Six images of 3 x 4096 x 4096 floats would fill 1.1 GiB; nothing of it is allocated.
    array = torch.zeros(6, 3, 4, 4, dtype=torch.uint8)
    source = source_from_array("large", array, image_size=4096)
    assert IN_MEMORY_BYTES == 2**30
    assert isinstance(source, ArraySource)
    with pytest.raises(DataError, match="too large to be held whole"):
        _ = source.images


def test_get_refuses_indices_outside_the_set():
    source = load_data("digits", image_size=8)
    for index in (-1, 1797):
        with pytest.raises(IndexError, match=r"expected 0\.\.1796"):
            source.get([0, index])


def test_get_of_nothing_is_an_empty_batch():
    images, labels = load_data("digits", image_size=8).get([])
    assert images.shape == (0, 1, 8, 8)
    assert labels.shape == (0,)


@pytest.mark.parametrize(
    "spec", ["", "mnist", "digits:", "digits:x", "folder", "folder:", "npz:", "s3:bucket", "idx:\0"]
)
def test_specs_that_say_nothing_are_refused_in_one_line(spec):
    with pytest.raises(DataError) as caught:
        load_data(spec, image_size=16)
    assert "\n" not in str(caught.value)
    assert repr(spec) in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "idx", "cifar10", "npz"])
def test_missing_places_are_named(kind, tmp_path):
    missing = tmp_path / "not there"
    with pytest.raises(DataError) as caught:
        load_data(f"{kind}:{missing}", image_size=16)
    assert str(missing) in str(caught.value)
    assert "not found" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "idx", "cifar10", "npz"])
@pytest.mark.parametrize("path", ["x" * 5000, "~nobody-of-this-name/x"])
def test_paths_that_cant_be_are_refused(kind, path):
    with pytest.raises(DataError, match=r"can't be read|no such home folder"):
        load_data(f"{kind}:{path}", image_size=16)


def test_sets_too_large_for_this_machine_say_so(monkeypatch, tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8), np.uint8))

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("fastgan.data.npz.read_exactly", fail)
    with pytest.raises(DataError, match="too large for this machine's memory"):
        load_data(f"npz:{tmp_path / 'a.npz'}", image_size=8)


@pytest.mark.parametrize("channels", [0, 2, 4, -1])
def test_other_channel_counts_are_refused(channels, tmp_path):
    with pytest.raises(DataError, match=f"wrong channel count {channels}; expected 1"):
        load_data("digits", image_size=8, channels=channels)
    array = torch.zeros(3, abs(channels) + 4, 8, 8)
    with pytest.raises(DataError, match="wrong channel count"):
        source_from_array("many", array, image_size=8)


@pytest.mark.parametrize("image_size", [0, -16, 5000])
def test_impossible_image_sizes_are_refused(image_size):
    with pytest.raises(ImageSizeError, match=f"image_size: {image_size}"):
        load_data("digits", image_size=image_size)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.tensor([0, 1]), "labels of shape"),
        (torch.tensor([[0, 1, 2]]), "labels of shape"),
        (torch.tensor([0, -1, 1]), "labels from -1 to 1"),
        (torch.tensor([0, 2**40, 1]), "labels from 0 to"),
    ],
)
def test_labels_that_dont_fit_are_refused(labels, said):
    with pytest.raises(DataError, match=said):
        source_from_array("odd", torch.zeros(3, 1, 4, 4), image_size=4, labels=labels)


def test_labels_beyond_their_names_are_refused():
    with pytest.raises(DataError, match="label 2 found; expected 0 to 1"):
        source_from_array(
            "odd",
            torch.zeros(3, 1, 4, 4),
            image_size=4,
            labels=torch.tensor([0, 1, 2]),
            class_names=["a", "b"],
        )


def test_empty_arrays_are_refused():
    with pytest.raises(DataError, match="holds no images"):
        source_from_array("none", torch.zeros(0, 1, 8, 8), image_size=8)


def test_sources_of_ones_own_need_only_read():
    class Ramp(ImageSource):
        def read(self, indices):
            steps = torch.tensor(indices, dtype=torch.uint8).view(-1, 1, 1, 1)
            return steps.expand(-1, 1, 4, 4)

    images, labels = Ramp("ramp", length=256, channels=1, image_size=4).get([0, 255])
    assert images[:, 0, 0, 0].tolist() == [-1.0, 1.0]
    assert labels is None
