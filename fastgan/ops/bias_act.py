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

Kept for the gradient: nothing for "linear"; one bit per value for "relu" and "lrelu" (whether the
slope is 1); the output for the others and with a clamp; the input for "swish" and with a clamp and
a negative alpha. At the clamp itself a gradient computed from the output is 0.

Order of gradients supported: any, in x and b. The first three have zero second derivatives, which
aren't computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.errors import ConfigError
from fastgan.ops.define import define_op
from fastgan.ops.memory_format import is_channels_last
from fastgan.ops.registration import calls_its_function, is_transformed


@dataclass(frozen=True)
class Activation:
    """A row of the table.

    Attributes:
        code: its number in ``csrc/math/bias_act.h``.
        forward: (u, alpha) -> act(u).
        alpha: the default.
        gain: the default.
        slope: act' as a function of act(u) ("swish": of u); None if piecewise constant.
    """

    code: int
    forward: Callable[[Tensor, float], Tensor]
    alpha: float
    gain: float
    slope: Callable[[Tensor], Tensor] | None = None

    @property
    def has_second_gradient(self) -> bool:
        """Whether the second derivative isn't zero wherever it exists."""
        return self.slope is not None


_SQRT2 = math.sqrt(2)
_SELU, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def _selu_slope(z: Tensor) -> Tensor:
    return torch.where(z <= 0, z + _SELU * _SELU_ALPHA, _SELU)


def _swish_slope(u: Tensor) -> Tensor:
    sigmoid = u.sigmoid()
    return sigmoid * (1 + u * (1 - sigmoid))


#: By name.
ACTIVATIONS: Mapping[str, Activation] = {
    "linear": Activation(0, lambda u, alpha: u, 0.0, 1.0),
    "relu": Activation(1, lambda u, alpha: F.relu(u), 0.0, _SQRT2),
    "lrelu": Activation(2, lambda u, alpha: F.leaky_relu(u, alpha), 0.2, _SQRT2),
    "tanh": Activation(3, lambda u, alpha: u.tanh(), 0.0, 1.0, lambda z: 1 - z * z),
    "sigmoid": Activation(4, lambda u, alpha: u.sigmoid(), 0.0, 1.0, lambda z: (1 - z) * z),
    "elu": Activation(
        5, lambda u, alpha: F.elu(u), 0.0, 1.0, lambda z: torch.where(z <= 0, z + 1, 1.0)
    ),
    "selu": Activation(6, lambda u, alpha: F.selu(u), 0.0, 1.0, _selu_slope),
    "softplus": Activation(7, lambda u, alpha: F.softplus(u), 0.0, 1.0, lambda z: -torch.expm1(-z)),
    "swish": Activation(8, lambda u, alpha: F.silu(u), 0.0, _SQRT2, _swish_slope),
}
_BY_CODE = list(ACTIVATIONS.values())
_NOTHING, _BITS, _OUTPUT, _INPUT = range(4)


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
        clamp: the largest magnitude of the result; None or a negative number for no bound.

    Returns:
        A tensor like x: channels-last if x is, else contiguous.

    Raises:
        ConfigError: there is no such activation, or b doesn't fit (a ValueError).

    Example:
        >>> bias_act(torch.tensor([[-1.0, 2.0]]), torch.tensor([0.5, 1.0]), act="lrelu", gain=1.0)
        tensor([[-0.1000,  3.0000]])
    """
    if act not in ACTIVATIONS:
        raise ConfigError(f"act is {act!r}; expected one of {', '.join(ACTIVATIONS)}")
    row = ACTIVATIONS[act]
    if b is not None:
        if not -x.dim() <= dim < x.dim():
            raise ConfigError(f"dim is {dim}, x has {x.dim()} dimensions")
        if b.dim() != 1 or b.shape[0] != x.shape[dim]:
            raise ConfigError(
                f"b has shape {tuple(b.shape)}; expected ({x.shape[dim]},), as x in dimension {dim}"
            )
        b = b if b.dtype == x.dtype else b.to(x.dtype)
    else:
        dim = 1 if x.dim() > 1 else 0
    clamp = None if clamp is None or clamp < 0 else float(clamp)
    settings = (
        dim,
        row.code,
        float(row.alpha if alpha is None else alpha),
        float(row.gain if gain is None else gain),
        clamp,
    )
    if is_transformed("bias_act"):
        return _bias_act(x, b, *settings)
    recorded = torch.is_grad_enabled() and (x.requires_grad or (b is not None and b.requires_grad))
    if recorded and calls_its_function(x):
        return _BiasAct.apply(x, b, *settings)  # type: ignore[no-any-return, no-untyped-call]
    return _op(x, b, *settings)  # type: ignore[no-any-return]


# --- Autograd -------------------------------------------------------------------------------------


def _keeps(act: int, alpha: float, clamp: float | None) -> int:
    """What the forward pass keeps."""
    if act == 8 or (act == 2 and alpha < 0 and clamp is not None):
        return _INPUT
    if act > 2 or clamp is not None:
        return _OUTPUT
    return _BITS if act > 0 else _NOTHING


class _BiasAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, b: Tensor | None, dim: int, *settings: Any) -> Tensor:
        act, alpha, gain, clamp = settings
        ctx.set_materialize_grads(False)
        keeps = _keeps(act, alpha, clamp)
        ctx.settings = (dim, *settings, keeps, _lies_channels_last(x, dim))
        with torch._C._AutoDispatchBelowAutograd():
            if keeps == _BITS:
                y, bits = _bits_op(x, b, dim, act, alpha, gain)
                ctx.save_for_backward(bits, None)
            else:
                y = _op(x, b, dim, *settings)
                kept = (None, y, x)[keeps - 1] if keeps else None
                ctx.save_for_backward(kept, b if keeps == _INPUT else None)
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        kept, b = ctx.saved_tensors
        dim = ctx.settings[0]
        grad_b = None
        if not torch.is_grad_enabled():
            grad_x, sums = _gradient_op(grad, kept, b, *ctx.settings, ctx.needs_input_grad[1])
            grad_b = sums if ctx.needs_input_grad[1] else None
        else:
            grad_x = _recorded_gradient(grad, kept, b, ctx.settings)
            if ctx.needs_input_grad[1]:
                dims = _other_dims(grad_x, dim)
                grad_b = grad_x.sum(dims) if dims else grad_x
        return (grad_x if ctx.needs_input_grad[0] else None, grad_b, *(None,) * 5)


class _Gradient(torch.autograd.Function):
    """The gradient of a piecewise-linear activation: linear in ``grad``, and its own transpose."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, kept: Tensor | None, b: Tensor | None, *rest: Any
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(kept, b)
        ctx.rest = rest
        with torch._C._AutoDispatchBelowAutograd():
            grad_x: Tensor = _gradient_op(grad, kept, b, *rest, False)[0]
        return grad_x

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        rest = (None,) * (2 + len(ctx.rest))
        if grad is None:
            return (None, *rest)
        kept, b = ctx.saved_tensors
        return (_recorded_gradient(grad, kept, b, ctx.rest), *rest)


def _recorded_gradient(
    grad: Tensor, kept: Tensor | None, b: Tensor | None, settings: tuple[Any, ...]
) -> Tensor:
    """The gradient of x, differentiable again."""
    if _BY_CODE[settings[1]].slope is not None:
        return _formula(grad, kept, b, *settings[:-1])
    kept, b = (None if tensor is None else tensor.detach() for tensor in (kept, b))
    return _Gradient.apply(grad, kept, b, *settings)  # type: ignore[no-any-return, no-untyped-call]


def gradient_by_output(
    grad: Tensor, y: Tensor, dim: int, act: int, alpha: float, gain: float, clamp: float | None
) -> Tensor:
    """The gradient of x of a piecewise-linear activation with ``alpha >= 0``, from its output."""
    rest = (dim, act, alpha, gain, clamp, _OUTPUT, _lies_channels_last(y, dim), False)
    return _gradient_op(grad, y, None, *rest)[0]  # type: ignore[no-any-return]


# --- The ops in plain PyTorch ---------------------------------------------------------------------


def _laid_out(tensor: Tensor, channels_last: bool) -> Tensor:
    return tensor.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def _lies_channels_last(x: Tensor, dim: int) -> bool:
    """Whether x is traversed with channels innermost."""
    return x.dim() == 4 and dim in (1, -3) and not x.is_contiguous() and is_channels_last(x)


def _biased(x: Tensor, b: Tensor | None, dim: int) -> Tensor:
    if b is None:
        return x.clone()
    shape = [1] * x.dim()
    shape[dim] = -1
    return x + b.reshape(shape)


def _other_dims(x: Tensor, dim: int) -> list[int]:
    return [d for d in range(x.dim()) if d != dim % x.dim()]


def _in_order(x: Tensor, channels_last: bool) -> Tensor:
    """All values in memory order."""
    return (x.permute(0, 2, 3, 1) if channels_last else x).reshape(-1)


def _rises(u: Tensor, act: int) -> Tensor:
    """Whether "relu" or "lrelu" has slope 1; NaN as in torch."""
    return ~(u <= 0) if act == 1 else u > 0


def _examples() -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        x = torch.randn(2, 5, 9, 7, generator=generator).to(dtype)
        b = torch.randn(5, generator=generator).to(dtype)
        yield x, b, 1, 2, 0.2, _SQRT2, None
        yield x.contiguous(memory_format=torch.channels_last), b, 1, 2, 0.2, 2.0, 0.5
        for row in _BY_CODE:
            yield x.flatten(2)[0], None, 0, row.code, row.alpha, 1.5, None


@define_op(
    "bias_act(Tensor x, Tensor? b, int dim, int act, float alpha, float gain, float? clamp) -> "
    "Tensor",
    examples=_examples,
    function=_BiasAct,
)
def _bias_act(
    x: Tensor,
    b: Tensor | None,
    dim: int,
    act: int,
    alpha: float,
    gain: float,
    clamp: float | None,
) -> Tensor:
    y = _BY_CODE[act].forward(_biased(x, b, dim), alpha)
    y = y if gain == 1 else y * gain
    y = y if clamp is None else y.clamp(-clamp, clamp)
    return _laid_out(y, _lies_channels_last(x, dim))


def _bits_examples() -> Iterator[tuple[Any, ...]]:
    return (example[:-1] for example in _examples() if example[3] in (1, 2) and example[6] is None)


@define_op(
    "bias_act_bits(Tensor x, Tensor? b, int dim, int act, float alpha, float gain) -> (Tensor, "
    "Tensor)",
    examples=_bits_examples,
)
def _bias_act_bits(
    x: Tensor, b: Tensor | None, dim: int, act: int, alpha: float, gain: float
) -> tuple[Tensor, Tensor]:
    rises = _in_order(_rises(_biased(x, b, dim), act), _lies_channels_last(x, dim))
    eights = F.pad(rises.to(torch.uint8), (0, -rises.numel() % 8)).view(-1, 8)
    bits = (eights << torch.arange(8, dtype=torch.uint8, device=x.device)).sum(1)
    return _bias_act(x, b, dim, act, alpha, gain, None), bits.to(torch.uint8)


def _gradient_examples() -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(1)
    for x, b, dim, act, alpha, gain, clamp in _examples():
        keeps = _keeps(act, alpha, clamp)
        kept: Tensor | None = 0.7 * x
        if keeps in (_NOTHING, _BITS):
            size = ((x.numel() + 7) // 8,)
            kept = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
        kept = None if keeps == _NOTHING else kept
        b = b if keeps == _INPUT else None
        yield x, kept, b, dim, act, alpha, gain, clamp, keeps, _lies_channels_last(x, dim), True


@define_op(
    "bias_act_gradient(Tensor grad_output, Tensor? kept, Tensor? b, int dim, int act, "
    "float alpha, float gain, float? clamp, int keeps, bool channels_last, bool with_bias) -> "
    "(Tensor, Tensor)",
    examples=_gradient_examples,
)
def _bias_act_gradient(
    grad_output: Tensor,
    kept: Tensor | None,
    b: Tensor | None,
    dim: int,
    act: int,
    alpha: float,
    gain: float,
    clamp: float | None,
    keeps: int,
    channels_last: bool,
    with_bias: bool,
) -> tuple[Tensor, Tensor]:
    if keeps == _BITS:
        assert kept is not None
        lanes = torch.arange(8, dtype=torch.uint8, device=kept.device)
        rises = (kept.to(torch.uint8)[:, None] >> lanes & 1).reshape(-1)[: grad_output.numel()] > 0
        shape = grad_output.shape
        if channels_last:
            rises = rises.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
        grad = _scaled(grad_output * gain, rises.reshape(shape), act, alpha)
    else:
        grad = _formula(grad_output, kept, b, dim, act, alpha, gain, clamp, keeps)
    grad = _laid_out(grad, channels_last)
    dims = _other_dims(grad, dim) if grad.dim() > 0 else []
    bias = (
        grad.sum(dims) if with_bias and dims else grad.clone() if with_bias else grad.new_empty(0)
    )
    return grad, bias.reshape(-1)


def _scaled(grad: Tensor, rises: Tensor, act: int, alpha: float) -> Tensor:
    return torch.where(rises, grad, 0.0 if act == 1 else grad * alpha)


def _formula(
    grad: Tensor,
    kept: Tensor | None,
    b: Tensor | None,
    dim: int,
    act: int,
    alpha: float,
    gain: float,
    clamp: float | None,
    keeps: int,
) -> Tensor:
    """The gradient of x, differentiable in ``grad`` and, for smooth activations, in the kept
    tensor."""
    row = _BY_CODE[act]
    if kept is None:
        return grad * gain
    z = kept
    if keeps == _INPUT:
        z = _biased(kept, b, dim)
        if clamp is not None:
            v = row.forward(z.detach(), alpha) * gain
            grad = torch.where(v.abs() <= clamp, grad, 0.0)
    else:
        z = kept * (1 / gain if gain != 0 else 0.0)
        if clamp is not None:
            grad = torch.where(kept.detach().abs() < clamp, grad, 0.0)
    grad = grad * gain
    if row.slope is not None:
        return grad * row.slope(z)
    return grad if act == 0 else _scaled(grad, _rises(z, act), act, alpha)


_op = torch.ops.fastgan.bias_act.default
_bits_op = torch.ops.fastgan.bias_act_bits.default
_gradient_op = torch.ops.fastgan.bias_act_gradient.default
