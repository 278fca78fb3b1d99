"""Batch norm with an activation: :func:`bn_act`, and ``torch.ops.fastgan.bn_act`` beneath it.

::

    y = z((x - mean) * invstd * weight + bias)

per channel (dimension 1), z being the activation (Ioffe and Szegedy 2015, arXiv 1502.03167). A
forward pass reads x once for the statistics and once for y; a backward pass reads x and the
gradient twice. It saves x and vectors of C numbers, neither the normalised x nor y.

The op takes precomputed mean and invstd. With ``batch_statistics`` they are those of ``input``, and
the gradient goes through them; otherwise they are constants. With g = grad_output * z' and n values
per channel::

    grad_bias = sum(g),    grad_weight = sum(g * xhat),    xhat = (x - mean) * invstd
    grad_input = weight * invstd * (g - grad_bias / n - xhat * grad_weight / n)

Order of gradients supported: any. The first is ``bn_act_gradient`` of
:mod:`fastgan.ops.batch_norm`; higher orders are autograd's, through these formulas in torch
functions. Forward-mode derivatives and ``torch.func`` transforms raise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastgan.activations import BY_CODE, activation_named
from fastgan.errors import ConfigError, DtypeError
from fastgan.ops import batch_norm
from fastgan.ops.batch_norm import arithmetic_dtype, check_norm, check_vectors, per_channel
from fastgan.ops.define import define_op
from fastgan.ops.memory_format import is_channels_last

_FLOAT64 = frozenset((torch.float64,))
_FLOAT32 = frozenset((torch.float32,))
#: Dtypes of the (C,) arguments by the input's dtype, as in torch's batch_norm.
_VECTOR_DTYPES = {
    torch.float64: _FLOAT64,
    torch.float32: _FLOAT32,
    torch.float16: frozenset((torch.float16, torch.float32)),
    torch.bfloat16: frozenset((torch.bfloat16, torch.float32)),
}


def bn_act(
    input: Tensor,
    *,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "relu",
    negative_slope: float = 0.2,
) -> Tensor:
    """Batch norm and an activation: ``z(F.batch_norm(input, ...))``, fused.

    With n values a channel, mean and variance being those of the batch in training (the variance
    divided by n) and the running ones otherwise::

        y = z((x - mean) / sqrt(variance + eps) * bn_weight + bn_bias)

    (Ioffe and Szegedy 2015, arXiv 1502.03167). In training the running statistics are updated in
    place, the variance with n - 1, as torch does:
    running = (1 - momentum) * running + momentum * new.

    Differentiable to any order with respect to `input`, `bn_weight` and `bn_bias`. Works under
    autocast, which as for torch's batch norm doesn't change the input's dtype, and under
    ``torch.compile(fullgraph=True)``. Results don't depend on the number of threads.

    Args:
        input: (N, C) or (N, C, ...), float64, float32, float16 or bfloat16. Tensors that are
            neither contiguous nor channels-last are copied first.
        bn_weight: (C,), of the input's dtype, or float32 for a 16-bit input; None for 1.
        bn_bias: as `bn_weight`; None for 0.
        running_mean: (C,), of dtypes as `bn_weight`. In training None for no running statistics.
        running_var: as `running_mean`.
        training: whether to normalise with the batch's statistics, and update the running ones.
        momentum: share of the new value in the running statistics.
        eps: added to the variance.
        activation: a name of :data:`fastgan.activations.ACTIVATIONS`, such as "none", "relu",
            "leaky_relu", "silu" or "gelu".
        negative_slope: of "leaky_relu"; of either sign.

    Returns:
        A new tensor of the input's shape, dtype and memory format.

    Raises:
        ValueError: `activation` is no such name (a ConfigError); the input has one dimension; in
            training, there is one value per channel.
        DtypeError: a dtype is none of the above (a TypeError).
        RuntimeError: an argument is not of shape (C,); a running statistic is missing where
            `training` is false.

    Example:
        >>> import torch
        >>> from fastgan.functional import bn_act
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
        >>> mean, var = torch.zeros(2), torch.ones(2)
        >>> bn_act(x, bn_weight=None, bn_bias=None, running_mean=mean, running_var=var,
        ...        training=True, eps=0.0)
        tensor([[0., 0.],
                [1., 1.]])
        >>> mean, var
        (tensor([0.2000, 0.4000]), tensor([1.1000, 1.7000]))
    """
    code = activation_named(activation).code
    shape = input.shape
    if len(shape) < 2:
        raise ConfigError(f"bn_act: input has shape {tuple(shape)}; expected (N, C) or (N, C, ...)")
    if input.dtype not in _VECTOR_DTYPES:
        raise DtypeError(
            f"bn_act: input has dtype {input.dtype}; expected float64, float32, float16 or bfloat16"
        )
    vector_dtypes = _VECTOR_DTYPES[input.dtype]
    channels = shape[1]
    vector_shape = (channels,)
    for vector in (bn_weight, bn_bias, running_mean, running_var):
        if vector is not None and (
            vector.shape != vector_shape or vector.dtype not in vector_dtypes
        ):
            _refuse_vectors(input, bn_weight, bn_bias, running_mean, running_var)
    if training:
        if input.numel() == channels > 0:
            raise ValueError(
                "bn_act: expected more than 1 value per channel when training, got input of shape "
                f"{tuple(shape)}"
            )
        mean, invstd = batch_statistics(input, running_mean, running_var, momentum, eps)
    else:
        if running_mean is None or running_var is None:
            name = "running_mean" if running_mean is None else "running_var"
            raise RuntimeError(f"bn_act: {name} is None; expected a tensor where training is false")
        mean, invstd = running_statistics(running_mean, running_var, eps, input.dtype)
    return normalised(input, bn_weight, bn_bias, mean, invstd, training, code, negative_slope)


def normalised(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    batch_statistics: bool,
    activation: int,
    negative_slope: float,
) -> Tensor:
    """The op with its gradient: the last step of :func:`bn_act`, with checked arguments.

    Args:
        input: (N, C) or (N, C, ...).
        weight: (C,) or None.
        bias: (C,) or None.
        mean: (C,).
        invstd: (C,).
        batch_statistics: whether these are the input's, so that its gradient goes through them.
        activation: its code.
        negative_slope: of "leaky_relu".
    """
    arguments = (
        *(input, weight, bias, mean, invstd, batch_statistics),
        *(activation, negative_slope),
    )
    if torch.compiler.is_compiling():
        output: Tensor = _op(*arguments)
    elif torch.is_grad_enabled():
        output = _BnAct.apply(*arguments)  # type: ignore[no-untyped-call]
    else:
        _refuse_tangents(input, weight, bias)
        with torch._C._AutoDispatchBelowAutograd():
            output = _op(*arguments)
    return output


def _refuse_tangents(*tensors: Tensor | None) -> None:
    """Raises for forward-mode tangents, which would be lost silently below autograd."""
    forward_ad = torch.autograd.forward_ad
    if forward_ad._current_level < 0:
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise RuntimeError("bn_act: an argument carries a forward-mode tangent, which it lacks")


def _refuse_vectors(
    input: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
) -> None:
    channels = input.shape[1]
    allowed = _VECTOR_DTYPES[input.dtype]
    for name, vector in (
        ("bn_weight", bn_weight),
        ("bn_bias", bn_bias),
        ("running_mean", running_mean),
        ("running_var", running_var),
    ):
        if vector is None:
            continue
        if tuple(vector.shape) != (channels,):
            raise RuntimeError(
                f"bn_act: {name} has shape {tuple(vector.shape)}; expected ({channels},) for input "
                f"of shape {tuple(input.shape)}"
            )
        if vector.dtype not in allowed:
            expected = " or ".join(sorted(str(dtype) for dtype in allowed))
            raise DtypeError(
                f"bn_act: {name} has dtype {vector.dtype}; expected {expected} for input of "
                f"{input.dtype}"
            )


def batch_statistics(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The batch's mean and invstd; updates the running statistics.

    They carry no gradient: the norm's gradient includes it.
    """
    if torch.compiler.is_compiling():
        with torch.no_grad():
            mean, invstd, _ = _statistics_op(
                input.detach(), None, running_mean, running_var, momentum, eps
            )
        return mean, invstd
    # Below autograd, which in Python takes longer than a small tensor's statistics; and below
    # version counting: torch's batch norm doesn't count its writes and saves the running statistics
    # for its backward pass, where a counted write would be an error.
    with torch._C._AutoDispatchBelowADInplaceOrView():
        mean, invstd, _ = _statistics_op(input, None, running_mean, running_var, momentum, eps)
    return mean, invstd


def running_statistics(
    running_mean: Tensor, running_var: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Mean and invstd as constants, in the arithmetic's dtype."""
    dtype = arithmetic_dtype(dtype)
    mean, variance = (
        running.detach() if running.requires_grad else running
        for running in (running_mean, running_var)
    )
    # A copy if a backward pass may follow: a later batch in training would change the values.
    mean = mean.to(dtype, copy=torch.is_grad_enabled())
    return mean, torch.rsqrt(variance.to(dtype) + eps)


# --- Autograd -------------------------------------------------------------------------------------


def _differentiable_gradient(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    batch_statistics: bool,
    activation: int,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``torch.ops.fastgan.bn_act_gradient`` in differentiable torch functions."""
    x = input.to(mean.dtype)
    dimensions = [d for d in range(input.dim()) if d != 1]
    if batch_statistics:
        # The given values, with derivatives through their computation.
        own_mean = x.mean(dimensions)
        mean = own_mean + (mean - own_mean).detach()
        centred = x - per_channel(mean, input)
        variance = (centred * centred).mean(dimensions)
        invstd = (variance - variance.detach() + invstd.detach() ** -2).rsqrt()
    else:
        centred = x - per_channel(mean, input)
    xhat = centred * per_channel(invstd, input)
    scale = invstd if weight is None else invstd * weight.to(mean.dtype)
    u = centred * per_channel(scale, input)
    if bias is not None:
        u = u + per_channel(bias.to(mean.dtype), input)
    g = BY_CODE[activation].gradient_by_input(grad_output.to(mean.dtype), u, negative_slope)
    grad_bias = g.sum(dimensions)
    grad_weight = (g * xhat).sum(dimensions)
    inner = g
    if batch_statistics:
        share = 1 / max(input.numel() // max(input.shape[1], 1), 1)
        inner = inner - per_channel(grad_bias, input) * share
        inner = inner - xhat * per_channel(grad_weight, input) * share
    return (per_channel(scale, input) * inner).to(input.dtype), grad_weight, grad_bias


class _BnActGradient(torch.autograd.Function):
    """The first-order gradient by the op, if it is differentiated again.

    So its bits don't depend on ``create_graph``. Its own gradient is autograd's, through the
    formulas.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        ctx.save_for_backward(*arguments[:6])
        ctx.settings = arguments[6:]
        ctx.set_materialize_grads(False)
        with torch._C._AutoDispatchBelowAutograd():
            return _gradient_op(*arguments)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            # For partial derivatives each argument becomes a separate node, as one may depend on
            # another.
            tensors = [
                tensor
                if not wanted
                else tensor.view_as(tensor)
                if recorded
                else tensor.detach().requires_grad_()
                for tensor, wanted in zip(ctx.saved_tensors, ctx.needs_input_grad[:6], strict=True)
            ]
            results = _differentiable_gradient(*tensors, *ctx.settings)
            given = [
                (result, grad)
                for result, grad in zip(results, grad_outputs, strict=True)
                if grad is not None and result.requires_grad
            ]
            places = [i for i in range(4) if ctx.needs_input_grad[i]]
            if not given:  # the result depends on nothing that requires a gradient
                return (None,) * (6 + len(ctx.settings))
            gradients = torch.autograd.grad(
                [result for result, _ in given],
                [tensors[i] for i in places],
                [grad for _, grad in given],
                create_graph=recorded,
                allow_unused=True,
            )
        by_place: dict[int, Tensor | None] = dict(zip(places, gradients, strict=True))
        if ctx.settings[0]:
            by_place[1] = _laid_out_as(by_place.get(1), tensors[1])
        return tuple(by_place.get(i) for i in range(6 + len(ctx.settings)))


def _laid_out_as(grad: Tensor | None, input: Tensor) -> Tensor | None:
    """The gradient in torch's layout, which is the input's if that is transposed."""
    if grad is None or input.is_contiguous() or is_channels_last(input):
        return grad
    return torch.empty_like(input).copy_(grad)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, bias, mean, invstd = ctx.saved_tensors
    arguments = (grad_output, input, weight, bias, mean, invstd, *ctx.settings)
    if torch.is_grad_enabled():
        grad_input, grad_weight, grad_bias = _BnActGradient.apply(  # type: ignore[no-untyped-call]
            *arguments
        )
    else:
        with torch._C._AutoDispatchBelowAutograd():
            grad_input, grad_weight, grad_bias = _gradient_op(*arguments)
    wants_input, wants_weight, wants_bias = ctx.needs_input_grad[:3]
    return (
        grad_input if wants_input else None,
        grad_weight.to(weight.dtype) if wants_weight else None,
        grad_bias.to(bias.dtype) if wants_bias else None,
        *(None,) * 5,
    )


class _BnAct(torch.autograd.Function):
    """The op with its gradient, for eager mode: half the dispatcher's host time."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        *settings: Any,
    ) -> Tensor:
        ctx.save_for_backward(input, weight, bias, mean, invstd)
        ctx.settings = settings
        with torch._C._AutoDispatchBelowAutograd():
            output: Tensor = _op(input, weight, bias, mean, invstd, *settings)
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return _backward(ctx, *grad_outputs)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.settings = inputs[5:]


# --- The op ---------------------------------------------------------------------------------------


def _examples() -> Iterator[tuple[Any, ...]]:
    return (arguments[1:] for arguments in batch_norm.bn_act_gradient_examples())


@define_op(
    "bn_act(Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor invstd, "
    "bool batch_statistics, int activation, float negative_slope) -> Tensor",
    examples=_examples,
    autograd=(_backward, _setup_context),
)
def _bn_act(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    batch_statistics: bool,
    activation: int,
    negative_slope: float,
) -> Tensor:
    check_norm("bn_act", input, mean, invstd, bias, activation)
    check_vectors("bn_act", input.shape[1], weight=weight)
    scale = invstd if weight is None else invstd * weight.to(invstd.dtype)
    return batch_norm.norm_act(input, mean, scale, bias, activation, negative_slope)


_op = torch.ops.fastgan.bn_act.default
_statistics_op = torch.ops.fastgan.batch_norm_statistics.default
_gradient_op = torch.ops.fastgan.bn_act_gradient.default
