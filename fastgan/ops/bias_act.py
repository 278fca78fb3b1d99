"""``bias_act``: bias, activation, gain and clamp in one pass.

::

    y = clamp(gain * act(x + b), -clamp, clamp)

of StyleGAN (Karras et al. 2018 to 2021, arXiv 1812.04948, 1912.04958, 2106.12423).

============  ==========================================  ==============  ======
act           act(u)                                      default alpha   gain
============  ==========================================  ==============  ======
``linear``    u                                           0               1
``relu``      max(u, 0)                                   0               2^0.5
``lrelu``     u if u > 0 else alpha u                     0.2             2^0.5
``tanh``      tanh(u)                                     0               1
``sigmoid``   1 / (1 + exp(-u))                           0               1
``elu``       u if u > 0 else exp(u) - 1                  0               1
``selu``      1.0507 (u if u > 0 else 1.6733 (exp(u)-1))  0               1
``softplus``  log(1 + exp(u))                             0               1
``swish``     u / (1 + exp(-u))                           0               2^0.5
============  ==========================================  ==============  ======

Order of gradients supported: any, in x and b.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.errors import ConfigError

__all__ = ["ACTIVATIONS", "Activation", "bias_act"]


@dataclass(frozen=True)
class Activation:
    """A row of the table.

    Attributes:
        forward: (u, alpha) -> act(u).
        alpha: the default.
        gain: the default.
        has_second_gradient: whether the second derivative is not zero wherever it exists.
    """

    forward: Callable[[Tensor, float], Tensor]
    alpha: float
    gain: float
    has_second_gradient: bool


_SQRT2 = 2**0.5

#: By name.
ACTIVATIONS: Mapping[str, Activation] = {
    "linear": Activation(lambda u, alpha: u, 0.0, 1.0, False),
    "relu": Activation(lambda u, alpha: F.relu(u), 0.0, _SQRT2, False),
    "lrelu": Activation(lambda u, alpha: F.leaky_relu(u, alpha), 0.2, _SQRT2, False),
    "tanh": Activation(lambda u, alpha: torch.tanh(u), 0.0, 1.0, True),
    "sigmoid": Activation(lambda u, alpha: torch.sigmoid(u), 0.0, 1.0, True),
    "elu": Activation(lambda u, alpha: F.elu(u), 0.0, 1.0, True),
    "selu": Activation(lambda u, alpha: F.selu(u), 0.0, 1.0, True),
    "softplus": Activation(lambda u, alpha: F.softplus(u), 0.0, 1.0, True),
    "swish": Activation(lambda u, alpha: F.silu(u), 0.0, _SQRT2, True),
}


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """``clamp(gain * act(x + b))``.

    Args:
        x: any shape; float64, float32, float16 or bfloat16.
        b: (x.shape[dim],); converted to the dtype of x. None for 0.
        dim: the dimension of x that b is along.
        act: a name of :data:`ACTIVATIONS`.
        alpha: the slope of "lrelu" at negative values; None for the default.
        gain: factor behind the activation; None for the default.
        clamp: the largest magnitude of the result; None for no bound.

    Returns:
        A tensor like x.

    Raises:
        ConfigError: there is no such activation, b doesn't fit, or clamp is negative (a
            ValueError).

    Example:
        >>> bias_act(torch.tensor([[-1.0, 2.0]]), torch.tensor([0.5, 1.0]), act="lrelu", gain=1.0)
        tensor([[-0.1000,  3.0000]])
    """
    if act not in ACTIVATIONS:
        raise ConfigError(f"act is {act!r}; expected one of {', '.join(ACTIVATIONS)}")
    if clamp is not None and not clamp >= 0:
        raise ConfigError(f"clamp is {clamp}; expected a number from 0 on, or None")
    row = ACTIVATIONS[act]
    if b is not None:
        if not -x.dim() <= dim < x.dim():
            raise ConfigError(f"dim is {dim}, x has {x.dim()} dimensions")
        if b.shape != x.shape[dim : dim + 1 or None]:
            raise ConfigError(
                f"b has shape {tuple(b.shape)}; expected ({x.shape[dim]},), as x in dimension {dim}"
            )
        shape = [1] * x.dim()
        shape[dim] = -1
        x = x + b.to(x.dtype).reshape(shape)
    x = row.forward(x, row.alpha if alpha is None else alpha)
    gain = row.gain if gain is None else gain
    x = x if gain == 1 else x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)
