"""Some random chains, critics and optimiser steps on strange values; see ``values.py``."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from values import chains_are_right, critics_are_right, quietly, steps_are_right


@pytest.mark.parametrize("check", [chains_are_right, critics_are_right, steps_are_right])
def test_strange_values_are_as_right_as_eagers(check: Callable[[random.Random], bool]) -> None:
    for seed in range(20):
        assert quietly(check, random.Random(seed)), f"seed {seed}"


@pytest.mark.parametrize("seed", [23, 31, 39, 42])
def test_scores_that_are_nan_end_no_call(seed: int) -> None:
    """Where the batches' scores were compared to learn whether they may be joined."""
    assert quietly(critics_are_right, random.Random(seed))


def test_a_mean_far_above_the_spread_costs_a_critic_no_more_than_eager() -> None:
    """Of batch norm alone, on images that the recording lays out channels-last."""
    assert quietly(critics_are_right, random.Random(22))
