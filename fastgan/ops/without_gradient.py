"""Autograd behaviour of ops that return new tensors and have no gradient.

Differentiable functions call these ops as passes. They raise if autograd would have to record them:
a silently missing gradient would train the wrong thing.
"""

from __future__ import annotations

from typing import Any

import torch

from fastgan.ops.registration import library


def register_without_gradient(op: torch._ops.OpOverload) -> None:
    """Makes `op` raise in grad mode for a tensor that requires grad or carries a tangent.

    Args:
        op: functional; ops that write their arguments have
            :func:`fastgan.ops.registration.register_in_place`.
    """
    name = op._schema.name
    below = torch._C._after_autograd_keyset
    redispatch = op.redispatch

    def kernel(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            for arg in (*args, *kwargs.values()):
                if isinstance(arg, torch.Tensor) and arg.requires_grad:
                    raise RuntimeError(
                        f"{name}: a tensor requires grad, and the op has no gradient; call it "
                        "under torch.no_grad(), or on detached tensors"
                    )
        if torch.autograd.forward_ad._current_level >= 0:
            for arg in (*args, *kwargs.values()):
                if (
                    isinstance(arg, torch.Tensor)
                    and torch.autograd.forward_ad.unpack_dual(arg).tangent is not None
                ):
                    raise RuntimeError(
                        f"{name}: a tensor carries a forward-mode tangent, which the op lacks"
                    )
        return redispatch(keyset & below, *args, **kwargs)

    library.impl(name.partition("::")[2], kernel, "Autograd", with_keyset=True)
