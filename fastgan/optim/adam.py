"""Adam with weight clipping, in one pass over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fastgan.errors import ConfigError
from fastgan.optim.clipping import Clip, ClippingOptimizer, ClipWhen, ParamGroup


class Adam(ClippingOptimizer, torch.optim.Adam):
    """``torch.optim.Adam`` followed by a clip of the weights, in one pass over memory.

    For each weight w with gradient g at step t::

        m <- beta1 * m + (1 - beta1) * g
        v <- beta2 * v + (1 - beta2) * g^2
        w <- clip(w - lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps))

    and as ``torch.optim.Adam`` with ``weight_decay``, ``amsgrad`` and ``maximize``. Kingma & Ba
    2015, arXiv 1412.6980; amsgrad: Reddi, Kale & Kumar 2018, arXiv 1904.09237.

    Dtypes, devices, state dicts, ``GradScaler`` and CUDA graphs: as :class:`fastgan.optim.RMSprop`.

    Args:
        params: parameters or param groups. Groups may differ in every setting.
        lr: learning rate, a number or a tensor of one element.
        betas: decay of the running averages of the gradient and of its square, in [0, 1).
        eps: added to the denominator.
        weight_decay: L2 penalty.
        amsgrad: divide by the largest running average of the square so far.
        maximize: ascend.
        clip: c for weights in [-c, c], or (lo, hi); None for no clip. Clips every parameter of the
            group, also those without a gradient.
        clip_when: ``"after"`` or ``"before"`` the step, see :class:`fastgan.optim.RMSprop`.
        foreach: accepted for compatibility, like `capturable` and `fused`, without effect: the one
            implementation is fused and can be captured in a CUDA graph.
        capturable: as `foreach`.
        differentiable: False; autograd can't see into this step.
        fused: as `foreach`.
        decoupled_weight_decay: False; the weight decay is the L2 penalty.
        shadow_dtype: ``torch.bfloat16`` or ``torch.float16``: each step also writes a copy of the
            weights in that dtype; see :meth:`shadow`.

    Raises:
        ConfigError: `clip`, `clip_when` or `shadow_dtype` is malformed, such as lo > hi; or
            `differentiable` or `decoupled_weight_decay` is True.
        DtypeError: a parameter isn't float64, float32, float16 or bfloat16.
        ValueError: torch's checks of the other arguments.

    Example:
        >>> import torch, fastgan.optim
        >>> critic = torch.nn.Linear(3, 1)
        >>> optimizer = fastgan.optim.Adam(critic.parameters(), betas=(0.0, 0.9), clip=(-0.1, 0.2))
        >>> critic(torch.ones(2, 3)).mean().backward()
        >>> optimizer.step()
        >>> bool(critic.weight.max() <= 0.2)
        True
    """

    _decoupled = False
    _op = torch.ops.fastgan.adam_step_.default

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        maximize: bool = False,
        clip: Clip = None,
        clip_when: ClipWhen = "after",
        *,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        shadow_dtype: torch.dtype | None = None,
    ) -> None:
        self._remember_defaults(clip, clip_when, shadow_dtype)
        torch.optim.Adam.__init__(
            self,
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )

    def _check_settings(self, settings: dict[str, Any]) -> None:
        super()._check_settings(settings)
        # What distinguishes torch's Adam and AdamW in a state dict or a group.
        decoupled = settings.get("decoupled_weight_decay", self._decoupled)
        if decoupled != self._decoupled:
            takes = "a decoupled decay" if self._decoupled else "the L2 penalty"
            raise ConfigError(
                f"decoupled_weight_decay is {decoupled}; fastgan.optim.{type(self).__name__} has "
                f"{takes} alone"
            )

    def _states(self, group: ParamGroup) -> dict[str, bool]:
        return {"exp_avg": True, "exp_avg_sq": True, "max_exp_avg_sq": group["amsgrad"]}

    def _settings(self, group: ParamGroup) -> tuple[Any, ...]:
        return (*group["betas"], group["eps"], group["weight_decay"], group["amsgrad"])
