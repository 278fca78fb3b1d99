"""AdamW with weight clipping, in one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fastgan.optim.adam import Adam
from fastgan.optim.clipping import Clip, ClipWhen


class AdamW(Adam, torch.optim.AdamW):
    """``torch.optim.AdamW`` followed by a clip of the weights, in one pass over memory.

    For each weight w, before the update of :class:`fastgan.optim.Adam` without an L2 penalty::

        w <- w - lr * weight_decay * w

    Loshchilov & Hutter 2019, arXiv 1711.05101.

    Args:
        params: parameters or param groups. Groups may differ in every setting.
        lr: learning rate, a number or a tensor of one element.
        betas: decay of the running averages of the gradient and of its square, in [0, 1).
        eps: added to the denominator.
        weight_decay: decoupled weight decay.
        amsgrad: divide by the largest running average of the square so far.
        maximize: ascend.
        foreach: accepted for compatibility, without effect, as in :class:`fastgan.optim.Adam`.
        capturable: as `foreach`.
        differentiable: False; autograd can't see into this step.
        fused: as `foreach`.
        clip: c for weights in [-c, c], or (lo, hi); None for no clip.
        clip_when: ``"after"`` or ``"before"`` the step.
        shadow_dtype: dtype of a copy of the weights that each step also writes.

    Raises:
        ConfigError: `clip`, `clip_when` or `shadow_dtype` is malformed; or `differentiable` is
            True.
        DtypeError: a parameter isn't float64, float32, float16 or bfloat16.
        ValueError: torch's checks of the other arguments.

    Example:
        >>> import torch, fastgan.optim
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> weight.grad = torch.zeros(3)
        >>> fastgan.optim.AdamW([weight], lr=0.1, weight_decay=0.5).step()
        >>> weight.tolist()[0]
        0.949999988079071
    """

    _decoupled = True
    _op = torch.ops.fastgan.adamw_step_.default

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        clip: Clip = None,
        clip_when: ClipWhen = "after",
        shadow_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            clip=clip,
            clip_when=clip_when,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            shadow_dtype=shadow_dtype,
        )
