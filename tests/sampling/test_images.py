"""Pictures: correct pixels, atomic files."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from fastgan.errors import ConfigError, DataError, ImageSizeError, OutputError
from fastgan.sampling.images import (
    PADDING_VALUE,
    class_grid,
    grid_columns,
    make_grid,
    save_gif,
    save_grid,
    save_strip,
    save_video,
)


def random_images(count: int, channels: int, height: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, height, width, generator=generator) * 2.4 - 1.2


def expected_pixel(value: float) -> int:
    return round(min(max(value, -1.0), 1.0) * 127.5 + 127.5)


@pytest.mark.parametrize(
    ("count", "channels", "height", "width", "columns", "padding"),
    [
        (1, 1, 4, 4, None, 2),
        (6, 3, 5, 3, 3, 1),
        (7, 1, 3, 5, 3, 0),
        (10, 3, 4, 4, None, 2),
        (3, 1, 4, 4, 9, 2),
    ],
)
def test_grid_places_every_pixel(count, channels, height, width, columns, padding):
    images = random_images(count, channels, height, width, seed=count)
    grid = make_grid(images, columns=columns, padding=padding)

    across = min(columns or {1: 1, 10: 5}[count], count)
    down = -(-count // across)
    assert grid.dtype == np.uint8
    assert grid.shape == (
        down * (height + padding) + padding,
        across * (width + padding) + padding,
        channels,
    )
    covered = np.zeros(grid.shape[:2], dtype=bool)
    for index in range(count):
        top = padding + (index // across) * (height + padding)
        left = padding + (index % across) * (width + padding)
        covered[top : top + height, left : left + width] = True
        for channel in range(channels):
            for y in range(height):
                for x in range(width):
                    want = expected_pixel(images[index, channel, y, x].item())
                    assert abs(int(grid[top + y, left + x, channel]) - want) <= 0.5
    assert len(np.unique(grid[~covered])) <= 1  # one padding colour everywhere else


def test_grids_are_near_squares_with_full_last_rows():
    for n in range(1, 200):
        columns = grid_columns(n)
        rows = -(-n // columns)
        assert rows <= columns <= 4 * rows
        # Only where no divisor makes such a grid is the last row left open.
        fits = [d for d in range(1, n + 1) if n % d == 0 and n <= d * d <= 4 * n]
        assert (n % columns == 0) == bool(fits), n


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 16, 17, 40, 1000])
def test_grids_of_classes_have_full_rows_and_columns_for_few_classes(classes):
    labels, columns = class_grid(64, classes)
    assert len(labels) % columns == 0
    assert 48 <= len(labels) <= 80
    assert columns <= 16
    assert set(labels) == set(range(min(classes, 64)))
    if classes <= 16:
        assert labels == sorted(labels[:columns]) * (len(labels) // columns)


def test_captions_stand_above_the_columns_that_they_name(tmp_path: Path):
    labels, columns = class_grid(64, 3)
    images = torch.zeros(len(labels), 3, 16, 16)
    path, bare = tmp_path / "grid.png", tmp_path / "bare.png"
    save_grid(images, path, columns=columns, captions=[("cat", "", "W" * 99)[k] for k in labels])
    save_grid(images, bare, columns=columns)
    with Image.open(path) as picture, Image.open(bare) as without:
        pixels, plain = np.asarray(picture.convert("L")), np.asarray(without.convert("L"))
    extra = len(pixels) - len(plain)
    assert 10 <= extra <= 20
    np.testing.assert_array_equal(pixels[extra:], plain)
    written = (pixels[:extra] != PADDING_VALUE).any(axis=0)
    third = 3 * 50
    # "cat" is short, nothing is written above the second class, and the third is cut at its end.
    assert written[:third].any()
    assert not written[60 : 2 * third].any()
    assert written[2 * third : -2].mean() > 0.5
    assert not written[-2:].any()


def test_captions_come_again_where_they_change_and_only_there(tmp_path: Path):
    heights = []
    for captions in (["a", "b", "a", "b"], ["a", "b", "b", "a"]):
        save_grid(torch.zeros(4, 1, 16, 16), tmp_path / "grid.png", columns=2, captions=captions)
        with Image.open(tmp_path / "grid.png") as picture:
            heights.append(picture.height)
    assert heights[1] - heights[0] == heights[0] - (2 * 50 + 2)
    with pytest.raises(ValueError, match="captions: expected 4, one for each image, got 1"):
        save_grid(torch.zeros(4, 1, 16, 16), tmp_path / "grid.png", captions=["a"])


def test_range_ends_map_to_black_and_white():
    images = torch.tensor([-1.0, 1.0, -7.0, 7.0]).reshape(4, 1, 1, 1)
    assert make_grid(images, columns=4, padding=0).ravel().tolist() == [0, 255, 0, 255]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_float_type_and_layout_gives_the_same_picture(dtype):
    images = torch.linspace(-1, 1, 8).reshape(2, 1, 2, 2).expand(2, 3, 2, 2).to(dtype)
    images = images.to(memory_format=torch.channels_last).requires_grad_()
    reference = make_grid(images.detach().contiguous().float())
    np.testing.assert_array_equal(make_grid(images), reference)


@pytest.mark.parametrize("channels", [1, 3])
def test_saved_grid_is_the_enlarged_images(tmp_path: Path, channels):
    images = random_images(6, channels, 16, 16, seed=3)
    save_grid(images, tmp_path / "grid.png", columns=3)
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.mode == ("L" if channels == 1 else "RGB")
        pixels = np.asarray(picture).reshape(picture.height, picture.width, channels)
    assert pixels.shape == (2 * 50 + 2, 3 * 50 + 2, channels)  # 16 px enlarged three times
    cell = pixels[52:100, 102:150]  # second row, third column
    for dy in range(3):
        for dx in range(3):
            np.testing.assert_array_equal(cell[dy::3, dx::3], make_grid(images[5:], padding=0))


@pytest.mark.parametrize(("size", "cell"), [(8, 48), (16, 48), (28, 56), (32, 64), (64, 64)])
def test_default_scale_makes_cells_visible(tmp_path: Path, size, cell):
    save_strip(random_images(3, 1, size, size, seed=0), tmp_path / "strip.png")
    with Image.open(tmp_path / "strip.png") as picture:
        assert picture.size == (3 * (cell + 2) + 2, cell + 4)


def test_given_scale_wins(tmp_path: Path):
    save_grid(random_images(1, 1, 16, 16, seed=0), tmp_path / "grid.png", scale=1)
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (20, 20)


def test_grey_animation_reads_back_exactly(tmp_path: Path):
    frames = random_images(7, 1, 16, 16, seed=5)
    save_gif(frames, tmp_path / "morph.gif", milliseconds=80, scale=2)
    with Image.open(tmp_path / "morph.gif") as animation:
        assert animation.n_frames == 7
        assert animation.info["duration"] == 80
        assert animation.info["loop"] == 0
        for index, frame in enumerate(ImageSequence.Iterator(animation)):
            pixels = np.asarray(frame.convert("L"))[::2, ::2]
            want = make_grid(frames[index : index + 1], padding=0)[:, :, 0]
            np.testing.assert_array_equal(pixels, want)


def test_colour_animation_of_few_colours_reads_back_exactly(tmp_path: Path):
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 2, (4, 3, 8, 8), generator=generator).float() * 2 - 1
    save_gif(frames, tmp_path / "morph.gif", scale=1)
    with Image.open(tmp_path / "morph.gif") as animation:
        for index, frame in enumerate(ImageSequence.Iterator(animation)):
            want = make_grid(frames[index : index + 1], padding=0)
            np.testing.assert_array_equal(np.asarray(frame.convert("RGB")), want)


def test_animation_of_grids(tmp_path: Path):
    frames = random_images(3 * 4, 1, 16, 16, seed=2).reshape(3, 4, 1, 16, 16)
    save_gif(frames, tmp_path / "morph.gif", scale=1)
    with Image.open(tmp_path / "morph.gif") as animation:
        assert animation.n_frames == 3
        animation.seek(2)
        pixels = np.asarray(animation.convert("L"))
    np.testing.assert_array_equal(pixels, make_grid(frames[2])[:, :, 0])


SAVERS = [
    pytest.param(save_grid, "picture.png", id="grid"),
    pytest.param(save_strip, "picture.png", id="strip"),
    pytest.param(save_gif, "picture.gif", id="gif"),
]


@pytest.mark.parametrize(("save", "name"), SAVERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_are_refused_and_counted(tmp_path: Path, save, name, value):
    images = torch.zeros(5, 1, 16, 16)
    images[1, 0, 3, 4] = images[4, 0, 0, 0] = value
    with pytest.raises(DataError, match="2 of 5 images hold NaN or infinity"):
        save(images, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("save", "name"), SAVERS)
@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 2, 16, 16), (0, 1, 16, 16), (2, 4, 8, 8)])
def test_other_shapes_are_refused(tmp_path: Path, save, name, shape):
    with pytest.raises(ImageSizeError, match=r"expected shape \(N, C, H, W\)"):
        save(torch.zeros(shape), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_integer_images_are_refused():
    with pytest.raises(TypeError, match=r"torch\.uint8"):
        make_grid(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize(
    "options", [{"columns": 0}, {"columns": -1}, {"padding": -1}, {"columns": 1.5}]
)
def test_impossible_layouts_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make_grid(torch.zeros(2, 1, 4, 4), **options)


@pytest.mark.parametrize("options", [{"milliseconds": 0}, {"loop": -1}, {"scale": 0}])
def test_impossible_animations_are_refused(tmp_path: Path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        save_gif(torch.zeros(2, 1, 4, 4), tmp_path / "morph.gif", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("save", "name"), SAVERS)
def test_missing_folder_is_an_output_error(tmp_path: Path, save, name):
    with pytest.raises(OutputError, match="nowhere does not exist"):
        save(torch.zeros(1, 1, 16, 16), tmp_path / "nowhere" / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("save", "name"), SAVERS)
@pytest.mark.parametrize("wrong", ["picture.txt", "picture", "picture.tiff"])
def test_unknown_extension_is_an_output_error(tmp_path: Path, save, name, wrong):
    with pytest.raises(OutputError, match="expected one of .*" + Path(name).suffix):
        save(torch.zeros(1, 1, 16, 16), tmp_path / wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("save", "name"), SAVERS)
def test_folder_in_the_way_is_an_output_error(tmp_path: Path, save, name):
    (tmp_path / name).mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        save(torch.zeros(1, 1, 16, 16), tmp_path / name)


@pytest.mark.parametrize(("save", "name"), SAVERS)
def test_failed_write_leaves_the_earlier_file_and_nothing_else(
    tmp_path: Path, save, name, monkeypatch
):
    target = tmp_path / name
    target.write_bytes(b"earlier")

    def fail(source, destination):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="No space left on device"):
        save(torch.zeros(1, 1, 16, 16), target)
    assert target.read_bytes() == b"earlier"
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch):
    def interrupt(self, file, **options):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_grid(torch.zeros(1, 1, 16, 16), tmp_path / "grid.png")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_an_output_error(tmp_path: Path, monkeypatch):
    # Root may write into read-only folders, so the refusal is played rather than provoked.
    def deny(path, *arguments, **options):
        if str(path).startswith(str(tmp_path)):
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    opened = os.open
    monkeypatch.setattr(os, "open", deny)
    with pytest.raises(OutputError, match="can't be written: Permission denied"):
        save_grid(torch.zeros(1, 1, 16, 16), tmp_path / "grid.png")
    assert list(tmp_path.iterdir()) == []


def test_files_get_the_usual_permissions(tmp_path: Path):
    save_grid(torch.zeros(1, 1, 16, 16), tmp_path / "grid.png")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "grid.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_existing_file_is_replaced(tmp_path: Path):
    save_grid(-torch.ones(1, 1, 16, 16), tmp_path / "grid.png", scale=1)
    save_grid(torch.ones(1, 1, 16, 16), tmp_path / "grid.png", scale=1)
    with Image.open(tmp_path / "grid.png") as picture:
        assert np.asarray(picture)[10, 10] == 255


def test_a_video_is_given_every_frame_and_appears_whole(tmp_path: Path, monkeypatch):
    """With imageio's part played by a stand-in: ffmpeg is larger than all that tests install."""
    given = {}

    def imwrite(path, frames, **options):
        given.update(options, frames=frames)
        Path(path).write_bytes(b"a video")

    stand_in = types.SimpleNamespace(v3=types.SimpleNamespace(imwrite=imwrite))
    frames = random_images(5, 1, 28, 28, seed=5)
    path = tmp_path / "walk.mp4"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'imageio\[ffmpeg\]'"):
        save_video(frames, path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "imageio", stand_in)
    save_video(frames, path, milliseconds=40)
    assert path.read_bytes() == b"a video"
    assert given["fps"] == 25
    assert given["frames"].shape == (5, 280, 280, 3)
    for frame, image in zip(given["frames"], frames, strict=True):
        want = make_grid(image[None], padding=0)
        np.testing.assert_array_equal(frame[::10, ::10], want.repeat(3, axis=2))
    with pytest.raises(OutputError, match=r"expected one of \.mp4"):
        save_video(frames, tmp_path / "walk.avi")
    with pytest.raises(ValueError, match="milliseconds: expected a whole number of at least 10"):
        save_video(frames, path, milliseconds=3)
    assert [each.name for each in tmp_path.iterdir()] == ["walk.mp4"]
