"""A module beside the ops, which stays the user's own."""

from __future__ import annotations

import torch


def assert_shape(x: torch.Tensor, shape: list[int | None]) -> None:
    for size, wanted in zip(x.shape, shape, strict=True):
        assert wanted is None or size == wanted
