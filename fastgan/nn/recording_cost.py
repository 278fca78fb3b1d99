"""What recording a convolution with its activation costs the host, forward and backward.

Measured once, on maps so small that computing them takes no time, and kept with the convolutions'
choices (:mod:`fastgan.ops.backends`). What saves less than this isn't worth recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops.backends.fixed_table import RECORDING_MILLISECONDS
from fastgan.ops.backends.measurement import race
from fastgan.ops.backends.selection import current_selector

__all__ = ["recording_milliseconds", "watching_milliseconds"]

_NAMES = ("recorded", "watched", "plain")
#: How many of torch's functions a convolution and its activation are, and others that are timed.
_WATCHED, _MORE = 2, 8
#: Values written before each call, as a network's maps are: caches don't hold Python's own then.
_VALUES_BETWEEN = 1 << 19


def recording_milliseconds(input: Tensor) -> float:
    """The milliseconds; the fixed table's where nothing is measured.

    Args:
        input: on the device in question.

    Example:
        >>> from fastgan.ops.backends import Selector, using
        >>> with using(Selector("0")):  # nothing is measured
        ...     recording_milliseconds(torch.ones(1))
        0.5
    """
    found = _found(input)
    if not found:
        return RECORDING_MILLISECONDS
    of_chain = max(found["recorded"] - found["watched"], 0.0)
    return of_chain + _WATCHED * watching_milliseconds()


def watching_milliseconds() -> float:
    """The milliseconds that recording adds to each torch function that it doesn't fuse.

    0 where nothing is measured.

    Example:
        >>> from fastgan.ops.backends import Selector, using
        >>> with using(Selector("0")):
        ...     watching_milliseconds()
        0.0
    """
    found = _found(torch.empty(0))
    return max(found["watched"] - found["plain"], 0.0) / (_WATCHED + _MORE) if found else 0.0


def _found(input: Tensor) -> Mapping[str, float]:
    key = f"recording and watching, threads {torch.get_num_threads()}"
    found, _ = current_selector().milliseconds(key, input, _NAMES, lambda: _measured(key))
    return found if len(found) == len(_NAMES) else {}


def _measured(key: str) -> dict[str, float]:
    from fastgan.nn.recorder import Recorder  # which imports what asks for this
    from fastgan.nn.stretch import Log

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.utils._python_dispatch._disable_current_modes(),
    ):
        map, weight = torch.ones(1, 8, 2, 2), torch.ones(8, 8, 1, 1)
        between, leaves = torch.zeros(_VALUES_BETWEEN), (map, weight)
        for each in leaves:
            each.requires_grad_()

        def forward(map: Tensor) -> Tensor:
            output = F.leaky_relu(F.conv2d(map, weight), 0.2)
            for _ in range(_MORE // 2):
                output = F.leaky_relu(output.abs(), 0.2)
            return output

        def recorded(map: Tensor, takes: bool = True) -> Tensor:
            recorder = Recorder(Log(None, lambda: ""), takes=takes)
            output: Tensor = recorder.run(forward, (map,), {})
            return output

        def timed(run: Callable[[Tensor], Tensor]) -> Callable[[], object]:
            def call() -> None:
                between.add_(1)
                output = run(map)
                torch.autograd.grad(output, leaves, torch.ones_like(output))

            return call

        calls = {
            "recorded": timed(recorded),
            "watched": timed(lambda map: recorded(map, takes=False)),
            "plain": timed(forward),
        }
        return race(key, calls, map.device, exhaustive=True)
