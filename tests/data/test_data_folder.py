"""Folders of images: classes, kinds of pixels, and files that are broken or hostile."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastgan
from fastgan.data import decoding as decoding_module
from fastgan.data import folder as folder_module
from fastgan.data import load_data
from fastgan.data.decoding import decode_image
from fastgan.errors import DataError


def random_pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(pixels: np.ndarray, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def open_folder(path: Path, image_size: int = 8, **options: object):
    return load_data(f"folder:{path}", image_size=image_size, **options)


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        open_folder(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("extension", ["png", "bmp", "PNG"])
def test_pixels_arrive_unchanged_in_sorted_order(tmp_path, in_memory, extension):
    arrays = [random_pixels(seed, 8, 8, 3) for seed in range(5)]
    for number in (3, 1, 4, 0, 2):
        save(arrays[number], tmp_path / f"picture-{number}.{extension}")
    source = open_folder(tmp_path, in_memory=in_memory)
    assert (len(source), source.channels, source.num_classes) == (5, 3, None)
    assert source.in_memory is in_memory
    images, labels = source.get([4, 0, 0])
    expected = np.stack([arrays[n].transpose(2, 0, 1) for n in (4, 0, 0)])
    np.testing.assert_array_equal(images.numpy(), (expected / 127.5 - 1).astype(np.float32))
    assert labels is None


def test_webp_and_jpeg_are_read(tmp_path):
    smooth = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) * 8
    colour = np.stack([smooth, smooth[::-1], smooth[:, ::-1]], axis=-1)
    save(colour, tmp_path / "a.webp", lossless=True)
    save(colour, tmp_path / "b.jpeg", quality=95, subsampling=0)
    save(colour, tmp_path / "c.JPG", quality=95, subsampling=0)
    images, _ = open_folder(tmp_path, image_size=16).get([0, 1, 2])
    expected = (colour.transpose(2, 0, 1) / 127.5 - 1).astype(np.float32)
    np.testing.assert_array_equal(images[0].numpy(), expected)
    for jpeg in images[1:]:
        assert np.abs(jpeg.numpy() - expected).max() < 0.1


@pytest.mark.parametrize("size", [(20, 8), (8, 21), (9, 8)])
def test_the_centre_square_is_kept(tmp_path, size):
    width, height = size
    pixels = random_pixels(1, height, width, 3)
    save(pixels, tmp_path / "a.png")
    top, left = (height - 8) // 2, (width - 8) // 2
    expected = pixels[top : top + 8, left : left + 8].transpose(2, 0, 1)
    decoded = decode_image(tmp_path / "a.png", image_size=8, channels=3)
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("image_size", [5, 12, 32])
def test_files_are_resized_as_arrays_are(tmp_path, image_size):
    pixels = random_pixels(2, 12, 12)
    save(pixels, tmp_path / "a.png")
    np.savez(tmp_path / "a.npz", images=pixels[None])
    file, _ = open_folder(tmp_path, image_size=image_size).get([0])
    array, _ = load_data(f"npz:{tmp_path / 'a.npz'}", image_size=image_size).get([0])
    # Files round to bytes after each of the two directions: at most one level of 2 / 255.
    assert (file - array).abs().max() <= 2 / 255 + 1e-6


def test_subfolders_are_classes_at_any_depth(tmp_path):
    for number, place in enumerate(["cat/a", "cat/b", "dog/old/c", "ape/d", "empty"]):
        if place == "empty":
            (tmp_path / place).mkdir()
        else:
            save(np.full((8, 8), number, np.uint8), tmp_path / f"{place}.png")
    source = open_folder(tmp_path)
    assert source.class_names == ["ape", "cat", "dog"]
    assert source.num_classes == 3
    images, labels = source.get(range(4))
    assert labels.tolist() == [0, 1, 1, 2]
    levels = ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert levels == [3, 0, 1, 2]


@pytest.mark.parametrize("folders", [["only/a", "only/b"], ["a", "cat/b", "dog/c"]])
def test_one_subfolder_or_images_beside_them_are_no_classes(tmp_path, folders):
    for place in folders:
        save(random_pixels(0, 8, 8), tmp_path / f"{place}.png")
    source = open_folder(tmp_path)
    assert len(source) == len(folders)
    assert source.num_classes is None
    assert source.labels is None


@pytest.mark.parametrize(
    ("name", "options"),
    [("b.gif", {}), ("b.tif", {"compression": "tiff_lzw"}), ("b.TIFF", {})],
)
def test_other_formats_are_read_pixel_by_pixel(tmp_path, name, options):
    grey = random_pixels(3, 8, 8)
    save(grey, tmp_path / "a.png")
    save(grey, tmp_path / name, **options)
    images, _ = open_folder(tmp_path).get([0, 1])
    assert torch.equal(images[0], images[1])


def test_a_jpeg_called_jfif_and_the_first_picture_of_an_animation_are_read(tmp_path):
    first, second = (np.full((8, 8), value, np.uint8) for value in (40, 200))
    frames = [Image.fromarray(second)]
    Image.fromarray(first).save(tmp_path / "a.gif", save_all=True, append_images=frames)
    Image.fromarray(first).save(tmp_path / "b.tif", save_all=True, append_images=frames)
    Image.fromarray(first).save(tmp_path / "c.jfif", format="JPEG", quality=100)
    source = open_folder(tmp_path)
    assert (len(source), source.channels) == (3, 1)
    images, _ = source.get([0, 1, 2])
    assert (images - (40 / 127.5 - 1)).abs().max() < 0.01


def test_classes_of_gif_and_tiff_files_are_classes(tmp_path):
    for number, ending in enumerate(("gif", "tiff", "png")):
        save(random_pixels(number, 8, 8), tmp_path / ending / f"a.{ending}")
    assert open_folder(tmp_path).class_names == ["gif", "png", "tiff"]


def test_what_is_skipped_is_said_in_one_line(tmp_path):
    save(random_pixels(0, 8, 8), tmp_path / "a" / "a.png")
    (tmp_path / "b").mkdir()
    for number in range(3):
        (tmp_path / "b" / f"{number}.HEIC").write_bytes(b"not read")
    (tmp_path / "README").write_text("about")
    with pytest.warns(fastgan.DataWarning) as caught:
        assert len(open_folder(tmp_path)) == 1
    (said,) = (str(warning.message) for warning in caught)
    assert "skipped 4 of 5 files" in said
    assert "3 .heic, 1 without an ending" in said
    assert "\n" not in said
    (tmp_path / "a" / "a.png").unlink()
    assert "3 .heic" in refusal(tmp_path)


def test_nothing_is_said_where_nothing_is_skipped(tmp_path):
    save(random_pixels(0, 8, 8), tmp_path / "a.png")
    (tmp_path / ".hidden").write_text("by intent")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_folder(tmp_path)


MALFORMED_EXIF = [
    b"no TIFF header at all",
    b"Exif\0\0",
    b"II*\0\xff\xff\xff\xff",
    b"MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x03\0\0\0\x01\0",
    b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0",
]


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
@pytest.mark.parametrize("exif", MALFORMED_EXIF)
def test_a_picture_with_malformed_exif_is_upright(tmp_path, extension, exif):
    pixels = random_pixels(4, 8, 8, 3)
    marked = b"Exif\0\0" + exif if extension == "jpg" else exif
    save(pixels, tmp_path / f"a.{extension}", exif=marked)
    save(pixels, tmp_path / f"b.{extension}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images, _ = open_folder(tmp_path).get([0, 1])
    assert torch.equal(images[0], images[1])


def png_with(path: Path, pixels: np.ndarray, *chunks: bytes) -> Path:
    """A PNG with these chunks before its pixels."""
    content = save(pixels, path).read_bytes()
    path.write_bytes(content[:33] + b"".join(chunks) + content[33:])
    return path


LARGE_CHUNKS = {
    "text": lambda: png_chunk(b"tEXt", b"parameters\0" + bytes([65]) * (70 << 20)),
    "packed text": lambda: png_chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(3 << 20))),
    "international": lambda: png_chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(3 << 20))),
    "profile": lambda: png_chunk(b"iCCP", b"ICC\0\0" + zlib.compress(bytes(3 << 20))),
    "bomb": lambda: png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 << 20))) * 3,
    "exif": lambda: png_chunk(
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 8\n" + b"00" * (1 << 20))
    ),
    "xmp": lambda: png_chunk(
        b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b" " * (3 << 20))
    ),
    "no deflate": lambda: png_chunk(b"zTXt", b"Raw profile type exif\0\0nonsense"),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE_CHUNKS)
def test_a_png_with_a_large_text_or_profile_is_read(tmp_path, name):
    pixels = random_pixels(5, 8, 8)
    png_with(tmp_path / "a.png", pixels, LARGE_CHUNKS[name]())
    source = open_folder(tmp_path)
    assert source.channels == 1
    images, _ = source.get([0])
    expected = (pixels / 127.5 - 1).astype(np.float32)
    np.testing.assert_array_equal(images[0, 0].numpy(), expected)


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iTXt, packed"])
def test_an_orientation_in_a_text_is_obeyed(tmp_path, kind):
    pixels = random_pixels(6, 8, 8)
    exif = Image.Exif()
    exif[0x0112] = 3
    profile = b"\nexif\n      %d\n%s\n" % (len(exif.tobytes()), exif.tobytes().hex().encode())
    xmp = b'<x tiff:Orientation="3"/>'
    chunk = {
        "zTXt": png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        "iTXt": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        "iTXt, packed": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0\0" + zlib.compress(xmp)),
    }[kind]
    path = png_with(tmp_path / "a.png", pixels, chunk)
    decoded = decode_image(path, image_size=8, channels=1)
    np.testing.assert_array_equal(decoded[0], pixels[::-1, ::-1])


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "a.tif")
    assert "floating-point" in refusal(tmp_path)


def test_other_and_hidden_files_are_passed_over(tmp_path):
    save(random_pixels(0, 8, 8), tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "b.png").write_bytes(b"hidden")
    assert len(open_folder(tmp_path)) == 1


def test_links_that_form_a_loop_end(tmp_path):
    save(random_pixels(0, 8, 8), tmp_path / "sub" / "a.png")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    assert len(open_folder(tmp_path)) == 1


def test_folders_that_are_links_count(tmp_path):
    save(random_pixels(0, 8, 8), tmp_path / "elsewhere" / "a.png")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "elsewhere")
    assert len(open_folder(tmp_path / "here")) == 1


def test_channels_are_the_datas_own_unless_given(tmp_path):
    save(random_pixels(0, 8, 8), tmp_path / "grey" / "a.png")
    save(random_pixels(1, 8, 8), tmp_path / "mixed" / "a.png")
    save(random_pixels(2, 8, 8, 3), tmp_path / "mixed" / "b.png")
    assert open_folder(tmp_path / "grey").channels == 1
    assert open_folder(tmp_path / "grey", channels=3).channels == 3
    assert open_folder(tmp_path / "mixed").channels == 3
    images, _ = open_folder(tmp_path / "mixed", channels=1).get([0, 1])
    assert images.shape == (2, 1, 8, 8)
    grey = random_pixels(1, 8, 8)
    np.testing.assert_array_equal(images[0, 0].numpy(), (grey / 127.5 - 1).astype(np.float32))
    luma = random_pixels(2, 8, 8, 3) @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose((images[1, 0].numpy() + 1) * 127.5, luma, atol=1.0)


def test_transparent_pixels_lie_over_white(tmp_path):
    pixels = random_pixels(3, 8, 8, 4)
    pixels[0, :, 3], pixels[1, :, 3] = 0, 255
    save(pixels, tmp_path / "a.png")
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    decoded = decode_image(tmp_path / "a.png", image_size=8, channels=3).transpose(1, 2, 0)
    np.testing.assert_allclose(decoded, expected, atol=1.0)
    assert (decoded[0] == 255).all()
    np.testing.assert_array_equal(decoded[1], pixels[1, :, :3])


def test_grey_with_alpha_stays_grey_over_white(tmp_path):
    pixels = random_pixels(4, 8, 8, 2)
    Image.fromarray(pixels, "LA").save(tmp_path / "a.png")
    source = open_folder(tmp_path)
    assert source.channels == 1
    alpha = pixels[..., 1] / 255
    expected = pixels[..., 0] * alpha + 255 * (1 - alpha)
    found = (source.get([0])[0][0, 0].numpy() + 1) * 127.5
    np.testing.assert_allclose(found, expected, atol=1.01)


@pytest.mark.parametrize(("grey", "channels"), [(True, 1), (False, 3)])
def test_palettes_are_looked_up(tmp_path, grey, channels):
    indices = random_pixels(5, 8, 8)
    table = random_pixels(6, 256, 3)
    if grey:
        table[:] = table[:, :1]
    image = Image.fromarray(indices, "L")
    image.putpalette(table.tobytes())
    assert image.mode == "P"
    image.save(tmp_path / "a.png")
    source = open_folder(tmp_path)
    assert source.channels == channels
    decoded = decode_image(tmp_path / "a.png", image_size=8, channels=3).transpose(1, 2, 0)
    np.testing.assert_array_equal(decoded, table[indices])


def test_transparent_palette_entries_lie_over_white(tmp_path):
    indices = np.arange(64, dtype=np.uint8).reshape(8, 8)
    table = random_pixels(7, 256, 3)
    image = Image.fromarray(indices, "L")
    image.putpalette(table.tobytes())
    image.save(tmp_path / "a.png", transparency=5)
    decoded = decode_image(tmp_path / "a.png", image_size=8, channels=3).transpose(1, 2, 0)
    expected = table[indices]
    expected[indices == 5] = 255
    np.testing.assert_array_equal(decoded, expected)


def test_sixteen_bit_grey_is_rounded_not_cut(tmp_path):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "a.png")
    source = open_folder(tmp_path)
    assert source.channels == 1
    decoded = decode_image(tmp_path / "a.png", image_size=8, channels=1)[0]
    np.testing.assert_array_equal(decoded, np.round(values / 257))


def test_black_and_white_bits_are_read(tmp_path):
    bits = random_pixels(8, 8, 8) > 127
    Image.fromarray(bits).save(tmp_path / "a.png")
    source = open_folder(tmp_path)
    assert source.channels == 1
    np.testing.assert_array_equal(source.get([0])[0][0, 0].numpy(), np.where(bits, 1.0, -1.0))


def test_cmyk_jpegs_are_read(tmp_path):
    Image.new("CMYK", (8, 8), (0, 0, 0, 255)).save(tmp_path / "a.jpg")
    source = open_folder(tmp_path)
    assert source.channels == 3
    assert source.get([0])[0].max() < -0.9


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", sorted(UPRIGHT))
def test_orientation_tags_are_obeyed(tmp_path, orientation):
    pixels = random_pixels(9, 8, 11, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(pixels, tmp_path / "a.png", exif=exif.tobytes())
    turned = UPRIGHT[orientation](pixels)
    height, width = turned.shape[:2]
    top, left = (height - 8) // 2, (width - 8) // 2
    expected = turned[top : top + 8, left : left + 8].transpose(2, 0, 1)
    decoded = decode_image(tmp_path / "a.png", image_size=8, channels=3)
    np.testing.assert_array_equal(decoded, expected)


def test_folders_without_images_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    assert "holds no images" in refusal(tmp_path)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    path = save(random_pixels(0, 8, 8), tmp_path / "a.png")
    assert "not a folder" in refusal(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "empty file"), (b"hello", "not an image"), (b"%!PS-Adobe-3.0 EPSF-3.0", "not an image")],
)
def test_files_that_are_no_images_are_named(tmp_path, content, said):
    save(random_pixels(0, 8, 8), tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(content)
    message = refusal(tmp_path)
    assert said in message
    assert "b.png" in message


@pytest.mark.parametrize("extension", ["png", "jpg", "bmp", "webp", "gif", "tif"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.9])
@pytest.mark.parametrize("in_memory", [True, False])
def test_truncated_files_are_found_at_opening(tmp_path, extension, kept, in_memory):
    save(random_pixels(0, 40, 40, 3), tmp_path / "whole.png")
    path = save(random_pixels(1, 40, 40, 3), tmp_path / f"broken.{extension}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert "broken" in refusal(tmp_path, in_memory=in_memory)


def test_png_without_its_end_or_with_a_flipped_bit_is_found(tmp_path):
    path = save(random_pixels(1, 24, 24, 3), tmp_path / "broken.png")
    content = path.read_bytes()
    # The last chunk has 12 bytes and no pixels; without it, the file still isn't whole.
    path.write_bytes(content[:-12])
    assert "broken.png" in refusal(tmp_path)
    for place in np.random.default_rng(0).integers(16, len(content) - 20, 25):
        flipped = bytearray(content)
        flipped[place] ^= 0x10
        path.write_bytes(flipped)
        assert "broken.png" in refusal(tmp_path)


def test_decompression_bombs_are_refused_by_their_header(tmp_path):
    for width, height in [(9000, 9000), (20000, 20000), (2**31 - 1, 2**31 - 1)]:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        (tmp_path / "bomb.png").write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + png_chunk(b"IHDR", header)
            + png_chunk(b"IDAT", zlib.compress(bytes(1000)))
            + png_chunk(b"IEND", b"")
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert "bomb.png" in refusal(tmp_path)
        assert not caught


def tiff_header(width: int, height: int) -> bytes:
    entries = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (279, 1)]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(64)


@pytest.mark.parametrize("side", [9000, 20000, 65535])
@pytest.mark.parametrize("name", ["bomb.gif", "bomb.tif"])
def test_decompression_bombs_of_other_formats_are_refused(tmp_path, name, side):
    frame = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
    frame += b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\2\2\x4c\1\0;"
    (tmp_path / name).write_bytes(frame if name.endswith("gif") else tiff_header(side, side))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        said = refusal(tmp_path)
    assert name in said
    assert "bomb" in said.replace(name, "")
    assert not caught


def test_files_larger_than_any_image_are_not_read(tmp_path):
    save(random_pixels(1, 8, 8), tmp_path / "huge.png")
    with (tmp_path / "huge.png").open("r+b") as file:
        file.truncate(2**29 + 1)
    assert "expected at most" in refusal(tmp_path)


def test_names_with_line_breaks_still_give_one_line(tmp_path):
    (tmp_path / "two\nlines.png").write_bytes(b"nothing")
    assert "two\\nlines.png" in refusal(tmp_path)


def test_a_pipe_among_the_images_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in refusal(tmp_path)


def test_large_folders_are_checked_by_their_headers_only(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "VERIFIED_FILES", 2)
    for number in range(3):
        save(random_pixels(number, 20, 20, 3), tmp_path / f"{number}.png")
    content = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(content[: len(content) // 2])
    source = open_folder(tmp_path)
    assert not source.in_memory
    assert source.get([0, 2])[0].shape == (2, 3, 8, 8)
    with pytest.raises(DataError, match=r"1\.png"):
        source.get([0, 1])
    (tmp_path / "1.png").write_bytes(b"")
    assert "1.png" in refusal(tmp_path)


def test_a_file_that_vanishes_is_named(tmp_path):
    for number in range(3):
        save(random_pixels(number, 8, 8), tmp_path / f"{number}.png")
    source = open_folder(tmp_path, in_memory=False)
    (tmp_path / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png': not found"):
        source.get([2])


@pytest.mark.parametrize("channels", [1, 3])
def test_reading_on_request_gives_what_reading_at_once_gives(tmp_path, channels):
    for number in range(7):
        save(random_pixels(number, 9 + number, 14, 3), tmp_path / f"{number % 2}" / f"{number}.png")
    whole = open_folder(tmp_path, image_size=16, channels=channels, in_memory=True)
    lazy = open_folder(tmp_path, image_size=16, channels=channels, in_memory=False)
    expected, expected_labels = whole.get([6, 0, 3, 3])
    images, labels = lazy.get([6, 0, 3, 3])
    np.testing.assert_array_equal(images.numpy(), expected.numpy())
    assert labels.tolist() == expected_labels.tolist()


def test_progress_reaches_the_number_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "_FILES_AT_ONCE", 2)
    for number in range(5):
        save(random_pixels(number, 8, 8), tmp_path / f"{number}.png")
    calls = []
    open_folder(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_every_error_of_a_decoder_becomes_one_that_names_the_file(tmp_path, monkeypatch):
    path = save(random_pixels(0, 8, 8), tmp_path / "a.png")

    def explode(*_: object, **__: object) -> None:
        raise struct.error("unpack requires\na buffer")

    monkeypatch.setattr(decoding_module.Image, "open", explode)
    with pytest.raises(DataError, match=r"a\.png.*unpack requires a buffer"):
        decode_image(path, image_size=8, channels=1)
