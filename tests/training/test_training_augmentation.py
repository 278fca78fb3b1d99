"""Differentiable augmentation against its definition, one sample and one pixel at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.errors import ConfigError
from fastgan.training.augmentation import KINDS, augment, augmentation_kinds, draw_augmentation

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.sampled_from([4, 5, 8, 13, 16])


def drawn(kind: str, count: int, seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return draw_augmentation([kind], lambda numbers: torch.rand(count, numbers, generator=random))


def batch(seed: int, size: int, channels: int = 3) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(4, channels, size, size, generator=random, dtype=torch.float64)


@given(SEEDS, SIZES, st.sampled_from([1, 3]))
@settings(max_examples=25, deadline=None)
def test_colour_is_its_formula(seed: int, size: int, channels: int) -> None:
    images, numbers = batch(seed, size, channels), drawn("color", 4, seed)
    found = augment(images, numbers)
    for x, y, u in zip(images, found, numbers["color"].double(), strict=True):
        x = x + (u[0] - 0.5)
        grey = x.mean(0)
        x = torch.stack([2 * u[1] * (c - grey) + grey for c in x])
        x = (u[2] + 0.5) * (x - x.mean()) + x.mean()
        torch.testing.assert_close(y, x)


@given(SEEDS, SIZES)
@settings(max_examples=25, deadline=None)
def test_translation_moves_by_whole_pixels_and_lets_zeros_in(seed: int, size: int) -> None:
    images, numbers = batch(seed, size), drawn("translation", 4, seed)
    found = augment(images, numbers)
    furthest = int(size / 8 + 0.5)
    for x, y, u in zip(images, found, numbers["translation"].tolist(), strict=True):
        down, right = (int(each * (2 * furthest + 1)) - furthest for each in u)
        assert max(abs(down), abs(right)) <= furthest
        expected = torch.zeros_like(x)
        for i in range(size):
            for j in range(size):
                if 0 <= i - down < size and 0 <= j - right < size:
                    expected[:, i, j] = x[:, i - down, j - right]
        assert torch.equal(y, expected)


@given(SEEDS, SIZES)
@settings(max_examples=25, deadline=None)
def test_cutout_blackens_the_part_of_a_square_that_lies_inside(seed: int, size: int) -> None:
    images, numbers = batch(seed, size), drawn("cutout", 4, seed)
    found = augment(images, numbers)
    side = int(size / 2 + 0.5)
    for x, y, u in zip(images, found, numbers["cutout"].tolist(), strict=True):
        top, left = (int(each * (size + 1 - side % 2)) - side // 2 for each in u)
        expected = x.clone()
        expected[:, max(top, 0) : top + side, max(left, 0) : left + side] = 0
        assert torch.equal(y, expected)
        assert (y == 0).any()


def test_every_shift_and_every_place_of_the_square_comes_about_as_often() -> None:
    size, count = 16, 8000
    images = torch.zeros(count, 1, size, size)
    images[:, 0, size // 2, size // 2] = 1
    found = augment(images, drawn("translation", count, 0))
    rows = found.amax(3).argmax(2).flatten() - size // 2
    shares = torch.bincount(rows + 2, minlength=5) / count
    torch.testing.assert_close(shares, torch.full((5,), 0.2), rtol=0, atol=0.03)
    cut = augment(torch.ones(count, 1, size, size), drawn("cutout", count, 0))
    first = (cut == 0).any(3).float().argmax(2).flatten()
    shares = torch.bincount(first, minlength=13) / count
    # Of 17 positions of the centre, 5 have the square begin at the edge or beyond it.
    torch.testing.assert_close(shares[0].item(), 5 / 17, rtol=0, atol=0.03)
    torch.testing.assert_close(shares[1:], torch.full_like(shares[1:], 1 / 17), rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", ["color", "translation", "cutout"])
def test_gradients_pass_through_to_any_order(kind: str) -> None:
    images = batch(0, 5).requires_grad_()
    numbers = {name: value.double() for name, value in drawn(kind, 4, 1).items()}
    assert torch.autograd.gradcheck(lambda x: augment(x, numbers), (images,))
    assert torch.autograd.gradgradcheck(lambda x: augment(x, numbers).square(), (images,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_layout_are_kept(dtype: torch.dtype) -> None:
    numbers = {kind: value for each in KINDS for kind, value in drawn(each, 4, 0).items()}
    images = batch(0, 8).to(dtype)
    found = augment(images, numbers)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), augment(images.double(), numbers), rtol=0.05, atol=0.1
    )


def test_policies() -> None:
    assert augmentation_kinds("none") == ()
    assert augmentation_kinds("translation, color") == ("color", "translation")
    for wrong in ("", "colour", "color,,cutout"):
        with pytest.raises(ConfigError, match="augment"):
            augmentation_kinds(wrong)
