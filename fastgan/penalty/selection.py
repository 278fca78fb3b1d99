"""Which path a critic takes, and the cache of plans."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from fastgan.penalty.conversion import Refused
from fastgan.penalty.fingerprint import fingerprint
from fastgan.penalty.plan import Plan
from fastgan.penalty.points import within_transform
from fastgan.penalty.tracing import trace

__all__ = ["find_plan", "inner_critic"]

#: Plans, or reasons why there is none, for the last few input shapes and modes of each critic.
_plans: weakref.WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Plan | str]] = (
    weakref.WeakKeyDictionary()
)
_PLANS_PER_CRITIC = 16
_SCALARS = frozenset((bool, int, float, str, type(None)))


def inner_critic(critic: Any) -> Any:
    """The module inside what ``torch.compile`` or DistributedDataParallel made of it."""
    while True:
        if isinstance(critic, nn.parallel.DistributedDataParallel):
            critic = critic.module
        elif hasattr(critic, "_orig_mod"):
            critic = critic._orig_mod
        else:
            return critic


def find_plan(critic: Any, images: Tensor, arguments: Sequence[Any]) -> Plan | str:
    """The fused pass for this critic and this kind of input, or the reason why there is none.

    Args:
        critic: what the user passed, unwrapped by :func:`inner_critic`.
        images: only their shape, dtype and device count.
        arguments: of the critic, beside the images.
    """
    if not isinstance(critic, nn.Module):
        return (
            "it is a function, whose layers can't be seen; pass the module itself, and what else "
            "it takes as critic_args"
        )
    if within_transform():
        return "it is called within a transform of torch.func, which takes no gradients as they are"
    if isinstance(critic, nn.DataParallel):
        return "DataParallel splits the batch in its own forward"
    if any(
        (
            nn_module._global_forward_hooks,
            nn_module._global_forward_pre_hooks,
            nn_module._global_backward_hooks,
            nn_module._global_backward_pre_hooks,
        )
    ):
        return "a hook is registered for all modules"
    method = "scores" if hasattr(critic, "scores") else "forward"
    described: list[Hashable] = []
    for position, argument in enumerate(arguments):
        if isinstance(argument, Tensor):
            described.append((tuple(argument.shape), argument.dtype, argument.device))
        elif type(argument) in _SCALARS:
            described.append((type(argument), argument))
        else:
            return f"argument {position} of critic_args is a {type(argument).__name__}"
    state = fingerprint(critic)
    if state is None:
        # It holds something that may have changed unseen: read anew at every call.
        return _traced(critic, method, images, arguments)
    device = images.device
    key = (
        method,
        tuple(images.shape),
        images.dtype,
        device,
        torch.is_autocast_enabled(device.type),
        tuple(described),
        state,
    )
    known = _plans.setdefault(critic, OrderedDict())
    found = known.get(key)
    if found is None:
        known[key] = found = _traced(critic, method, images, arguments)
        if len(known) > _PLANS_PER_CRITIC:
            known.popitem(last=False)
    else:
        known.move_to_end(key)
    return found


def _traced(critic: nn.Module, method: str, images: Tensor, arguments: Sequence[Any]) -> Plan | str:
    try:
        return trace(critic, method, images, arguments)
    except Refused as refusal:
        return str(refusal)
