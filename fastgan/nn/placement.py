"""Layer by layer, what runs a module's forward and backward pass; :func:`fastgan.explain` shows it.

The findings are of the module as it is now: its children, their modes, hooks and devices. What only
a call can tell (an input of an unusual kind) is not among them.
"""

from __future__ import annotations

import torch
from torch import nn

from fastgan.nn.fused_sequential import FusedSequential
from fastgan.nn.plan import PlannedStage, Single, plan_of
from fastgan.nn.stretch import path_of_layer
from fastgan.ops import op_path
from fastgan.report import Row

__all__ = ["placements"]

NOT_FUSED = "not in a FusedSequential, which fastgan.fuse makes of an nn.Sequential"


def placements(module: nn.Module) -> list[Row]:
    """One row for every layer without children, in the order of ``named_modules``.

    Example:
        >>> block = FusedSequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
        >>> for found in placements(block):
        ...     print(found.op, "|", found.reason)
        Conv2d | matrix_product or aten, by a fixed table
        BatchNorm2d | statistics of the batch; normalised and activated as the last step
        ReLU | together with '1'
        Flatten | Flatten is not one of the layers that are fused
    """
    found: dict[str, Row] = {}
    for prefix, parent in module.named_modules():
        if isinstance(parent, FusedSequential):
            for row in _of_sequence(prefix, parent):
                found[row.layer] = row
    for name, layer in module.named_modules():
        if name not in found and not list(layer.children()):
            found[name] = Row(name, type(layer).__name__, "aten", NOT_FUSED)
    order = {name: number for number, (name, _) in enumerate(module.named_modules())}
    return sorted(
        (each for each in found.values() if each.op != "ParametrizationList"),
        key=lambda each: order.get(each.layer, len(order)),
    )


def _of_sequence(prefix: str, sequence: FusedSequential) -> list[Row]:
    found: list[Row] = []
    for part in plan_of(sequence.all_children()):
        if isinstance(part, Single):
            if not list(part.module.children()):
                name = _joined(prefix, part.name)
                found.append(Row(name, type(part.module).__name__, "aten", part.reason))
            continue
        for planned, following in zip(part.stages, [*part.stages[1:], None], strict=True):
            found += _of_stage(prefix, planned, following)
    return found


def _of_stage(prefix: str, planned: PlannedStage, following: PlannedStage | None) -> list[Row]:
    device = next(
        (each.device for module in planned.modules() for each in module.parameters()),
        torch.device("cpu"),
    )
    path, reason = path_of_layer(planned)
    found = [Row(_joined(prefix, planned.names[0]), _title(planned.layer), path, reason)]
    names = iter(planned.names[1:])
    beside = planned.names[0]
    if planned.norm is not None:
        beside = next(names)
        name, title = _joined(prefix, beside), _title(planned.norm)
        if _uses_running_statistics(planned.norm):
            folded = (
                f"running statistics, folded into the weight and bias of {planned.names[0]!r} "
                "where the batch is worth it"
            )
            found.append(Row(name, title, path, folded))
            beside = planned.names[0]
        else:
            if following is None:
                where = "normalised and activated as the last step"
            elif path == "triton":
                where = f"normalised and activated on the load of {following.names[0]!r}"
            else:
                where = f"normalised and activated for {following.names[0]!r} alone, and not kept"
            by = path
            if path != "triton" or following is None:
                by = op_path("norm_act", device.type).path
            found.append(Row(name, title, by, f"statistics of the batch; {where}"))
    if planned.activation is not None:
        by, reason = "aten", f"in place, on the result of {beside!r}"
        # Behind a convolution of its own kind, or a norm that is not folded into one.
        if path == "triton" or beside != planned.names[0]:
            by, reason = found[-1].path, f"together with {beside!r}"
        name = _joined(prefix, next(names))
        found.append(Row(name, _title(planned.activation), by, reason))
    return found


def _uses_running_statistics(norm: nn.Module) -> bool:
    return not norm.training and norm.running_mean is not None


def _title(module: nn.Module) -> str:
    return type(module).__name__


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
