"""Whole steps as CUDA graphs: captured once, replayed with one launch.

A step of a small GAN is hundreds of kernels of a few microseconds each; launching them one by one
takes the processor longer than running them takes the GPU. A captured step is launched at once.
What a graph demands, and how it is met here:

- it reads and writes the same memory each time: batches are copied into buffers of the graph's own
  on the device (they came there on another stream: :mod:`fastgan.training.feed`), rates and the
  average's count lie in tensors, metrics are added up in tensors;
- random numbers move on: torch replays a registered generator from its present state, and advances
  it as the captured kernels would have;
- nothing waits for the device in between: see :mod:`fastgan.training.updates`;
- everything that is made lazily (optimiser states, cuDNN's and cuBLAS's handles and choices) is
  there before: the first steps of each shape run as usual, on the stream of the capture.

A shape of step (:class:`fastgan.training.iteration.Shape`) has a graph of its own; all share one
pool of memory, as they never run at the same time.

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

__all__ = ["CapturedIteration", "CudaCapture", "StepCapture", "why_not_captured"]

Step: TypeAlias = Callable[[], None]

# Steps of a shape that run as usual before one is captured: cuDNN tries its algorithms in the
# first, optimisers make their states in the first, autograd settles on its streams by the second.
WARM_UP = 3


def why_not_captured(device: torch.device) -> str | None:
    """Why steps on ``device`` run one by one, in words; None where they are captured.

    Without CUDA kernels the optimisers' ops run as plain PyTorch, which reads the count of steps
    back from the GPU: within a capture that fails.
    """
    if device.type != "cuda":
        return "CUDA graphs are of CUDA devices alone"
    return cuda_obstacle()


class StepCapture(Protocol):
    """What can record a step and play it again.

    Attributes:
        spoils_allocator: whether nothing can run any more after a step that couldn't be recorded.
    """

    spoils_allocator: bool

    def warm_up(self, step: Step) -> None:
        """Runs a step where one will be captured."""

    def capture(self, step: Step) -> Step:
        """Records a step without running it; the result runs it.

        Raises:
            RuntimeError: a step that can't be recorded.
        """


class CudaCapture:
    """Records steps as CUDA graphs.

    Args:
        device: a CUDA device.
        random: generators that the steps draw from, beside the device's default one.
    """

    def __init__(self, device: torch.device, random: Sequence[torch.Generator]) -> None:
        self._device = device
        self._random = random
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None
        # Before 2.12 torch leaves the capture's stream current and its allocator in capture mode.
        major, minor = map(int, torch.__version__.split(".")[:2])
        self.spoils_allocator = (major, minor) < (2, 12)

    def warm_up(self, step: Step) -> None:
        """Runs a step on the stream of the captures."""
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
        # Other threads (the data loader's, which pins memory) may go on with what they do.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            step()
        self._pool = graph.pool()
        return graph.replay


class CapturedIteration:
    """An :class:`Iteration` whose steps are replayed where they can be.

    Args:
        iteration: the steps.
        capture: how they are recorded.

    Attributes:
        failure: why steps run one by one after all, or ``None``.
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
            # Whatever it was: a step is only recorded, so nothing is lost by running it instead.
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
    """A recorded step with the buffers it reads."""

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
    """What Python knows of the updater, to go back to when a capture fails halfway."""

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
