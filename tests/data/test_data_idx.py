"""IDX files: round trips, and headers that don't match the file."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgan.data import load_data
from fastgan.data.idx import read_idx
from fastgan.errors import DataError


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def random_set(seed: int, count: int = 12, height: int = 9, width: int = 7):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, height, width), dtype=np.uint8)
    return images, random.integers(0, 10, count, dtype=np.uint8)


def write_set(folder: Path, images, labels=None, *, stem="train", dot="-", packed=False) -> None:
    folder.mkdir(exist_ok=True)
    ending = ".gz" if packed else ""
    for kind, dimensions, array in (("images", 3, images), ("labels", 1, labels)):
        if array is not None:
            content = idx_bytes(array)
            path = folder / f"{stem}-{kind}{dot}idx{dimensions}-ubyte{ending}"
            path.write_bytes(gzip.compress(content) if packed else content)


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_data(f"idx:{path}", image_size=8)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("stem", ["train", "t10k", "emnist-letters-train"])
def test_images_and_labels_arrive(tmp_path, seed, dot, packed, stem):
    images, labels = random_set(seed, height=8, width=8)
    labels[0] = 9
    write_set(tmp_path, images, labels, stem=stem, dot=dot, packed=packed)
    source = load_data(f"idx:{tmp_path}", image_size=8)
    assert (len(source), source.channels, source.num_classes) == (12, 1, 10)
    expected = (images / 127.5 - 1).astype(np.float32)
    np.testing.assert_array_equal(source.images[:, 0].numpy(), expected)
    np.testing.assert_array_equal(source.labels.numpy(), labels)


def test_the_training_set_is_taken_where_both_are_there_and_a_file_can_be_named(tmp_path):
    train, test = random_set(0, count=5), random_set(1, count=3)
    write_set(tmp_path, *train)
    write_set(tmp_path, *test, stem="t10k")
    assert len(load_data(f"idx:{tmp_path}", image_size=8)) == 5
    named = load_data(f"idx:{tmp_path / 't10k-images-idx3-ubyte'}", image_size=8)
    assert len(named) == 3
    np.testing.assert_array_equal(named.labels.numpy(), test[1])


def test_labels_are_optional(tmp_path):
    write_set(tmp_path, random_set(0)[0])
    source = load_data(f"idx:{tmp_path}", image_size=8)
    assert source.num_classes is None
    assert source.get([0])[1] is None


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    seed=st.integers(0, 2**32 - 1),
    packed=st.booleans(),
)
def test_round_trip(tmp_path, shape, seed, packed):
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    content = idx_bytes(array)
    (tmp_path / "file").write_bytes(gzip.compress(content) if packed else content)
    np.testing.assert_array_equal(read_idx(tmp_path / "file", dimensions=len(shape)), array)


@pytest.mark.parametrize("packed", [False, True])
def test_every_truncation_and_every_surplus_is_found(tmp_path, packed):
    images, _ = random_set(0, count=2, height=3, width=3)
    content = idx_bytes(images)
    path = tmp_path / "train-images-idx3-ubyte"
    for kept in range(len(content)):
        path.write_bytes(gzip.compress(content[:kept]) if packed else content[:kept])
        message = refusal(tmp_path)
        assert str(path) in message
        assert "truncated" in message
    longer = content + b"\0"
    path.write_bytes(gzip.compress(longer) if packed else longer)
    assert "too long" in refusal(tmp_path) or "more bytes" in refusal(tmp_path)


def test_every_truncation_of_the_gzip_stream_is_found(tmp_path):
    content = gzip.compress(idx_bytes(random_set(0, count=2, height=3, width=3)[0]))
    path = tmp_path / "train-images-idx3-ubyte.gz"
    for kept in range(len(content)):
        path.write_bytes(content[:kept])
        assert path.name in refusal(tmp_path)


def test_a_gzip_stream_with_a_wrong_checksum_is_found(tmp_path):
    content = bytearray(gzip.compress(idx_bytes(random_set(0)[0])))
    content[-6] ^= 1
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    assert "train-images-idx3-ubyte.gz" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (struct.pack(">HBBIII", 1, 8, 3, 1, 2, 2), "not an IDX file"),
        (b"\x89PNG" + bytes(12), "not an IDX file"),
        (struct.pack(">HBBIII", 0, 0x0D, 3, 1, 2, 2), "type code 0x0d"),
        (struct.pack(">HBBI", 0, 8, 1, 4), "1 dimensions; expected 3"),
        (struct.pack(">HBBIIII", 0, 8, 4, 1, 2, 2, 1), "4 dimensions; expected 3"),
        (struct.pack(">HBB", 0, 8, 255), "255 dimensions"),
        (struct.pack(">HBBIII", 0, 8, 3, 0, 2, 2), "holds nothing"),
        (struct.pack(">HBBIII", 0, 8, 3, 4, 0, 2), "holds nothing"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_wrong_headers_are_named(tmp_path, header, said, packed):
    content = header + bytes(4)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(gzip.compress(content) if packed else content)
    message = refusal(tmp_path)
    assert said in message
    assert str(path) in message


@pytest.mark.parametrize(
    "sizes", [(2**32 - 1, 2**32 - 1, 2**32 - 1), (60000, 2**16, 2**16), (2**20, 2**10, 16)]
)
@pytest.mark.parametrize("packed", [False, True])
def test_huge_promises_cost_no_memory(tmp_path, sizes, packed):
    content = struct.pack(">HBBIII", 0, 8, 3, *sizes) + bytes(1000)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(gzip.compress(content) if packed else content)
    tracemalloc.start()
    try:
        message = refusal(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "truncated" in message or "promises" in message
    assert peak < 2**22


def test_gzip_bombs_are_refused(tmp_path):
    count = 2**29 // (28 * 28)
    header = struct.pack(">HBBIII", 0, 8, 3, count, 28, 28)
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb", compresslevel=1) as file:
        file.write(header + bytes(2**20))
    assert "decompression bomb" in refusal(tmp_path)


def test_labels_that_dont_match_are_refused(tmp_path):
    images, labels = random_set(0)
    write_set(tmp_path, images, labels[:-1])
    message = refusal(tmp_path)
    assert "11 labels; expected 12" in message
    assert "train-labels-idx1-ubyte" in message


def test_folders_without_idx_files_say_what_was_expected(tmp_path):
    assert "expected train-images-idx3-ubyte" in refusal(tmp_path)


def test_several_sets_ask_for_a_choice(tmp_path):
    for stem in ("emnist-letters-train", "emnist-digits-train"):
        write_set(tmp_path, random_set(0)[0], stem=stem)
    assert "several sets" in refusal(tmp_path)
