"""Endless batches: the same for all ways of reading, and worker processes that end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from fastgan.data import ImageSource, InfiniteSampler, load_data, open_stream, source_from_array
from fastgan.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for number in range(10):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    return tmp_path / "pictures"


def open_folder(folder: Path, *, in_memory: bool) -> ImageSource:
    return load_data(f"folder:{folder}", image_size=8, in_memory=in_memory)


def first_batches(source: ImageSource, count: int, **options: object):
    options = {"batch_size": 4, "seed": 3, "device": "cpu", **options}
    with open_stream(source, **options) as stream:
        return list(islice(stream, count))


def assert_same(found, expected) -> None:
    assert len(found) == len(expected)
    for (images, labels), (expected_images, expected_labels) in zip(found, expected, strict=True):
        assert images.dtype == torch.float32
        assert torch.equal(images, expected_images)
        assert (labels is None) == (expected_labels is None)
        if labels is not None:
            assert labels.dtype == torch.int64
            assert torch.equal(labels, expected_labels)


class Misbehaving(ImageSource):
    """Does something to the process that reads image 5."""

    def __init__(self, deed: str) -> None:
        super().__init__(f"misbehaving by {deed}", length=8, channels=1, image_size=4)
        self.deed = deed

    def read(self, indices):
        if 5 in indices:
            if self.deed == "exit":
                os._exit(3)
            if self.deed == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise DataError("'5.png': of no use")
        return torch.zeros(len(indices), 1, 4, 4)


def wait_for_no_children() -> list[multiprocessing.process.BaseProcess]:
    deadline = time.monotonic() + 10
    while (children := multiprocessing.active_children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return children


def test_batches_are_the_images_the_sampler_says():
    source = load_data("digits", image_size=16)
    sampler = InfiniteSampler(len(source), 100, seed=9)
    # 1,797 images: batch 17 crosses from the first epoch into the second.
    found = first_batches(source, 20, batch_size=100, seed=9)
    assert_same(found, [source.get(sampler.indices(step).tolist()) for step in range(20)])


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("start_step", [0, 5])
@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_are_the_same_for_any_workers_start_and_storage(
    folder, workers, start_step, in_memory
):
    whole = open_folder(folder, in_memory=True)
    sampler = InfiniteSampler(10, 4, seed=3)
    steps = range(start_step, start_step + 6)
    expected = [whole.get(sampler.indices(step).tolist()) for step in steps]
    source = open_folder(folder, in_memory=in_memory)
    assert_same(first_batches(source, 6, workers=workers, start_step=start_step), expected)
    assert not wait_for_no_children()


def test_workers_that_are_spawned_give_the_same(folder):
    source = open_folder(folder, in_memory=False)
    expected = first_batches(source, 3, workers=0)
    assert_same(first_batches(source, 3, workers=1, start_method="spawn"), expected)


def test_arrays_converted_on_request_stream_through_workers():
    array = torch.randint(0, 256, (9, 3, 5, 6), dtype=torch.uint8)
    options = {"image_size": 8, "channels": 1, "labels": torch.arange(9)}
    whole = source_from_array("array", array, in_memory=True, **options)
    lazy = source_from_array("array", array, in_memory=False, **options)
    assert_same(first_batches(lazy, 5, workers=2), first_batches(whole, 5))


def test_unlabelled_sets_have_no_labels():
    source = source_from_array("plain", torch.zeros(3, 1, 4, 4), image_size=4)
    for workers in (0, 1):
        assert all(labels is None for _, labels in first_batches(source, 2, workers=workers))


def test_the_step_counts_on():
    with open_stream(
        load_data("digits", image_size=8), batch_size=2, seed=0, device="cpu", start_step=7
    ) as stream:
        assert stream.step == 7
        next(stream)
        assert stream.step == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_random_state_is_left_alone(folder, workers):
    source = open_folder(folder, in_memory=False)
    before = torch.get_rng_state()
    first_batches(source, 2, workers=workers)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_the_reader_does_to_a_batch_stays_in_the_batch():
    source = load_data("digits", image_size=8)
    before = source.images.clone()
    with open_stream(source, batch_size=8, seed=0, device="cpu") as stream:
        images, labels = next(stream)
        images.zero_()
        labels.zero_()
    assert torch.equal(source.images, before)
    assert source.labels.max() == 9


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_file_that_vanishes_is_named_in_one_line(folder, workers):
    source = open_folder(folder, in_memory=False)
    (folder / "a" / "4.png").unlink()
    with pytest.raises(DataError) as caught:
        first_batches(source, 20, workers=workers)
    assert "4.png" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not wait_for_no_children()


def test_a_file_damaged_during_the_run_is_named(folder):
    source = open_folder(folder, in_memory=False)
    with open_stream(source, batch_size=10, seed=0, device="cpu", workers=1) as stream:
        next(stream)
        for path in folder.rglob("*.png"):
            path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(DataError, match=r"\.png': replaced or written to"):
            list(islice(stream, 20))


@pytest.mark.parametrize("deed", ["exit", "kill"])
def test_a_worker_that_dies_is_a_data_error_that_says_how(deed):
    with pytest.raises(DataError) as caught:
        first_batches(Misbehaving(deed), 20, workers=2)
    assert f"misbehaving by {deed}: a data worker process died" in str(caught.value)
    assert "\n" not in str(caught.value)
    del caught
    assert not wait_for_no_children()


class HalfDying(Misbehaving):
    """Ends the first worker."""

    def read(self, indices):
        first = get_worker_info().id == 0
        return super().read(indices if first else [0] * len(indices))


def test_a_worker_that_dies_takes_the_others_with_it():
    """At once: torch reports each death of a worker, anywhere, while an iterator is left."""
    with pytest.raises(DataError) as caught:
        first_batches(HalfDying("kill"), 20, workers=2)
    assert not multiprocessing.active_children()
    del caught


def test_an_error_in_a_worker_arrives_as_it_was_raised():
    for workers in (0, 1):
        with pytest.raises(DataError) as caught:
            first_batches(Misbehaving("raising"), 20, workers=workers)
        assert str(caught.value) == "'5.png': of no use"


def test_a_worker_that_dies_while_it_hands_over_a_batch_is_a_data_error(monkeypatch):
    def cut_off(self):
        raise EOFError

    with open_stream(
        Misbehaving("nothing"), batch_size=2, seed=0, device="cpu", workers=1
    ) as stream:
        monkeypatch.setattr(type(stream._iterator), "__next__", cut_off)
        with pytest.raises(DataError, match="a data worker process died: EOFError"):
            next(stream)


def test_a_worker_found_dead_in_the_body_of_with_is_a_data_error_too():
    source = load_data("digits", image_size=8)
    dead = "DataLoader worker (pid 7) is killed by signal: Killed. "
    with (
        pytest.raises(DataError, match="digits: a data worker process died"),
        open_stream(source, batch_size=2, seed=0, device="cpu"),
    ):
        raise RuntimeError(dead)
    with (
        pytest.raises(RuntimeError, match="something else"),
        open_stream(source, batch_size=2, seed=0, device="cpu"),
    ):
        raise RuntimeError("something else")


def test_closing_early_ends_the_workers_and_the_stream(folder):
    source = open_folder(folder, in_memory=False)
    stream = open_stream(source, batch_size=4, seed=0, device="cpu", workers=2)
    assert len(multiprocessing.active_children()) == 2
    next(stream)
    stream.close()
    assert not wait_for_no_children()
    stream.close()
    with pytest.raises(DataError, match="this stream is closed"):
        next(stream)


def test_leaving_by_an_error_ends_the_workers(folder):
    source = open_folder(folder, in_memory=False)
    with (
        pytest.raises(ZeroDivisionError),
        open_stream(source, batch_size=4, seed=0, device="cpu", workers=2) as stream,
    ):
        _ = next(stream)[0].sum().item() / 0
    assert not wait_for_no_children()


def test_a_stream_that_is_dropped_ends_its_workers(folder):
    stream = open_stream(
        open_folder(folder, in_memory=False), batch_size=4, seed=0, device="cpu", workers=1
    )
    next(stream)
    del stream
    assert not wait_for_no_children()


READER = """
import sys
from fastgan.data import load_data, open_stream
if __name__ == "__main__":
    source = load_data("folder:" + sys.argv[1], image_size=8, in_memory=False)
    stream = open_stream(source, batch_size=4, seed=0, device="cpu", workers=2)
    import multiprocessing, signal, time
    caught = []
    signal.signal(signal.SIGINT, lambda *_: caught.append(1))
    next(stream)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    while not caught:
        time.sleep(0.01)
    for _ in range(10):
        next(stream)
    print("still reading", flush=True)
    time.sleep(60)
"""


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_workers_outlive_an_interrupt_but_not_their_parent(folder):
    package = Path(__file__).parents[2]
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=package,
        start_new_session=True,
    )
    try:
        workers = [int(text) for text in reader.stdout.readline().split()]
        assert len(workers) == 2
        os.killpg(reader.pid, signal.SIGINT)
        assert reader.stdout.readline() == "still reading\n"
        assert all(is_running(worker) for worker in workers)
        reader.kill()
        reader.wait()
        # torch's workers look for their parent every five seconds.
        deadline = time.monotonic() + 20
        while any(is_running(worker) for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(is_running(worker) for worker in workers)
    finally:
        reader.kill()
        reader.wait()
        reader.stdout.close()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 0}, "batch_size: 0"),
        ({"start_step": -1}, "start_step: -1"),
        ({"workers": -1}, "workers: -1"),
    ],
)
def test_impossible_settings_are_refused(options, named):
    with pytest.raises(ConfigError, match=named):
        first_batches(load_data("digits", image_size=8), 1, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_on_a_gpu_are_bit_for_bit_those_on_the_cpu(folder, workers, in_memory):
    source = open_folder(folder, in_memory=in_memory)
    found = first_batches(source, 8, device="cuda", workers=workers)
    assert all(images.is_cuda and labels.is_cuda for images, labels in found)
    on_cpu = [(images.cpu(), labels.cpu()) for images, labels in found]
    assert_same(on_cpu, first_batches(source, 8, workers=0))
