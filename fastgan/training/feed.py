"""Reads this process's rows of a step's batches, before the step's first update.

A step takes ``n_critic`` batches, read before its first update, so that an unreadable file stops
the run between two steps, where everything can be saved. On a GPU the next step's batches are
copied on a separate stream while this step runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

from fastgan.data import (
    ImageSource,
    ImageStream,
    InfiniteSampler,
    PairSource,
    load_data,
    load_pairs,
    open_stream,
)
from fastgan.data.given import StreamSource
from fastgan.data.streaming import StreamInterrupted
from fastgan.errors import ConfigError, DataError, DataWarning
from fastgan.training.config import TrainConfig
from fastgan.training.networks import DataShape
from fastgan.training.processes import Processes

Batch: TypeAlias = "tuple[Tensor, Tensor | None]"


class ShardSampler(InfiniteSampler):
    """One process's rows of the batches that all processes share.

    Batch k is rows ``rank * n .. (rank + 1) * n - 1`` of the whole batch k, n being the process's
    share, so the whole batches don't depend on the number of processes.

    Args:
        length: as :class:`fastgan.data.InfiniteSampler`'s.
        batch_size: of the whole batch.
        seed: as :class:`fastgan.data.InfiniteSampler`'s.
        processes: the processes that share it.

    Example:
        >>> whole = InfiniteSampler(length=10, batch_size=6, seed=0).indices(0)
        >>> parts = [ShardSampler(10, 6, 0, Processes(rank, 2)).indices(0) for rank in (0, 1)]
        >>> bool((torch.cat(parts) == whole).all())
        True
    """

    def __init__(self, length: int, batch_size: int, seed: int, processes: Processes) -> None:
        super().__init__(length, batch_size, seed)
        self._processes = Processes(processes.rank, processes.world_size)

    def indices(self, step: int) -> Tensor:
        """Returns this process's part of batch number ``step``: int64 (batch_size / processes,)."""
        return self._processes.rows(super().indices(step))


class BatchFeed:
    """Provides the batches of one step at a time.

    Args:
        stream: their source.
        device: their device.
    """

    def __init__(self, stream: ImageStream, device: torch.device) -> None:
        self._stream = stream
        self._device = device
        self._staged: list[Batch] = []
        self._error: DataError | None = None
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)
            # A set in the device's memory was copied on the current stream.
            self._copies.wait_stream(torch.cuda.current_stream(device))

    def take(self, count: int) -> list[Batch]:
        """The next ``count`` batches, staged or not.

        Raises:
            DataError: one of them can't be read; the next call retries.
            StreamInterrupted: the wait for one was cancelled.
        """
        self.stage(count)
        if self._error is not None:
            raise self._error
        if len(self._staged) < count:
            raise StreamInterrupted
        taken, self._staged = self._staged[:count], self._staged[count:]
        if self._copies is not None:
            # Their memory belongs to the copying stream, and must outlive its use on this one.
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._copies)
            for tensor in (tensor for batch in taken for tensor in batch if tensor is not None):
                tensor.record_stream(current)
        return taken

    def stage(self, count: int) -> None:
        """Fetches batches ahead until ``count`` are ready; :meth:`take` raises any error."""
        if self._error is not None:
            return
        try:
            if self._copies is None:
                self._fetch(count)
            else:
                with torch.cuda.stream(self._copies):
                    self._fetch(count)
        except StreamInterrupted:
            return  # raised by take(), if it is called
        except DataError as error:
            self._error = error

    def _fetch(self, count: int) -> None:
        while len(self._staged) < count:
            self._staged.append(next(self._stream))


def open_source(
    config: TrainConfig, source: ImageSource | None, progress: Callable[[int, int], None]
) -> tuple[ImageSource, DataShape]:
    """The data to train on, and its shape.

    Args:
        config: resolved settings.
        source: the caller's data; None loads ``config.data``.
        progress: called with the numbers of read files and of all files.

    Raises:
        ConfigError: a conditional model with unlabelled data.
        DataError: the data can't be read, or is a single image.
    """
    assert config.image_size is not None
    if source is None and config.kind.pairs and config.data_a and config.data_b:
        source = load_pairs(
            config.data_a,
            config.data_b,
            paired=config.kind.pairs == "paired",
            image_size=config.image_size,
            channels=config.channels,
            progress=progress,
        )
    if source is None:
        source = load_data(
            config.data,
            image_size=config.image_size,
            channels=config.channels,
            progress=progress,
        )
    if isinstance(source, PairSource) != bool(config.kind.pairs):
        expected = "a" if config.kind.pairs else "no"
        raise ConfigError(
            f"source: {config.model} can't train on {source.name}; expected {expected}"
            " fastgan.data.PairSource"
        )
    if isinstance(source, PairSource) and source.paired != (config.kind.pairs == "paired"):
        raise ConfigError(f"source: {config.model} takes {config.kind.pairs} images")
    if len(source) < 2:
        raise DataError(f"{source.name}: expected at least 2 images to train on, got 1")
    classes, names = source.num_classes, source.class_names
    if config.kind.draws_labels:
        classes, names = config.categories, None
    if config.conditional and classes is None:
        raise ConfigError(
            f"data: {config.model} is conditioned on labels, and {config.data} has none"
        )
    return source, DataShape(
        name=source.name,
        channels=source.channels,
        image_size=source.image_size,
        num_classes=classes,
        class_names=None if names is None else tuple(names),
        length=len(source),
    )


@contextmanager
def open_feed(
    source: ImageSource,
    config: TrainConfig,
    device: torch.device,
    processes: Processes,
    start: int,
    *,
    stopping: Callable[[], bool] = bool,
) -> Iterator[BatchFeed]:
    """Opens the run's data at batch number ``start``; closes it at the end of the block.

    ``stopping`` is called while waiting for a batch, and cancels the wait.
    """
    assert config.batch_size is not None
    if isinstance(source, StreamSource):
        if processes.world_size > 1:
            raise ConfigError("source: a stream of batches can't be shared by several processes")
        if start > 0:
            warnings.warn(
                f"{source.name}: a stream can't be sought; the run goes on with its first images",
                DataWarning,
                stacklevel=2,
            )
    if processes.world_size == 1:
        stream = open_stream(
            source,
            batch_size=config.batch_size,
            seed=config.seed,
            device=device,
            start_step=start,
            workers=config.workers,
            stopping=stopping,
        )
    else:
        # Processes share the machine's processors; one reader each keeps up with training.
        workers = config.workers
        if workers is None:
            workers = 0 if source.in_memory else 1
        stream = ImageStream(
            source,
            ShardSampler(len(source), config.batch_size, config.seed, processes),
            device=device,
            start_step=start,
            workers=workers,
            start_method=None,
            stopping=stopping,
        )
    with stream:
        yield BatchFeed(stream, device)
