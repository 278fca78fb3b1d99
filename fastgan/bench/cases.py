"""A case: an op on a shape, run by several providers, and the work it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from fastgan.bench.schema import Row
from fastgan.bench.timing import Call
from fastgan.bench.work import Work

__all__ = ["DTYPES", "Case", "Setting", "autocast", "is_ours", "placed", "tracing_autograd"]

Network = TypeVar("Network", bound=nn.Module)

#: The dtypes of a case, and what autocast makes of them: float32 stays what the model is in.
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Setting:
    """Where a case runs, and against which peers.

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
    """Something to measure.

    Attributes:
        suite: "ops", "models", "training" or "style".
        op: what is done.
        shape: on what, in words.
        dtype: a name of :data:`DTYPES`.
        batch: images a call, or 0.
        work: the least that has to be done.
        input_bytes: of one input set, from which it follows how many exceed the cache.
        prepare: makes the providers, fastgan's first, and what each does on an input set. All get
            the same weights and the same inputs.
        images: real images that a call trains on, or 0.
        compiled: whether torch.compile is worth its minutes here.
        capturable: whether every provider can be captured in a CUDA graph as it is.
        breakdown: whether it is worth showing which part of it takes how long.
    """

    suite: str
    op: str
    shape: str
    dtype: str
    batch: int
    work: Work
    input_bytes: int
    prepare: Callable[[Setting], dict[str, Call]]
    images: int = 0
    compiled: bool = True
    capturable: bool = False
    breakdown: bool = False

    @property
    def name(self) -> str:
        """A readable name, which ``--only`` searches.

        Example:
            >>> Case("ops", "bn_act", "64x8x8", "float32", 4, Work(()), 0, lambda _: {}).name
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
    """Whether a provider is fastgan, by one path or another."""
    return provider.startswith("fastgan")


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[object]:
    """Mixed precision for "bfloat16" and "float16", nothing for "float32"."""
    return torch.autocast(device.type, dtype=DTYPES[dtype], enabled=dtype != "float32")


def placed(
    network: Network, weights: Mapping[str, Any], device: torch.device, layout: torch.memory_format
) -> Network:
    """The network, with these weights, on that device and in that memory format."""
    network.load_state_dict(weights)
    arguments: dict[str, Any] = {"device": device, "memory_format": layout}
    return network.to(**arguments)


def tracing_autograd() -> AbstractContextManager[object]:
    """Lets torch.compile trace ``torch.autograd.grad``, where this torch can."""
    config: Any = torch._dynamo.config
    if not hasattr(config, "trace_autograd_ops"):
        return nullcontext()
    patch: AbstractContextManager[object] = config.patch(trace_autograd_ops=True)
    return patch
