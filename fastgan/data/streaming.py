"""Endless training batches, from device memory or through worker processes."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from fastgan._util.reading import one_line
from fastgan.data.folder import available_processors
from fastgan.data.given import StreamSource
from fastgan.data.pixels import bytes_to_unit_range
from fastgan.data.sampling import InfiniteSampler
from fastgan.data.source import ImageSource
from fastgan.errors import ConfigError, DataError

_MAX_WORKERS = 4

PATIENCE = 600.0
"""Seconds to wait for a batch from the workers."""

# Seconds between checks whether the wait was cancelled.
_POLL = 1


class StreamInterrupted(Exception):
    """The wait for a batch was cancelled; the next call returns the batch."""


class _Failure:
    """An error from a worker; torch would replace its message by a traceback."""

    def __init__(self, message: str) -> None:
        self.message = message


class _Batches(Dataset[Any]):
    """The source's batches: item k is batch k, read in the worker."""

    def __init__(self, source: ImageSource, sampler: InfiniteSampler) -> None:
        self._source = source
        self._sampler = sampler

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor | None] | _Failure:
        indices = self._sampler.indices(step).tolist()
        try:
            images, labels = self._source.read(indices), self._source.labels_at(indices)
        except DataError as error:
            return _Failure(str(error))
        if get_worker_info() is not None:
            # Raised here, because errors in the queue's thread are lost.
            try:
                images.share_memory_()
                if labels is not None:
                    labels.share_memory_()
            except (RuntimeError, OSError) as error:
                return _Failure(
                    f"{self._source.name}: {images.nbytes} bytes of a batch can't be handed over"
                    f" in shared memory ({one_line(error)}): make /dev/shm larger (docker run"
                    " --shm-size), or use --workers 0"
                )
        return images, labels


class _StepsFrom:
    """The loader's item numbers: start, start + 1, ..."""

    def __init__(self, start: int) -> None:
        self._start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._start)


def _unchanged(batch: Any) -> Any:
    return batch


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Blocks Ctrl-C; processes started inside inherit this."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows: workers ignore it once they run
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(number: int) -> None:
    # Ctrl-C reaches the whole process group. The trainer needs its workers to finish its step and
    # save; they end when it closes the stream or exits.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    if hasattr(signal, "pthread_sigmask"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


class ImageStream:
    """An endless iterator over (images, labels) on a device; close it, or use ``with``.

    Made by :func:`open_stream`. Images are float32 (batch_size, channels, image_size,
    image_size) in [-1, 1]; labels int64 (batch_size,) or None.

    Attributes:
        step: the next batch's number.
    """

    def __init__(
        self,
        source: ImageSource,
        sampler: InfiniteSampler,
        *,
        device: torch.device,
        start_step: int,
        workers: int,
        start_method: str | None,
        stopping: Callable[[], bool] = bool,
    ) -> None:
        self.step = start_step
        self._stopping = stopping
        self._workers = workers
        self._name = source.name
        self._sampler = sampler
        self._device = device
        self._closed = False
        self._images: Tensor | None = None
        self._labels: Tensor | None = None
        self._iterator: Iterator[Any] | None = None
        if isinstance(source, StreamSource):
            self._iterator = source.batches(sampler.batch_size)
        elif source.in_memory and workers == 0:
            self._images = source.images.to(device)
            self._labels = None if source.labels is None else source.labels.to(device)
        else:
            loader = DataLoader(
                _Batches(source, sampler),
                batch_size=None,
                sampler=_StepsFrom(start_step),
                num_workers=workers,
                timeout=_POLL if workers else 0,
                collate_fn=_unchanged,
                pin_memory=device.type == "cuda",
                worker_init_fn=_start_worker,
                multiprocessing_context=start_method if workers else None,
                # Otherwise the loader would draw from the global generator and change the
                # training's trajectory.
                generator=torch.Generator().manual_seed(0),
            )
            # A worker ignores interrupts from its first line on; block them until then.
            with _interrupts_held_back():
                try:
                    if workers:  # a half-started loader complains when deleted
                        multiprocessing.get_context(start_method).Lock()
                    self._iterator = iter(loader)
                except OSError as error:
                    raise DataError(
                        f"{source.name}: {workers} data worker processes can't be started"
                        f" ({one_line(error)}): use --workers 0, or let them write to /dev/shm"
                    ) from error

    def __iter__(self) -> ImageStream:
        return self

    def __next__(self) -> tuple[Tensor, Tensor | None]:
        """Give the next batch.

        Raises:
            DataError: a file can no longer be read, or a worker process died.
        """
        if self._closed:
            raise DataError(f"{self._name}: this stream is closed")
        if self._images is not None:
            indices = self._sampler.indices(self.step).to(self._device)
            images = self._images.index_select(0, indices)
            labels = None if self._labels is None else self._labels.index_select(0, indices)
        else:
            images, labels = self._next_loaded()
        self.step += 1
        return images, labels

    def _next_loaded(self) -> tuple[Tensor, Tensor | None]:
        batch = self._wait()
        if isinstance(batch, _Failure):
            self.close()
            raise DataError(batch.message)
        images, labels = batch
        # Bytes are copied to the device as bytes, a quarter of the traffic, and converted there.
        images = images.to(self._device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = bytes_to_unit_range(images)
        if labels is not None:
            labels = labels.to(self._device, non_blocking=True)
        return images, labels

    def _wait(self) -> Any:
        """The loader's next batch; raises if it takes too long or is cancelled."""
        assert self._iterator is not None
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return next(self._iterator)
            except RuntimeError as error:
                if _is_worker_death(error):
                    self.close()
                    raise self._worker_death(error) from error
                if not str(error).startswith("DataLoader timed out"):
                    self.close()
                    raise
            except (EOFError, ConnectionError) as error:
                self.close()
                if str(error).startswith("Caught "):  # raised in the worker, which is still running
                    raise
                # It died while passing a batch, before torch noticed.
                raise self._worker_death(error) from error
            if self._stopping():
                raise StreamInterrupted
            if time.monotonic() > deadline:
                self.close()
                raise DataError(
                    f"{self._name}: no batch came from {self._workers} data worker processes in"
                    f" {PATIENCE:.0f} s: they hang, or the place they read from does"
                )

    def _worker_death(self, error: BaseException) -> DataError:
        return DataError(f"{self._name}: a data worker process died: {one_line(error)}")

    def close(self) -> None:
        """Ends the worker processes and frees the device's copy; may be repeated."""
        self._closed = True
        self._images = self._labels = None
        iterator, self._iterator = self._iterator, None
        # Explicitly, because a traceback may keep the iterator alive, and torch would report each
        # dying worker.
        end_workers = getattr(iterator, "_shutdown_workers", lambda: None)
        try:
            end_workers()
        except RuntimeError as error:
            if not _is_worker_death(error):
                raise

    def __enter__(self) -> ImageStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        # torch reports a dead worker from a signal handler, anywhere in the body of `with`.
        if isinstance(error, RuntimeError) and _is_worker_death(error):
            raise self._worker_death(error) from error


def _is_worker_death(error: RuntimeError) -> bool:
    return not isinstance(error, DataError) and str(error).startswith("DataLoader worker (pid")


def open_stream(
    source: ImageSource,
    *,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    start_step: int = 0,
    workers: int | None = None,
    start_method: str | None = None,
    stopping: Callable[[], bool] = bool,
) -> ImageStream:
    """Open an endless stream of shuffled batches on ``device``.

    Batch k holds the images ``InfiniteSampler(len(source), batch_size, seed).indices(k)``,
    whatever the device, the number of workers and the step the stream starts at.

    Args:
        source: where the images come from. A source in memory is copied to the device once, and
            batches are selected there.
        batch_size: images in each batch.
        seed: of the shuffling.
        device: the batches' device.
        start_step: number of the first batch; a resumed run gives its step here.
        workers: processes that read ahead; 0 reads in this one. None: 0 for a source in
            memory, else up to four, one per processor.
        start_method: of the workers: "fork", "spawn", "forkserver", or None for Python's own.
        stopping: called once a second while waiting for a batch; True raises
            :class:`StreamInterrupted`.

    Raises:
        ConfigError: a batch size below 1, or a negative step or number of workers.

    >>> from fastgan.data import load_data
    >>> source = load_data("digits", image_size=8)
    >>> with open_stream(source, batch_size=32, seed=0, device="cpu") as stream:
    ...     images, labels = next(stream)
    >>> images.shape, labels.shape
    (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """
    if start_step < 0:
        raise ConfigError(f"start_step: {start_step}; expected at least 0")
    if workers is None:
        workers = 0 if source.in_memory else min(_MAX_WORKERS, available_processors())
    if workers < 0:
        raise ConfigError(f"workers: {workers}; expected at least 0")
    return ImageStream(
        source,
        InfiniteSampler(len(source), batch_size, seed),
        device=torch.device(device),
        start_step=start_step,
        workers=workers,
        start_method=start_method,
        stopping=stopping,
    )
