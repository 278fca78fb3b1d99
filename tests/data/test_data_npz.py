"""npz files: layouts, value ranges, and forged files."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastgan.data import load_data
from fastgan.errors import DataError


def open_npz(path: Path, image_size: int = 8, **options: object):
    return load_data(f"npz:{path}", image_size=image_size, **options)


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_npz(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def npy_bytes(header: str, content: bytes = b"", magic: bytes = b"\x93NUMPY\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    return magic + struct.pack("<H", len(text)) + text + content


def write_member(path: Path, content: bytes, name: str = "images.npy", **options: int) -> None:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr(name, content)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW", "NHW1", "N1HW"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_layouts(tmp_path, save, layout, order):
    random = np.random.default_rng(len(layout))
    channels = 3 if "C" in layout else 1
    pixels = random.integers(0, 256, (5, channels, 8, 8), dtype=np.uint8)
    stored = {
        "NHW": pixels[:, 0],
        "NHWC": pixels.transpose(0, 2, 3, 1),
        "NCHW": pixels,
        "NHW1": pixels.transpose(0, 2, 3, 1),
        "N1HW": pixels,
    }[layout]
    labels = np.array([0, 2, 1, 2, 0])
    save(tmp_path / "a.npz", images=np.asarray(stored, order=order), labels=labels)
    source = open_npz(tmp_path / "a.npz")
    assert (len(source), source.channels, source.num_classes) == (5, channels, 3)
    expected = (pixels / 127.5 - 1).astype(np.float32)
    np.testing.assert_array_equal(source.images.numpy(), expected)
    assert source.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_with_a_negative_value_are_taken_as_they_are(tmp_path, dtype):
    values = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8)).astype(dtype)
    np.savez(tmp_path / "a.npz", images=values)
    found = open_npz(tmp_path / "a.npz").images[:, 0].numpy()
    np.testing.assert_array_equal(found, values.astype(np.float32))


def test_floats_without_one_are_stretched_from_zero_to_one(tmp_path):
    values = np.random.default_rng(0).uniform(0, 1, (4, 8, 8))
    np.savez(tmp_path / "a.npz", images=values)
    found = open_npz(tmp_path / "a.npz").images[:, 0].numpy()
    np.testing.assert_allclose(found, 2 * values - 1, atol=2e-7)


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.uint16, ">i4"])
def test_whole_numbers_within_a_byte_are_bytes(tmp_path, dtype):
    values = np.arange(256).reshape(4, 8, 8).astype(dtype)
    np.savez(tmp_path / "a.npz", images=values)
    found = open_npz(tmp_path / "a.npz").images[:, 0].numpy()
    np.testing.assert_array_equal(found, (values / 127.5 - 1).astype(np.float32))


def test_booleans_are_black_and_white(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (4, 8, 8)).astype(bool)
    np.savez(tmp_path / "a.npz", images=bits)
    found = open_npz(tmp_path / "a.npz").images[:, 0].numpy()
    np.testing.assert_array_equal(found, np.where(bits, 1.0, -1.0))


@pytest.mark.parametrize(
    ("images", "labels"),
    [("images", "labels"), ("x", "y"), ("x_train", "y_train"), ("arr_0", None), ("faces", None)],
)
def test_names_of_arrays(tmp_path, images, labels):
    arrays = {images: np.zeros((3, 8, 8), np.uint8)}
    if labels is not None:
        arrays[labels] = np.array([[0], [1], [1]], np.uint8)
    np.savez(tmp_path / "a.npz", **arrays)
    source = open_npz(tmp_path / "a.npz")
    assert source.num_classes == (None if labels is None else 2)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"p": np.zeros((1, 8, 8)), "q": np.zeros(1)}, "arrays p, q; expected one of images"),
        ({"images": np.zeros((8, 8))}, "expected (N, H, W)"),
        ({"images": np.zeros((1, 1, 1, 8, 8))}, "expected (N, H, W)"),
        ({"images": np.zeros((4, 8, 8, 2))}, "wrong channel count"),
        ({"images": np.zeros((4, 4, 8, 8), np.uint8)}, "wrong channel count"),
        ({"images": np.zeros((0, 8, 8))}, "holds no images"),
        ({"images": np.zeros((2, 0, 8))}, "holds no images"),
        ({"images": np.full((1, 8, 8), np.nan)}, "NaN"),
        ({"images": np.array([[[0.5, np.nan], [0, 1]]])}, "NaN"),
        ({"images": np.array([[[0.5, np.inf], [0, 1]]])}, "infinity"),
        ({"images": np.full((1, 8, 8), 1.5)}, "float values from 1.5 to 1.5"),
        ({"images": np.full((1, 8, 8), 200.0)}, "expected -1 to 1, or 0 to 1"),
        ({"images": np.full((1, 8, 8), -1.5)}, "expected -1 to 1, or 0 to 1"),
        ({"images": np.full((1, 8, 8), 256)}, "expected 0 to 255"),
        ({"images": np.full((1, 8, 8), -1)}, "expected 0 to 255"),
        ({"images": np.array([["a"]])}, "dtype <U1"),
        ({"images": np.zeros((1, 8, 8), np.complex64)}, "dtype complex64"),
        ({"images": np.zeros((1, 8, 8), [("r", "u1"), ("g", "u1")])}, "dtype [("),
        ({"x": np.zeros((2, 8, 8)), "y": np.zeros(2)}, "labels of dtype float64"),
        ({"x": np.zeros((2, 8, 8)), "y": np.zeros(3, int)}, "labels of shape (3,) for 2 images"),
        ({"x": np.zeros((2, 8, 8)), "y": np.eye(2, dtype=int)}, "labels of shape (2, 2)"),
        ({"x": np.zeros((2, 8, 8)), "y": np.array([0, -1])}, "labels from -1 to 0"),
        ({"x": np.zeros((2, 8, 8)), "y": np.array([0, 2**64 - 1], np.uint64)}, "label 1844"),
    ],
)
def test_arrays_that_are_no_images_or_labels_are_refused(tmp_path, arrays, said):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError) as caught:
        open_npz(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_object_arrays_are_refused_and_their_pickle_never_runs(tmp_path):
    trace = tmp_path / "trace"

    class Evil:
        def __reduce__(self):
            return open, (str(trace), "w")

    np.savez(tmp_path / "a.npz", images=np.array([Evil()], dtype=object))
    assert "dtype object" in refusal(tmp_path / "a.npz")
    assert not trace.exists()


def test_every_truncation_of_the_file_is_found(tmp_path):
    np.savez_compressed(
        tmp_path / "whole.npz", images=np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    )
    content = (tmp_path / "whole.npz").read_bytes()
    for kept in range(len(content)):
        (tmp_path / "a.npz").write_bytes(content[:kept])
        refusal(tmp_path / "a.npz")


def test_damage_in_the_pixels_is_found(tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "a.npz"
    np.savez(path, images=random.integers(0, 256, (9, 8, 8), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[400] ^= 1
    path.write_bytes(content)
    assert "CRC" in refusal(path)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999, 8, 8)}", "promises"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 8, 8)}", "truncated: 64 bytes"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (90, 8, 8)}", "the file holds"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (0, 8, 8)}", "more bytes"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, 8)}", "shape (-1, 8, 8)"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': 'big'}", "not a numpy array"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1, 8, 8)}", "dtype object"),
        ("{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,)}", "not a numpy array"),
        ("__import__('os').system('true')", "not a numpy array"),
        ("", "not a numpy array"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, header, said):
    path = tmp_path / "a.npz"
    write_member(path, npy_bytes(header, bytes(64)))
    assert said in refusal(path)


@pytest.mark.parametrize("content", [b"", b"\x93NUM", b"plain text", b"\x93NUMPY\x09\x00abc"])
def test_members_that_are_no_arrays_are_refused(tmp_path, content):
    write_member(tmp_path / "a.npz", content)
    assert "not a numpy array" in refusal(tmp_path / "a.npz")


def test_zip_bombs_are_refused_before_they_are_unpacked(tmp_path):
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**19}, 32, 32)}}"
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w") as file,
    ):
        file.write(npy_bytes(header))
        for _ in range(2**5):
            file.write(bytes(2**24))
    assert "decompression bomb" in refusal(tmp_path / "a.npz")


def test_other_compression_and_no_zip_at_all_are_refused(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((1, 8, 8), np.uint8))
    write_member(tmp_path / "a.npz", buffer.getvalue(), compression=zipfile.ZIP_LZMA)
    assert "zip compression" in refusal(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(buffer.getvalue())
    assert "not a readable npz" in refusal(tmp_path / "b.npz")
    (tmp_path / "c.npz").mkdir()
    assert "not a regular file" in refusal(tmp_path / "c.npz")
