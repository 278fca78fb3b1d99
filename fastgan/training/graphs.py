"""Whole steps as CUDA graphs: captured once, replayed with one launch.

A step of a small GAN has hundreds of kernels of a few microseconds each; launching them one by one
takes longer than running them. A captured step takes one launch. Requirements of a graph:

- it uses the same memory each time: batches are copied into the graph's buffers on the device (from
  another stream's copies: :mod:`fastgan.training.feed`); rates, the average's count and sums of
  metrics are tensors;
- random numbers advance: torch replays a registered generator from its current state;
- nothing waits for the device: see :mod:`fastgan.training.updates`;
- lazily created state (optimiser states, cuDNN's and cuBLAS's handles and choices) exists before:
  the first steps of each shape run eagerly on the capture's stream.

A shape of step (:class:`fastgan.training.iteration.Shape`) has its own graph; all share one memory
pool, as they never run concurrently.

PyTorch documentation, "CUDA semantics", section "CUDA graphs: whole-network capture".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.explaining.fallback import warn_once
from fastgan.ops.cuda_support import cuda_obstacle
from fastgan.training.feed import Batch
from fastgan.training.iteration import Iteration, Shape
from fastgan.training.updates import GANUpdater

Step: TypeAlias = Callable[[], None]

# Eager steps of a shape before a capture: in the first, cuDNN tries its algorithms and optimisers
# create their states; by the second, autograd has settled on its streams.
WARM_UP = 3


def why_not_captured(device: torch.device) -> str | None:
    """Says why steps on ``device`` aren't captured; None if they are.

    Without CUDA kernels the optimisers run as plain PyTorch, which reads step counts from the GPU:
    a capture would fail.
    """
    if device.type != "cuda":
        return "CUDA graphs need a CUDA device"
    return cuda_obstacle()


class StepCapture(Protocol):
    """Records and replays steps.

    Attributes:
        spoils_allocator: whether a failed recording leaves torch unusable.
    """

    spoils_allocator: bool

    def warm_up(self, step: Step) -> None:
        """Runs a step eagerly before a capture."""

    def capture(self, step: Step) -> Step:
        """Records a step without running it; returns a function that runs it.

        Raises:
            RuntimeError: the step can't be recorded.
        """


class CudaCapture:
    """Records steps as CUDA graphs.

    Args:
        device: a CUDA device.
        random: the steps' generators besides the device's default one.
    """

    def __init__(self, device: torch.device, random: Sequence[torch.Generator]) -> None:
        self._device = device
        self._random = random
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None
        # After a failure torch before 2.12 leaves the capture's stream current and its allocator in
        # capture mode.
        major, minor = map(int, torch.__version__.split(".")[:2])
        self.spoils_allocator = (major, minor) < (2, 12)

    def warm_up(self, step: Step) -> None:
        """Runs a step on the captures' stream."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            step()
        current.wait_stream(self._stream)

    def capture(self, step: Step) -> Step:
        """Records a step as a graph."""
        graph = torch.cuda.CUDAGraph()
        for generator in self._random:
            graph.register_generator_state(generator)
        # Other threads (the data loader's, which pins memory) may continue.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            step()
        self._pool = graph.pool()
        return graph.replay


class CapturedIteration:
    """An :class:`Iteration` that replays steps if possible.

    Args:
        iteration: the steps.
        capture: records the steps.

    Attributes:
        failure: why steps run eagerly, or ``None``.
    """

    def __init__(self, iteration: Iteration, capture: StepCapture) -> None:
        self.failure: str | None = None
        self._iteration = iteration
        self._capture = capture
        self._warm: dict[Shape, int] = {}
        self._recorded: dict[Shape, _Recorded] = {}

    def run(self, batches: Sequence[Batch], shape: Shape) -> None:
        """One step, on a batch for each of the critic's updates."""
        if self.failure is not None:
            self._iteration.run(batches, shape)
            return
        recorded = self._recorded.get(shape)
        if recorded is None:
            done = self._warm[shape] = self._warm.get(shape, 0) + 1
            if done <= WARM_UP:
                self._capture.warm_up(lambda: self._iteration.run(batches, shape))
                return
            recorded = self._record(batches, shape)
            if recorded is None:
                self._iteration.run(batches, shape)
                return
        recorded.run(batches, self._iteration.totals.counts)

    def _record(self, batches: Sequence[Batch], shape: Shape) -> _Recorded | None:
        buffers: list[Batch] = [
            (torch.zeros_like(real), None if labels is None else torch.zeros_like(labels))
            for real, labels in batches
        ]
        updater, counts = self._iteration.updater, self._iteration.totals.counts
        before, counted = _Keepsake(updater), dict(counts)
        try:
            replay = self._capture.capture(lambda: self._iteration.run(buffers, shape))
        except Exception as error:
            # Any error: the step was only recorded, so it can still run eagerly.
            before.restore(updater)
            lines = str(error).strip().splitlines()
            self.failure = f"{type(error).__name__}: {lines[0] if lines else ''}"
            if self._capture.spoils_allocator:
                raise FastganError(
                    "a step can't be captured as a CUDA graph, and this torch's allocator and "
                    "streams stay as they were within the capture; go on from the last checkpoint "
                    f"with --no-graphs, or with torch 2.12 or later: {self.failure}"
                ) from error
            warn_once(
                f"steps run one by one, they can't be captured as a CUDA graph: {self.failure}"
            )
            counts.clear()
            counts.update(counted)
            return None
        added = {name: count - counted.get(name, 0) for name, count in counts.items()}
        counts.clear()
        counts.update(counted)
        self._recorded[shape] = _Recorded(replay, buffers, added)
        return self._recorded[shape]


class _Recorded:
    """A recorded step and its input buffers."""

    def __init__(self, replay: Step, buffers: list[Batch], added: dict[str, int]) -> None:
        self._replay = replay
        self._added = added
        self._buffers = [tensor for batch in buffers for tensor in batch if tensor is not None]

    def run(self, batches: Sequence[Batch], counts: dict[str, int]) -> None:
        given: list[Tensor] = [
            tensor for batch in batches for tensor in batch if tensor is not None
        ]
        torch._foreach_copy_(self._buffers, given)
        self._replay()
        for name, count in self._added.items():
            counts[name] = counts.get(name, 0) + count


class _Keepsake:
    """The updater's Python state, restored if a capture fails halfway."""

    def __init__(self, updater: GANUpdater) -> None:
        self._scalers = (updater.scaler_g.state_dict(), updater.scaler_d.state_dict())
        self._random = updater.random.get_state()

    def restore(self, updater: GANUpdater) -> None:
        fresh = torch.Generator(updater.device)
        fresh.set_state(self._random)
        updater.random = fresh
        updater.make_scalers()
        updater.scaler_g.load_state_dict(self._scalers[0])
        updater.scaler_d.load_state_dict(self._scalers[1])
        for optimizer in (updater.optimizer_g, updater.optimizer_d):
            for name in ("grad_scale", "found_inf"):
                if hasattr(optimizer, name):
                    delattr(optimizer, name)
