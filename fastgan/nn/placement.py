"""Reports, layer by layer, what ran a module's forward and backward pass.

The module runs once, so the report is for its current state (children, modes, hooks, devices) and
for an input of that shape, dtype and layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as nn_module
from torch.nn.utils import parametrize

from fastgan.explaining.report import Row
from fastgan.nn.recorder import is_fused, watched

__all__ = ["placements"]

_NOT_FUSED = "not in a module that runs fused, which fastgan.fuse makes"
_NOT_CALLED = "it was not called"
_NO_INPUT = "what runs it, an input would show: explain(module, input)"


def placements(module: nn.Module, *args: Any) -> list[Row]:
    """One row for every layer without children, and for functions that a forward calls.

    Restores buffers and random states.

    Args:
        module: any module.
        args: its arguments; without any the module doesn't run, and only names are reported.

    Example:
        >>> import torch
        >>> from fastgan.nn import FusedSequential
        >>> block = FusedSequential(
        ...     nn.Conv2d(40, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), nn.Flatten())
        >>> for row in placements(block, torch.zeros(64, 40, 18, 18)):
        ...     print(row.op, "|", row.reason)
        Conv2d | by torch's own function, the fastest here
        BatchNorm2d | with the activation after it, in one pass
        ReLU | together with '1'
        Flatten | Flatten is not one of the layers that are fused
    """
    names = {each: name for name, each in module.named_modules()}
    running: list[str] = [""]
    called: dict[str, bool] = {}

    def enter(each: nn.Module, _: Any) -> None:
        running.append(names.get(each, running[-1]))
        called[running[-1]] = is_fused()

    def leave(each: nn.Module, _: Any, output: Any) -> None:
        running.pop()

    rows: list[Row] = []
    if args:
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        handles = [
            nn_module.register_module_forward_pre_hook(enter),
            nn_module.register_module_forward_hook(leave, always_call=True),
        ]
        try:
            devices = {each.device for each in module.parameters() if each.is_cuda}
            with torch.random.fork_rng(devices), watched(rows, lambda: running[-1]):
                module(*args)
        finally:
            for handle in handles:
                handle.remove()
            with torch.no_grad():
                for name, buffer in module.named_buffers():
                    if name in before and not torch.equal(buffer, before[name]):
                        buffer.copy_(before[name])
    placed: list[Row] = []
    for each, name in names.items():
        own = [row for row in rows if row.layer == name]
        if "parametrizations" in name.split("."):
            continue
        is_layer = not [child for child, _ in each.named_children() if child != "parametrizations"]
        title = _title(each)
        if is_layer and own:
            own = [Row(name, title, row.path, row.reason) for row in own[:1]]
        elif is_layer:
            reason = f"{title} is not one of the layers that are fused"
            if name not in called:
                reason = _NOT_CALLED if args else _NO_INPUT
            elif not called.get(name, False):
                reason = _NOT_FUSED
            own = [Row(name, title, "aten", reason)]
        placed += own
    return placed


def _title(module: nn.Module) -> str:
    kind = type(module)
    return kind.__bases__[0].__name__ if parametrize.is_parametrized(module) else kind.__name__
