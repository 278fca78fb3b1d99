"""RMSprop with weight clipping, in one pass over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fastgan.optim.clipping import Clip, ClippingOptimizer, ClipWhen, ParamGroup


class RMSprop(ClippingOptimizer, torch.optim.RMSprop):
    """``torch.optim.RMSprop`` followed by a clip of the weights, in one pass over memory.

    For each weight w with gradient g::

        v <- alpha * v + (1 - alpha) * g^2
        w <- clip(w - lr * g / (sqrt(v) + eps))

    and as ``torch.optim.RMSprop`` with ``weight_decay``, ``momentum``, ``centered`` and
    ``maximize``. Tieleman & Hinton 2012, lecture 6.5; with the clip, it is the inner loop of WGAN:
    Arjovsky et al. 2017, arXiv 1701.07875, algorithm 1, lines 6 and 7.

    Parameters are float64, float32, float16 or bfloat16, on any device and in any layout. The state
    has the parameter's dtype; 16-bit parameters are updated in float32. State dicts are torch's,
    with ``clip``, ``clip_when`` and ``shadow_dtype`` added to each param group. Each optimiser
    loads the other's; settings missing from torch's keep their values.

    Works with ``torch.amp.GradScaler`` (unscales in the same pass; skips step and clip if an
    infinity was found) and in CUDA graphs (``lr`` must be a tensor on the device if it changes).

    Args:
        params: parameters or param groups. Groups may differ in every setting.
        lr: learning rate, a number or a tensor of one element.
        alpha: smoothing constant.
        eps: added to the denominator.
        weight_decay: L2 penalty.
        momentum: momentum factor.
        centered: normalise by the gradient's estimated variance.
        capturable: accepted for compatibility, like `foreach` and `fused`, without effect: the one
            implementation is fused and can be captured in a CUDA graph.
        foreach: as `capturable`.
        maximize: ascend.
        differentiable: False; autograd can't see into this step.
        fused: as `capturable`.
        clip: c for weights in [-c, c], or (lo, hi); None for no clip. Clips every parameter of the
            group, also those without a gradient.
        clip_when: ``"after"`` the step, as in the paper; or ``"before"`` it, so weights may exceed
            the bounds by one step. The authors' code instead clips before computing the gradient:
            for that, call :func:`fastgan.clip_weights_` before the forward pass, as
            ``fastgan.training`` does.
        shadow_dtype: ``torch.bfloat16`` or ``torch.float16``: each step also writes a copy of the
            weights in that dtype; see :meth:`shadow`.

    Raises:
        ConfigError: `clip`, `clip_when` or `shadow_dtype` is malformed, such as lo > hi; or
            `differentiable` is True.
        DtypeError: a parameter isn't float64, float32, float16 or bfloat16.
        ValueError: torch's checks of the other arguments.

    Example:
        >>> import torch, fastgan.optim
        >>> critic = torch.nn.Linear(3, 1)
        >>> optimizer = fastgan.optim.RMSprop(critic.parameters(), lr=5e-5, clip=0.01)
        >>> critic(torch.ones(2, 3)).mean().backward()
        >>> optimizer.step()
        >>> bool(critic.weight.abs().max() <= 0.01)
        True
    """

    _op = torch.ops.fastgan.rmsprop_step_.default

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        clip: Clip = None,
        clip_when: ClipWhen = "after",
        *,
        shadow_dtype: torch.dtype | None = None,
    ) -> None:
        self._remember_defaults(clip, clip_when, shadow_dtype)
        # torch's RMSprop lacks this argument, so no group keeps it.
        self._check_settings({"fused": fused})
        torch.optim.RMSprop.__init__(
            self,
            params,
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            capturable=capturable,
            foreach=foreach,
            maximize=maximize,
            differentiable=differentiable,
        )

    def _states(self, group: ParamGroup) -> dict[str, bool]:
        return {
            "square_avg": True,
            "momentum_buffer": group["momentum"] > 0,
            "grad_avg": group["centered"],
        }

    def _settings(self, group: ParamGroup) -> tuple[Any, ...]:
        return tuple(group[key] for key in ("alpha", "eps", "weight_decay", "momentum", "centered"))
