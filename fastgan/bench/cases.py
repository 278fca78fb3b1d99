"""A case: an op on a shape, run by several providers, and the work it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import nn

from fastgan.bench.schema import Row
from fastgan.bench.timing import Call
from fastgan.bench.work import Work

Network = TypeVar("Network", bound=nn.Module)

#: A case's dtypes, and autocast's for them: models stay float32.
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Setting:
    """The device and peers of a case.

    Attributes:
        device: where it runs.
        copies: input sets to make.
        compile_mode: of the torch.compile providers; None leaves them out.
    """

    device: torch.device
    copies: int = 1
    compile_mode: str | None = None


@dataclass(frozen=True)
class Case:
    """A benchmark.

    Attributes:
        suite: "ops", "models", "training" or "style".
        op: the operation.
        shape: the input, in words.
        dtype: a name of :data:`DTYPES`.
        batch: images per call, or 0.
        count_work: counts the least necessary work, when it's asked for.
        input_bytes: size of one input set, which gives the number that exceeds the cache.
        prepare: makes the providers' calls, fastgan's first; all have the same weights and inputs.
        images: real images per training call, or 0.
        compiled: whether torch.compile is worth its minutes here.
        capturable: whether every provider can be captured in a CUDA graph.
        breakdown: whether to show the time of its parts.
    """

    suite: str
    op: str
    shape: str
    dtype: str
    batch: int
    count_work: Callable[[], Work]
    input_bytes: int
    prepare: Callable[[Setting], dict[str, Call]]
    images: int = 0
    compiled: bool = True
    capturable: bool = False
    breakdown: bool = False

    @cached_property
    def work(self) -> Work:
        """The least necessary work."""
        return self.count_work()

    @property
    def name(self) -> str:
        """A readable name, searched by ``--only``.

        Example:
            >>> case = Case("ops", "bn_act", "64x8x8", "float32", 4, Work, 0, lambda _: {})
            >>> case.name
            'bn_act, 64x8x8, float32, batch 4'
        """
        batch = f", batch {self.batch}" if self.batch else ""
        return f"{self.op}, {self.shape}, {self.dtype}{batch}"

    def row(
        self,
        provider: str,
        metric: str,
        value: float,
        spread: tuple[float, float] | None = None,
        detail: str = "",
        mode: str = "launched",
    ) -> Row:
        """A number of this case."""
        of_case = (self.suite, self.op, provider, self.shape, self.dtype, self.batch)
        return Row(*of_case, mode, metric, value, spread, detail)


def is_ours(provider: str) -> bool:
    """Whether a provider is one of fastgan's paths."""
    return provider.startswith("fastgan")


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[object]:
    """Mixed precision for "bfloat16" and "float16", nothing for "float32"."""
    return torch.autocast(device.type, dtype=DTYPES[dtype], enabled=dtype != "float32")


def placed(
    network: Network, weights: Mapping[str, Any], device: torch.device, layout: torch.memory_format
) -> Network:
    """The network with these weights, device and memory format."""
    network.load_state_dict(weights)
    arguments: dict[str, Any] = {"device": device, "memory_format": layout}
    return network.to(**arguments)


def tracing_autograd() -> AbstractContextManager[object]:
    """Lets torch.compile trace ``torch.autograd.grad``, if this torch can."""
    config: Any = torch._dynamo.config
    if not hasattr(config, "trace_autograd_ops"):
        return nullcontext()
    patch: AbstractContextManager[object] = config.patch(trace_autograd_ops=True)
    return patch
