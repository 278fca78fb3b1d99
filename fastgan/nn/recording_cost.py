"""The host's cost of recording a convolution with its activation, forward and backward.

Measured once on tiny maps, and stored with the convolutions' choices (:mod:`fastgan.ops.backends`).
Smaller savings aren't worth recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops.backends.fixed_table import RECORDING_MILLISECONDS
from fastgan.ops.backends.measurement import Times, race
from fastgan.ops.backends.selection import current_selector

__all__ = ["recording_milliseconds", "watching_milliseconds"]

_NAMES = ("recorded", "watched", "plain", "mode")
#: Number of functions in a convolution with its activation, and of other timed functions.
_WATCHED, _MORE = 2, 8
#: Values written before each call, like a network's maps, to evict Python's data from the caches.
_VALUES_BETWEEN = 1 << 19


def recording_milliseconds(input: Tensor) -> float:
    """The milliseconds; the fixed table's if nothing is measured.

    Args:
        input: a tensor on the device.

    Example:
        >>> from fastgan.ops.backends import Selector, using
        >>> with using(Selector("0")):  # nothing is measured
        ...     recording_milliseconds(torch.ones(1))
        0.5
    """
    times = _times(input)
    if not times:
        return RECORDING_MILLISECONDS
    of_chain = max(times["recorded"] - times["watched"], 0.0)
    return of_chain + _WATCHED * watching_milliseconds()


def watching_milliseconds() -> float:
    """The milliseconds that recording adds to each unfused torch function.

    0 if nothing is measured.

    Example:
        >>> from fastgan.ops.backends import Selector, using
        >>> with using(Selector("0")):
        ...     watching_milliseconds()
        0.0
    """
    times = _times(torch.empty(0))
    if not times:
        return 0.0
    # The difference of two long times may come out as nothing, what the mode itself takes can't.
    return max((times["watched"] - times["plain"]) / (_WATCHED + _MORE), times["mode"])


def _times(input: Tensor) -> Mapping[str, float]:
    key = f"recording and watching a forward, threads {torch.get_num_threads()}"
    times, _ = current_selector().milliseconds(key, input, _NAMES, lambda: _measured(key))
    return times if len(times) == len(_NAMES) else {}


def _nothing() -> None:
    return None


def _measured(key: str) -> Times:
    from fastgan.nn.recorder import Recorder  # imported here because of a circular import
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

        mode = Recorder(Log(None, lambda: ""))

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
            "mode": lambda: mode.__torch_function__(_nothing, ()),
        }
        return race(key, calls, map.device, exhaustive=True)
