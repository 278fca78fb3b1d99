"""Data-parallel training by several processes: sharing batches, averaging gradients, failing.

Each process has the whole model and takes its rows of every batch; gradients are averaged after
each backward pass, so all take the same step. The batch size counts all processes. Noise, labels,
interpolation and augmentation (a few kilobytes) are drawn for the whole batch in every process and
cut into rows: except for rounding and batch norm, a run doesn't depend on the number of processes,
and can be resumed by another number.

Gradients are averaged after the backward pass, flattened, in buckets. DistributedDataParallel would
overlap this with the backward pass through hooks on each parameter, but the fused gradient penalty
returns all gradients at its end, with nothing left to overlap. Buckets are exchanged concurrently,
and one is copied back during the next one's exchange.

A failing process writes its reason to the shared store, and the others read it when their next
exchange breaks: all end with the first one's message. If several fail with the same message, as for
a bad setting, only the first reports it.

Horovod's and PyTorch's averaging, in one page: Li et al. 2020, arXiv 2006.15704, section 3.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastgan.errors import ConfigError, FastganError

# Bytes of gradients per exchange: enough to be bandwidth-bound, as in the paper's figure 6.
BUCKET_BYTES = 25 * 2**20

PATIENCE = 600.0
"""Seconds that a process waits for the others in an exchange; NCCL's default."""

_FAILURE = "fastgan/failure"
_HEARD = "fastgan/heard"
# How long a failing process waits for the others to read the reason, and they for it to write it.
_PATIENCE = 10.0
# torchrun ends all once one has ended: the head start of the reporting process.
_HEAD_START = 1.0


class ProcessFailedError(FastganError, RuntimeError):
    """Another process of the run failed; the message is that process's."""


class Processes:
    """A run's processes, seen from one of them; by default there is only one.

    Args:
        rank: this process's number, from 0.
        world_size: how many there are.
        device: what this process computes on.
        store: for messages between several processes.
        control: a group for small exchanges in CPU memory.

    Attributes:
        rank: this process's number.
        world_size: how many there are.
        device: this process's device, or ``None`` for the configuration's.
        agreed_to_fail: whether all know of the current error, at the same step.

    Example:
        >>> alone = Processes()
        >>> alone.is_main, alone.rows(torch.arange(3))
        (True, tensor([0, 1, 2]))
    """

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        *,
        device: torch.device | None = None,
        store: Any = None,
        control: dist.ProcessGroup | None = None,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self.agreed_to_fail = False
        self._store = store
        self._control = control

    def __deepcopy__(self, memo: dict[int, Any]) -> Processes:
        # Copying a module with its processes keeps the same processes.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickles as a single process: anyone may load it.
        return (Processes, ())

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def rows(self, whole: Tensor) -> Tensor:
        """This process's rows of a tensor with a row for each sample of the whole batch.

        Raises:
            ConfigError: the rows don't divide evenly.
        """
        if self.world_size == 1:
            return whole
        count, rest = divmod(len(whole), self.world_size)
        if rest:
            raise ConfigError(
                f"batch_size: expected a multiple of the {self.world_size} processes, got"
                f" {len(whole)}"
            )
        return whole[self.rank * count : (self.rank + 1) * count]

    # Reductions ---------------------------------------------------------------------------------

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Averages each parameter's gradient over the processes.

        A parameter without a gradient in one process must have none in any.
        """
        self.average_([p.grad for p in parameters if p.grad is not None])

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its mean over the processes."""
        if self.world_size == 1:
            return
        with self._surviving():
            under_way = []
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                under_way.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
            for bucket, flat, work in under_way:
                work.wait()
                flat.div_(self.world_size)
                parts = flat.split([tensor.numel() for tensor in bucket])
                torch._foreach_copy_(
                    bucket, [part.view(t.shape) for part, t in zip(parts, bucket, strict=True)]
                )

    def gather_rows(self, own: Tensor) -> Tensor:
        """One row per process, in order: shape (world_size, ...)."""
        if self.world_size == 1:
            return own[None]
        with self._surviving():
            rows = [torch.empty_like(own) for _ in range(self.world_size)]
            dist.all_gather(rows, own.contiguous())
        return torch.stack(rows)

    def sum_(self, value: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.world_size > 1:
            with self._surviving():
                dist.all_reduce(value)
        return value

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Copies the first process's tensors to all."""
        if self.world_size > 1:
            with self._surviving(), torch.no_grad():
                for tensor in tensors:
                    dense = tensor.contiguous()
                    dist.broadcast(dense, 0)
                    if dense is not tensor:
                        tensor.copy_(dense)

    # Agreement ----------------------------------------------------------------------------------

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of each number over the processes; all have the same names."""
        if self.world_size == 1:
            return dict(values)
        numbers = torch.tensor(list(values.values()), dtype=torch.float64)
        with self._surviving():
            dist.all_reduce(numbers, group=self._control)
        return dict(zip(values, (numbers / self.world_size).tolist(), strict=True))

    def gather(self, own: Any) -> list[Any]:
        """Each process's value, in order."""
        if self.world_size == 1:
            return [own]
        everything: list[Any] = [None] * self.world_size
        with self._surviving():
            dist.all_gather_object(everything, own, group=self._control)
        return everything

    def agree(self, stop: str | None, error: FastganError | None = None) -> str | None:
        """Synchronises before a step: stops all if one must stop, fails all if one failed.

        Args:
            stop: why this process must stop, or ``None``.
            error: why it can't continue, or ``None``.

        Returns:
            Why all stop, or ``None``.

        Raises:
            FastganError: ``error`` itself, or in the others a :class:`ProcessFailedError` with its
                message.
        """
        self.agreed_to_fail = False
        if self.world_size > 1:
            news = torch.tensor([stop is not None or error is not None], dtype=torch.int32)
            with self._surviving():
                dist.all_reduce(news, group=self._control)
            if int(news):
                heard = self.gather((stop, None if error is None else str(error)))
                stop = next((reason for reason, _ in heard if reason is not None), None)
                failed = [(rank, text) for rank, (_, text) in enumerate(heard) if text is not None]
                self.agreed_to_fail = bool(failed)
                if failed and error is None:
                    raise ProcessFailedError(f"process {failed[0][0]} failed: {failed[0][1]}")
        if error is not None:
            raise error
        return stop

    def require_same(self, own: Mapping[str, Any], *, unsaid: Collection[str] = ()) -> None:
        """Checks that all processes have the same values.

        Args:
            own: this process's values, by name.
            unsaid: names without values in the message.

        Raises:
            ConfigError: a value differs from the first process's.
        """
        first, *others = self.gather(dict(own))
        for rank, theirs in enumerate(others, 1):
            for name, value in first.items():
                if theirs[name] != value:
                    self.agreed_to_fail = True
                    difference = "" if name in unsaid else f": {theirs[name]!r}, not {value!r}"
                    raise ConfigError(
                        f"{name}: process {rank} has other than process 0{difference}"
                    )

    # Failures -----------------------------------------------------------------------------------

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """Replaces a broken exchange's error by the message of the process that broke it."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise  # this process's own error
        except RuntimeError as error:
            late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
            raise ProcessFailedError(self._why(late=late)) from error

    def _why(self, *, late: bool) -> str:
        deadline = time.monotonic() + (0.1 if late else _PATIENCE)
        while self._store is not None and time.monotonic() < deadline:
            try:
                if self._store.check([_FAILURE]):
                    rank, _, text = self._store.get(_FAILURE).decode().partition(" ")
                    self._store.add(_HEARD, 1)
                    return f"process {rank} failed: {text}"
            except RuntimeError:
                break  # The store's process is gone.
            time.sleep(0.05)
        if late:
            return (
                f"another process of the run didn't answer for {PATIENCE:.0f} s: does it hang, or"
                " was it told to do something else?"
            )
        return "another process of the run ended without a word; was it killed?"

    def _tell_failure(self, error: BaseException) -> None:
        """Writes a failure's reason, and waits until all others have read it or failed."""
        if isinstance(error, ProcessFailedError):
            return
        text = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, FastganError):
            text = f"{type(error).__name__}: {text}"
        try:
            # The first reason stays.
            first = self._store.compare_set(_FAILURE, "", f"{self.rank} {text}").decode()
            rank, _, words = first.partition(" ")
            if isinstance(error, FastganError):
                error.said_elsewhere = int(rank) != self.rank and words == text
            self._store.add(_HEARD, 1)
            if self.device is not None and self.device.type == "cpu":
                # Breaks the others' exchanges, which would wait for this process. (NCCL's groups
                # would first wait for kernels that never end: there the process's exit breaks
                # them.)
                dist.destroy_process_group()
            deadline = time.monotonic() + _PATIENCE
            while (
                not self.agreed_to_fail
                and time.monotonic() < deadline
                and self._store.add(_HEARD, 0) < self.world_size
            ):
                time.sleep(0.05)
        except RuntimeError:
            pass  # The store's process is gone, and so are the readers.
        if isinstance(error, FastganError) and error.said_elsewhere:
            time.sleep(_HEAD_START)

    def _leave(self) -> None:
        """Leaves the process group."""
        if dist.is_initialized() and (self.device is None or self.device.type == "cpu"):
            dist.destroy_process_group()
        # Their threads end with these objects, which must happen before the interpreter exits.
        self._store = self._control = None
        gc.collect()


@contextmanager
def joined_processes(device: str = "auto") -> Iterator[Processes]:
    """Joins the processes of ``torchrun``; without it, there is only this process.

    Reads ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``, like torch.
    Uses NCCL between GPUs, and Gloo between CPUs.

    Args:
        device: "auto", "cpu" or "cuda"; on CUDA, a process takes the device of its ``LOCAL_RANK``.
            Without ``torchrun`` also "cuda:1".

    Yields:
        The processes.

    Raises:
        ConfigError: a process has no device, or several processes have the same one.

    Example:
        >>> with joined_processes("cpu") as processes:
        ...     processes.world_size
        1
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    # Imported here, as not every build of torch has them.
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    own = _own_device(device)
    store, rank, world_size = next(rendezvous("env://", timeout=timedelta(minutes=5)))
    patience = timedelta(seconds=PATIENCE)
    group_store = PrefixStore("fastgan", store)
    if own.type == "cuda":
        torch.cuda.set_device(own)
        dist.init_process_group(
            "nccl", store=group_store, rank=rank, world_size=world_size, timeout=patience
        )
        control = dist.new_group(backend="gloo", timeout=patience)
    else:
        dist.init_process_group(
            "gloo", store=group_store, rank=rank, world_size=world_size, timeout=patience
        )
        control = dist.group.WORLD
    processes = Processes(rank, world_size, device=own, store=store, control=control)
    del store, group_store, control
    try:
        yield processes
        # The store's process must not leave before the others are done with it.
        processes.gather(None)
    except BaseException as error:
        processes._tell_failure(error)
        raise
    finally:
        processes._leave()


def _own_device(device: str) -> torch.device:
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if ":" in device:
        raise ConfigError(
            f"device: each process of several takes the GPU of its LOCAL_RANK; expected cuda, got"
            f" {device}"
        )
    local, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= devices:
        raise ConfigError(
            f"device: process {local} of this machine has no device of its own; expected at most"
            f" {devices} processes"
        )
    return torch.device("cuda", local)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Lists of gradients with one dtype and device, of about :data:`BUCKET_BYTES`."""
    open_buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for gradient in gradients:
        bucket = open_buckets.setdefault((gradient.dtype, gradient.device), [])
        bucket.append(gradient)
        if sum(tensor.numel() * tensor.element_size() for tensor in bucket) >= BUCKET_BYTES:
            yield open_buckets.pop((gradient.dtype, gradient.device))
    yield from open_buckets.values()
