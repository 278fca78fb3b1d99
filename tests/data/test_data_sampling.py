"""Shuffling without state, and splits."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgan.data import InfiniteSampler, split_indices
from fastgan.errors import ConfigError


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 40),
    batch_size=st.integers(1, 90),
    seed=st.integers(-(2**63), 2**63 - 1),
    first=st.integers(0, 50),
)
def test_every_epoch_is_a_permutation_and_batches_are_never_short(length, batch_size, seed, first):
    sampler = InfiniteSampler(length, batch_size, seed)
    steps = -(-3 * length // batch_size)
    laid_out = torch.cat([sampler.indices(step) for step in range(steps)])
    assert laid_out.shape == (steps * batch_size,)
    assert laid_out.dtype == torch.int64
    for epoch in laid_out[: 3 * length].view(3, length):
        assert sorted(epoch.tolist()) == list(range(length))
    fresh = InfiniteSampler(length, batch_size, seed)
    assert torch.equal(
        fresh.indices(first), InfiniteSampler(length, batch_size, seed).indices(first)
    )


def test_a_batch_depends_on_its_step_alone_not_on_those_asked_before():
    asked_in_order = InfiniteSampler(37, 8, seed=5)
    expected = [asked_in_order.indices(step) for step in range(30)]
    asked_backwards = InfiniteSampler(37, 8, seed=5)
    for step in reversed(range(30)):
        assert torch.equal(asked_backwards.indices(step), expected[step])
    after_pickling = pickle.loads(pickle.dumps(asked_in_order))
    assert torch.equal(after_pickling.indices(11), expected[11])


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {
        tuple(InfiniteSampler(50, 50, seed).indices(epoch).tolist())
        for seed in (0, 1, 2, -1, 2**62)
        for epoch in range(4)
    }
    assert len(orders) == 20


def test_every_image_is_as_likely_first_as_any_other():
    sampler = InfiniteSampler(5, 5, seed=0)
    firsts = Counter(int(sampler.indices(epoch)[0]) for epoch in range(2000))
    # 400 expected each, standard deviation 18.
    assert all(300 < firsts[image] < 500 for image in range(5))


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    InfiniteSampler(10, 4, seed=3).indices(7)
    split_indices(10, 0.3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("length", "batch_size"), [(0, 4), (4, 0), (-1, 1)])
def test_sampler_refuses_empty_sets_and_batches(length, batch_size):
    with pytest.raises(ConfigError, match="expected at least 1"):
        InfiniteSampler(length, batch_size, seed=0)


def test_sampler_refuses_negative_steps():
    with pytest.raises(ConfigError, match="step: -1"):
        InfiniteSampler(4, 2, seed=0).indices(-1)


@settings(max_examples=60, deadline=None)
@given(length=st.integers(2, 300), held_out=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_split_covers_every_index_once(length, held_out, seed):
    rest, held = split_indices(length, held_out, seed)
    assert sorted(rest.tolist() + held.tolist()) == list(range(length))
    assert min(max(round(length * held_out), 1), length - 1) == len(held)
    assert held.tolist() == sorted(held.tolist())
    again = split_indices(length, held_out, seed)
    assert torch.equal(again[0], rest)
    assert torch.equal(again[1], held)


@pytest.mark.parametrize("seed", range(5))
def test_stratified_split_takes_the_share_of_every_class(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 7, (500,), generator=generator)
    rest, held = split_indices(500, 0.25, seed, labels=labels)
    assert sorted(rest.tolist() + held.tolist()) == list(range(500))
    held_counts, counts = Counter(labels[held].tolist()), Counter(labels.tolist())
    assert all(held_counts[number] == round(counts[number] * 0.25) for number in counts)


def test_stratified_split_keeps_every_class_that_can_be_on_both_sides():
    labels = torch.tensor([0] * 50 + [1, 1] + [2])
    rest, held = split_indices(53, 0.05, labels=labels)
    assert set(labels[held].tolist()) == {0, 1}
    assert set(labels[rest].tolist()) == {0, 1, 2}


def test_seeds_give_different_splits():
    assert not torch.equal(split_indices(100, 0.2, 0)[1], split_indices(100, 0.2, 1)[1])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"length": 1}, "length: 1"),
        ({"length": 5, "held_out": 0.0}, "held_out: 0.0"),
        ({"length": 5, "held_out": 1.0}, "held_out: 1.0"),
        ({"length": 5, "labels": torch.zeros(4)}, "labels: shape"),
        ({"length": 3, "labels": torch.arange(3)}, "every class has a single image"),
    ],
)
def test_split_refuses_what_it_cant_split(arguments, named):
    with pytest.raises(ConfigError, match=named):
        split_indices(**arguments)
