"""Several processes train one model: what they share out, what they add up, how they fail.

Each process holds the whole model and takes its rows of every batch; after each backward pass the
gradients are averaged, so all take the same step. The batch size is that of all processes
together, and noise, labels, interpolation and augmentation are drawn for the whole batch in every
process and cut into rows (they are a few kilobytes): a run is the same run, but for rounding and
batch norm, however many processes share it, and can be resumed by another number of them.

Gradients are averaged after the backward pass, flat, in buckets. DistributedDataParallel would
overlap this with the backward pass, through hooks on each parameter; the fused gradient penalty
hands out all its gradients at once at the end of its own pass, where hooks have nothing left to
overlap with. Buckets are under way together, and one is copied back while the next travels.

A process that fails says why in the store that all were started with, and the others, whose next
exchange breaks, read it there: each ends with the message of the first. Where several fail with the
same words, as all do of a bad setting, the first alone is to say them.

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

__all__ = ["ProcessFailedError", "Processes", "joined_processes"]

# Bytes of gradients in one exchange: enough to be bound by bandwidth, as in the paper's figure 6.
BUCKET_BYTES = 25 * 2**20

PATIENCE = 600.0
"""Seconds that a process waits for the others in an exchange, NCCL's own."""

_FAILURE = "fastgan/failure"
_HEARD = "fastgan/heard"
# How long a failing process waits for the others to have read why, and they for it to have said so.
_PATIENCE = 10.0
# torchrun ends all once one has ended: by so much the one that speaks goes before those that don't.
_HEAD_START = 1.0


class ProcessFailedError(FastganError, RuntimeError):
    """Another process of the run failed; the message is its own."""


class Processes:
    """The processes of a run, as one of them sees them; by default it is alone.

    Args:
        rank: this process's number, from 0.
        world_size: how many there are.
        device: what this process computes on.
        store: where they can leave messages, if there are several.
        control: a group for small exchanges in the processors' memory.

    Attributes:
        rank: this process's number.
        world_size: how many there are.
        device: what this process computes on, or ``None`` for as the configuration says.
        agreed_to_fail: whether the error under way is known to all, at the same step.

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
        # A module that holds its processes can be copied; they stay the same processes.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled, it is alone: what is saved is read back by whoever comes.
        return (Processes, ())

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes files."""
        return self.rank == 0

    def rows(self, whole: Tensor) -> Tensor:
        """This process's rows of a tensor that has a row for each sample of the whole batch.

        Raises:
            ConfigError: rows that don't divide evenly.
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

    # Adding up ----------------------------------------------------------------------------------

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replaces each parameter's gradient by its mean over the processes.

        A parameter without a gradient in one process must have none in any.
        """
        if self.world_size == 1:
            return
        with self._surviving():
            under_way = []
            for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
                flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
                under_way.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
            for bucket, flat, work in under_way:
                work.wait()
                flat.div_(self.world_size)
                parts = flat.split([gradient.numel() for gradient in bucket])
                torch._foreach_copy_(
                    bucket, [part.view(g.shape) for part, g in zip(parts, bucket, strict=True)]
                )

    def gather_rows(self, own: Tensor) -> Tensor:
        """One row of each process, in their order: shape (world_size, ...)."""
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
        """Overwrites the tensors of all processes by the first one's."""
        if self.world_size > 1:
            with self._surviving(), torch.no_grad():
                for tensor in tensors:
                    dense = tensor.contiguous()
                    dist.broadcast(dense, 0)
                    if dense is not tensor:
                        tensor.copy_(dense)

    # Agreeing -----------------------------------------------------------------------------------

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of each number over the processes; all have the same names."""
        if self.world_size == 1:
            return dict(values)
        numbers = torch.tensor(list(values.values()), dtype=torch.float64)
        with self._surviving():
            dist.all_reduce(numbers, group=self._control)
        return dict(zip(values, (numbers / self.world_size).tolist(), strict=True))

    def gather(self, own: Any) -> list[Any]:
        """What each process has, in their order."""
        if self.world_size == 1:
            return [own]
        everything: list[Any] = [None] * self.world_size
        with self._surviving():
            dist.all_gather_object(everything, own, group=self._control)
        return everything

    def agree(self, stop: str | None, error: FastganError | None = None) -> str | None:
        """Meets the others before a step: stops all if one is to stop, fails all if one failed.

        Args:
            stop: why this process is to stop, or ``None``.
            error: why it can't go on, or ``None``.

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
            own: this process's, by name.
            unsaid: names whose values the message leaves out.

        Raises:
            ConfigError: a value differs from the first process's.
        """
        first, *others = self.gather(dict(own))
        for rank, theirs in enumerate(others, 1):
            for name, value in first.items():
                if theirs[name] != value:
                    self.agreed_to_fail = True
                    found = "" if name in unsaid else f": {theirs[name]!r}, not {value!r}"
                    raise ConfigError(f"{name}: process {rank} has other than process 0{found}")

    # Failing ------------------------------------------------------------------------------------

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """Turns the break of an exchange into the message of the process that broke it."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise  # this process's own trouble
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
                break  # The process that held the store is gone.
            time.sleep(0.05)
        if late:
            return (
                f"another process of the run didn't answer for {PATIENCE:.0f} s: does it hang, or"
                " was it told to do something else?"
            )
        return "another process of the run ended without a word; was it killed?"

    def _tell_failure(self, error: BaseException) -> None:
        """Leaves word of a failure, and waits until all others have it or fail themselves."""
        if isinstance(error, ProcessFailedError):
            return
        text = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, FastganError):
            text = f"{type(error).__name__}: {text}"
        try:
            # The first word stays.
            first = self._store.compare_set(_FAILURE, "", f"{self.rank} {text}").decode()
            rank, _, words = first.partition(" ")
            if isinstance(error, FastganError):
                error.said_elsewhere = int(rank) != self.rank and words == text
            self._store.add(_HEARD, 1)
            if self.device is not None and self.device.type == "cpu":
                # Breaks the others' exchanges, which else wait for this process. (NCCL's groups
                # would first wait for kernels that never end: there the end of the process does.)
                dist.destroy_process_group()
            deadline = time.monotonic() + _PATIENCE
            while (
                not self.agreed_to_fail
                and time.monotonic() < deadline
                and self._store.add(_HEARD, 0) < self.world_size
            ):
                time.sleep(0.05)
        except RuntimeError:
            pass  # The process that held the store is gone, and so is who would listen.
        if isinstance(error, FastganError) and error.said_elsewhere:
            time.sleep(_HEAD_START)

    def _leave(self) -> None:
        """Lets go of the others."""
        if dist.is_initialized() and (self.device is None or self.device.type == "cpu"):
            dist.destroy_process_group()
        # Their threads end with these objects, which must not be when the interpreter ends.
        self._store = self._control = None
        gc.collect()


@contextmanager
def joined_processes(device: str = "auto") -> Iterator[Processes]:
    """Joins the processes that ``torchrun`` started; without it, this process is alone.

    Reads ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``, as torch
    does. Tensors travel by NCCL between GPUs, and by Gloo between processors.

    Args:
        device: "auto", "cpu" or "cuda"; on CUDA, a process takes the device of its ``LOCAL_RANK``.
            Without ``torchrun`` also "cuda:1".

    Yields:
        The processes.

    Raises:
        ConfigError: a process without a device of its own, or one device for several processes.

    Example:
        >>> with joined_processes("cpu") as processes:
        ...     processes.world_size
        1
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    # Here, as not every build of torch has them.
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
        # The one that holds the store must not leave before the others are done with it.
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
    local, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= found:
        raise ConfigError(
            f"device: process {local} of this machine has no device of its own; expected at most"
            f" {found} processes"
        )
    return torch.device("cuda", local)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one dtype and device together, in lists of about :data:`BUCKET_BYTES`."""
    open_buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for gradient in gradients:
        bucket = open_buckets.setdefault((gradient.dtype, gradient.device), [])
        bucket.append(gradient)
        if sum(each.numel() * each.element_size() for each in bucket) >= BUCKET_BYTES:
            yield open_buckets.pop((gradient.dtype, gradient.device))
    yield from open_buckets.values()
