"""Shared code of the optimisers' steps in plain PyTorch, for devices without fastgan's kernels.

As in the kernels, 16-bit weights are updated in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.dtypes import DTYPES

__all__ = [
    "PlainStep",
    "check_bounds",
    "check_lists",
    "check_not_expanded",
    "clip_list",
    "written_by_step",
]


@dataclass(frozen=True)
class PlainStep:
    """The arguments that ``rmsprop_step_`` and ``adam_step_`` share; see their schemas."""

    op: str
    params: Sequence[Tensor]
    grads: Sequence[Tensor]
    state_steps: Sequence[Tensor]
    shadows: Sequence[Tensor]
    lr: float
    lr_tensor: Tensor | None
    weight_decay: float
    maximize: bool
    clip_min: float
    clip_max: float
    clip_first: bool
    grad_scale: Tensor | None
    found_inf: Tensor | None

    def run(
        self,
        states: Sequence[tuple[str, Sequence[Tensor]]],
        rule: Callable[[Tensor, Tensor, list[Tensor], float, float], Tensor],
    ) -> None:
        """Clip, step and clip, over all parameters.

        Args:
            states: name and tensors of each list of states.
            rule: given the weight, its gradient, its states (to update in place), the learning rate
                and the number of the step, returns the new weight.
        """
        lists = [("params", self.params), ("grads", self.grads), *states]
        check_lists(self.op, lists, self.shadows)
        if len(self.state_steps) != len(self.params):
            raise RuntimeError(
                f"{self.op}: state_steps has {len(self.state_steps)} tensors for "
                f"{len(self.params)} in params"
            )
        if not self.params:
            return
        check_not_expanded(self.op, [lists[0], *states, ("shadows", self.shadows)])
        check_bounds(self.op, self.params[0].dtype, self.clip_min, self.clip_max)
        if self.grad_scale is not None:
            check_apart(self.op, self.grads)
        if self.found_inf is not None and self.found_inf.item() != 0:
            return
        lr = self.lr if self.lr_tensor is None else float(self.lr_tensor.item())
        if self.clip_first:
            clip_list(self.params, (), self.clip_min, self.clip_max)
        for i, (param, grad, step) in enumerate(
            zip(self.params, self.grads, self.state_steps, strict=True)
        ):
            step += 1
            wide = param.dtype if param.dtype == torch.float64 else torch.float32
            gradient = grad.to(wide)
            if self.grad_scale is not None:
                gradient = gradient / self.grad_scale.to(wide)
                grad.copy_(gradient)
            if self.maximize:
                gradient = -gradient
            weight = param.to(wide)
            if self.weight_decay != 0:
                gradient = gradient.add(weight, alpha=self.weight_decay)
            stored = [tensors[i] for _, tensors in states]
            computed = [state.to(wide) for state in stored]
            param.copy_(rule(weight, gradient, computed, lr, float(step.item())))
            for state, value in zip(stored, computed, strict=True):
                state.copy_(value)
        if self.clip_first:
            clip_list(self.params, self.shadows, -math.inf, math.inf)
        else:
            clip_list(self.params, self.shadows, self.clip_min, self.clip_max)


def clip_list(
    tensors: Sequence[Tensor], shadows: Sequence[Tensor], lower: float, upper: float
) -> None:
    """Clips each tensor in place, then copies it to its shadow, if there is one."""
    for i, tensor in enumerate(tensors):
        if not (lower == -math.inf and upper == math.inf):
            below, above = tensor.lt(lower), tensor.gt(upper)  # not clamp_: bounds in any order
            tensor.masked_fill_(below, lower).masked_fill_(above, upper)
        if shadows:
            shadows[i].copy_(tensor)


def check_bounds(op: str, dtype: torch.dtype, lower: float, upper: float) -> None:
    """The checks of two bounds, as in csrc/ops.cpp."""
    if math.isnan(lower) or math.isnan(upper):
        raise RuntimeError(f"{op}: min and max must be numbers, got min = {lower}, max = {upper}")
    if lower > upper:
        raise RuntimeError(f"{op}: min must not exceed max, got min = {lower}, max = {upper}")
    for name, bound in (("min", lower), ("max", upper)):
        if math.isfinite(bound) and abs(bound) > torch.finfo(dtype).max:
            raise RuntimeError(
                f"{op}: {name} = {bound} is beyond what {dtype} holds; "
                "for no bound pass an infinity"
            )


def check_apart(op: str, grads: Sequence[Tensor]) -> None:
    """Checks that gradients to unscale don't share memory, as csrc/ops.cpp does."""
    by_storage: dict[int, list[Tensor]] = {}
    for grad in grads:
        if grad.numel() > 0:
            by_storage.setdefault(grad.untyped_storage().data_ptr(), []).append(grad)
    for sharing in by_storage.values():
        if len(sharing) == 1:
            continue
        places = torch.arange(sharing[0].untyped_storage().nbytes() // sharing[0].element_size())
        used = [
            places.as_strided(grad.shape, grad.stride(), grad.storage_offset()).flatten()
            for grad in sharing
        ]
        if torch.cat(used).unique().numel() < sum(map(len, used)):
            raise RuntimeError(
                f"{op}: gradients that share memory would be divided by grad_scale twice; list "
                "each parameter once, with a gradient of its own"
            )


def check_not_expanded(op: str, lists: Sequence[tuple[str, Sequence[Tensor]]]) -> None:
    """Checks that a written tensor's elements don't overlap, as csrc/ops.cpp does."""
    for name, tensors in lists:
        for i, tensor in enumerate(tensors):
            sizes = zip(tensor.shape, tensor.stride(), strict=True)
            if tensor.numel() > 0 and any(size > 1 and stride == 0 for size, stride in sizes):
                raise RuntimeError(
                    f"{op}: {name}[{i}] is expanded: more than one of its elements refers to a "
                    "single memory location. Please clone() the tensor before performing the "
                    "operation."
                )


def check_lists(
    op: str, lists: Sequence[tuple[str, Sequence[Tensor]]], shadows: Sequence[Tensor]
) -> None:
    """Checks lists of tensors, the first being the parameters, as csrc/ops.cpp does."""
    first_name, params = lists[0]
    if shadows:
        lists = [*lists, ("shadows", shadows)]
    for name, tensors in lists:
        if len(tensors) != len(params):
            raise RuntimeError(
                f"{op}: {name} has {len(tensors)} tensors for {len(params)} in {first_name}"
            )
        for i, (param, tensor) in enumerate(zip(params, tensors, strict=True)):
            if name == "shadows":
                if tensor.dtype not in (torch.float16, torch.bfloat16):
                    raise RuntimeError(
                        f"{op}: shadows must all be float16 or all bfloat16, one is {tensor.dtype}"
                    )
            elif tensor.dtype != params[0].dtype or tensor.dtype not in DTYPES:
                expected = params[0].dtype if params[0].dtype in DTYPES else "a floating-point one"
                raise RuntimeError(
                    f"{op}: {name}[{i}] has dtype {tensor.dtype}; expected {expected}"
                )
            if tensor.shape != param.shape:
                raise RuntimeError(
                    f"{op}: {name}[{i}] has shape {tuple(tensor.shape)}, its parameter has shape "
                    f"{tuple(param.shape)}"
                )


def written_by_step(args: Sequence[Any]) -> list[Tensor]:
    """The tensors that a step writes; gradients only if it unscales them."""
    params, grads, *others = args[:7]
    grad_scale = args[18]
    lists = [params, *others] if grad_scale is None else [params, grads, *others]
    return [tensor for tensors in lists for tensor in tensors]
