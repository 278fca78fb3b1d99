"""The fused pass of a critic inside DistributedDataParallel.

DDP averages gradients over processes by hooks on the parameters, which fire for whatever writes
their ``.grad``; the fused node's inputs are the parameters, so they fire for it. But DDP expects a
call of its ``forward`` in each step: there it sends buffers around, gets its buckets
ready and looks through the output's graph for parameters that won't get a gradient. So the fused
pass runs *as* the forward pass of the module inside, and its loss is what DDP sees come out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

__all__ = ["run_within"]


def run_within(critic: Any, images: Tensor, run: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
    """Calls ``run()``, through ``critic``'s forward if ``critic`` is DistributedDataParallel.

    Args:
        critic: what the user passed.
        images: what a forward pass would take.
        run: returns a tuple that begins with the loss, which has a graph to the parameters.
    """
    wrapper = _data_parallel(critic)
    if wrapper is None:
        return run()
    attributes = vars(wrapper.module)
    earlier = attributes.get("forward")

    def put_back() -> None:
        attributes.pop("forward", None)
        if earlier is not None:
            attributes["forward"] = earlier

    def forward(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        put_back()  # the pass calls the critic's own
        return run()

    attributes["forward"] = forward
    try:
        results: tuple[Any, ...] = wrapper(images)
    finally:
        put_back()
    return results


def _data_parallel(critic: Any) -> nn.parallel.DistributedDataParallel | None:
    while not isinstance(critic, nn.parallel.DistributedDataParallel):
        if not hasattr(critic, "_orig_mod"):
            return None
        critic = critic._orig_mod
    return critic
